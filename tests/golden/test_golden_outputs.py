"""The numbers that agreed with the authors' code, kept: small arrays beside this file.

`PYTHONPATH=tests python tests/golden/test_golden_outputs.py` writes them anew. That is right only
after a change that is meant to change them, and with the tests of tests/parity passing.
"""

import pathlib

import keras
import numpy as np
import tensorflow as tf
from tiny_mobilenet import TINY_SPEC

from keras_dsnet.models import DynamicSlimmableNetwork
from keras_dsnet.training import L2SGD, GateTrainer, SupernetTrainer

GOLDEN = pathlib.Path(__file__).with_name("tiny_mobilenet.npz")
ROUTES = (0, 1, 2, 3)


def network(generator):
    """Returns the tiny network with random values in every variable."""
    model = DynamicSlimmableNetwork(TINY_SPEC, (64, 64, 3), 10, classifier_activation=None)
    for variable in model.variables:
        value = generator.normal(size=variable.shape)
        if variable.name in ("gamma", "moving_variance"):
            value = generator.uniform(0.5, 2, variable.shape)
        elif variable.name == "kernel" and len(variable.shape) == 4:
            fan_in = 9 if variable.shape[3] == 1 else np.prod(variable.shape[:3])
            value *= np.sqrt(2 / fan_in)
        elif len(variable.shape) == 2 and variable.name != "moving_mean":
            value *= 3 / np.sqrt(variable.shape[0])
        else:
            value *= 0.5
        variable.assign(value)
    model.routes, model.gates_trained = ROUTES, True
    return model


def compute():
    """Returns what the network gives, and what one step of either stage makes of it."""
    generator = np.random.default_rng(2021)
    # Of different contrast, so that the gate chooses different widths.
    images = generator.normal(size=(8, 64, 64, 3)) * np.linspace(0.1, 4, 8)[:, None, None, None]
    images = (images + generator.normal(size=(8, 1, 1, 3))).astype("float32")
    labels = tf.constant(generator.integers(10, size=8), tf.int32)
    model = network(generator)
    paths = [*range(14), "largest"]
    values = {
        "logits": [model.run_sections(images, model.resolve_path(path)) for path in paths],
        "scores": model.run_section(0, None, (0, 0), images)[1],
        "routes": model.route(images),
        "dynamic": model(images),
        "madds": [model.madds(path) for path in paths],
    }
    gate = GateTrainer(model)
    gate.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    losses, _ = gate.losses(images, labels)
    values["gate_losses"] = [losses[name] for name in sorted(losses)]
    w2 = model.slimming_gates[0].w2
    before = np.array(w2)
    logs = gate.train_on_batch(images, labels, return_dict=True)
    values["gate_step"], values["gate_step_loss"] = w2 - before, logs["loss"]
    w2.assign(before)
    trainer = SupernetTrainer(model, ema_momentum=0.9, ema_warmup=False)
    trainer.compile(L2SGD(0.01), run_eagerly=True)
    logs = trainer.train_on_batch(images, labels, return_dict=True)
    values["step_losses"] = [logs[f"{name}_loss"] for name in ("widest", "random", "slimmest")]
    ends = [model.resolve_path(path) for path in ("slimmest", "widest")]
    values["logits_after_step"] = [model.run_sections(images, path) for path in ends]
    trainer.load_teacher()
    values["logits_of_teacher"] = [model.run_sections(images, path) for path in ends]
    return {name: np.array(value) for name, value in values.items()}


def test_outputs_and_steps_are_those_of_before():
    with np.load(GOLDEN) as golden:
        expected = {name: golden[name] for name in golden.files}
    values = compute()
    assert values.keys() == expected.keys()
    for name, value in values.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=1e-3, err_msg=name)


if __name__ == "__main__":
    np.savez_compressed(GOLDEN, **compute())
