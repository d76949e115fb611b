"""The behaviour that the trainers of both stages share."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny_families import TINY_RESNET, tiny_network
from trainers import make_batch, make_network, values_of

from keras_dsnet.runs import TrainingRun, WorkDir
from keras_dsnet.training import L2SGD, GateTrainer, SupernetTrainer

TRAINERS = [SupernetTrainer, GateTrainer]


@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_the_loss_of_a_float16_network_is_scaled_whatever_the_global_policy(trainer_class):
    images, labels = make_batch()
    trainer = trainer_class(make_network(dtype="mixed_float16"))
    trainer.compile(L2SGD(0.05, weight_decay=0.5), run_eagerly=True)
    assert isinstance(trainer.optimizer, keras.optimizers.LossScaleOptimizer)
    before = values_of(trainer.optimized_variables)
    # The first steps can do nothing but find the loss scale.
    for _ in range(5):
        logs = trainer.train_on_batch(images, labels, return_dict=True)
    assert np.isfinite(logs["loss"])
    assert logs["learning_rate"] == pytest.approx(0.05)
    moved = [np.abs(v - b).max() for v, b in zip(trainer.optimized_variables, before)]
    assert max(moved) > 0
    assert np.all(np.isfinite(moved))


@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_the_loss_of_a_float32_network_is_not_scaled(trainer_class):
    trainer = trainer_class(make_network())
    trainer.compile(L2SGD(0.05))
    assert isinstance(trainer.optimizer, L2SGD)


def test_weight_decay_of_a_scaled_loss_spares_the_same_variables():
    decayed = {}
    for dtype in ("float32", "mixed_float16"):
        trainer = SupernetTrainer(make_network(dtype=dtype))
        trainer.compile(L2SGD(0.1, weight_decay=0.5))
        trainer.optimizer.build(trainer.optimized_variables)
        before = values_of(trainer.optimized_variables)
        zeros = [tf.zeros(variable.shape) for variable in trainer.optimized_variables]
        trainer.optimizer.apply(zeros, trainer.optimized_variables)
        after = zip(trainer.optimized_variables, before)
        decayed[dtype] = {v.path for v, b in after if not np.array_equal(v, b)}
    assert decayed["mixed_float16"] == decayed["float32"]
    assert 0 < len(decayed["float32"]) < len(before)


@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_an_optimizer_that_was_built_is_refused(trainer_class):
    trainer = trainer_class(make_network())
    optimizer = L2SGD(0.05)
    optimizer.build(trainer.optimized_variables)
    with pytest.raises(ValueError, match=r"must be a new one.*'l2_sgd', built before"):
        trainer.compile(optimizer)


CONFIGURED = {
    SupernetTrainer: {"num_random": 1, "ema_momentum": 0.75, "label_path": "largest", "seed": 3},
    GateTrainer: {"routes": (0, 2), "loss_weights": (1.0, 0.25, 2.0), "seed": 3},
}


@pytest.mark.slow
@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_a_saved_trainer_goes_on_training_as_if_it_had_not_been(trainer_class, tmp_path):
    images, labels = make_batch()
    trainer = trainer_class(make_network(), **CONFIGURED[trainer_class])
    # With decay and momentum, the excluded variables and the optimizer's variables matter.
    trainer.compile(L2SGD(0.05, weight_decay=0.5), run_eagerly=True)
    save = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    trainer.fit(images, labels, epochs=2, shuffle=False, verbose=0, callbacks=[save])
    loaded = keras.models.load_model(tmp_path / "1.keras")
    assert type(loaded) is trainer_class
    assert loaded.model.routes == trainer.model.routes
    for name, value in CONFIGURED[trainer_class].items():
        assert getattr(loaded, name) == value
    loaded.fit(images, labels, shuffle=False, verbose=0)
    for group in ("model", "optimizer"):
        variables = (getattr(each, group).variables for each in (trainer, loaded))
        for expected, variable in zip(*variables, strict=True):
            np.testing.assert_array_equal(variable, expected, err_msg=variable.path)
    if trainer_class is SupernetTrainer:
        for expected, variable in zip(
            trainer.teacher_variables, loaded.teacher_variables, strict=True
        ):
            np.testing.assert_array_equal(variable, expected, err_msg=variable.path)


def test_a_saved_trainer_of_one_path_is_loaded_with_it(tmp_path):
    trainer = SupernetTrainer(tiny_network(TINY_RESNET), label_path=(0, 2, 1), sandwich=False)
    trainer.save(tmp_path / "trainer.keras")
    loaded = keras.models.load_model(tmp_path / "trainer.keras")
    assert loaded.label_path == (0, 2, 1)
    assert not loaded.sandwich
    assert loaded.model.gates_trained


def float16_run(folder, epochs):
    keras.utils.set_random_seed(0)
    trainer = SupernetTrainer(make_network(dtype="mixed_float16"), num_random=1)
    trainer.compile(L2SGD(0.05), run_eagerly=True)
    batches = tf.data.Dataset.from_tensors(make_batch()).repeat()
    run = TrainingRun(
        trainer,
        WorkDir(folder, {"seed": 0}),
        lambda step: batches,
        batch_size=12,
        steps_per_epoch=2,
        epochs=epochs,
    )
    start = run.fit()
    return start, {name: values_of(group) for name, group in run.variables().items()}


@pytest.mark.slow
def test_a_run_with_a_scaled_loss_goes_on_where_it_stopped(tmp_path):
    _, expected = float16_run(tmp_path / "whole", epochs=3)
    float16_run(tmp_path / "cut", epochs=2)
    start, state = float16_run(tmp_path / "cut", epochs=3)
    assert start == 4
    for name, values in expected.items():
        for one, other in zip(state[name], values, strict=True):
            np.testing.assert_array_equal(one, other, err_msg=name)


@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_the_names_of_the_metrics_are_those_of_what_an_evaluation_returns(trainer_class):
    images, labels = make_batch()
    trainer = trainer_class(make_network())
    trainer.compile(L2SGD(0.05), run_eagerly=True)
    named = trainer.evaluate(images, labels, return_dict=True, verbose=0)
    values = trainer.evaluate(images, labels, verbose=0)
    assert dict(zip(trainer.metrics_names, values, strict=True)) == pytest.approx(named)
    history = trainer.fit(images, labels, validation_data=(images, labels), verbose=0).history
    assert {f"val_{name}" for name in named} <= set(history)
    assert set(trainer.metrics_names) | {"learning_rate"} == {
        name for name in history if not name.startswith("val_")
    }


@pytest.mark.parametrize("trainer_class", TRAINERS)
@pytest.mark.parametrize("activation", ["sigmoid", keras.activations.hard_sigmoid])
def test_a_classifier_whose_outputs_are_not_trained_is_refused(trainer_class, activation):
    network = make_network()
    network.classifier_activation = activation
    name = activation if isinstance(activation, str) else activation.__name__
    with pytest.raises(ValueError, match=f"'softmax' or None.*activation='{name}'$"):
        trainer_class(network)


def test_a_gate_trainer_that_is_refused_leaves_the_routes():
    network = tiny_network(TINY_RESNET, input_shape=(None, None, 3))
    routes = network.routes
    with pytest.raises(ValueError, match="need the size of the images"):
        GateTrainer(network, routes=(0, 2))
    assert network.routes == routes


def test_gates_are_not_trained_for_other_routes_than_the_networks():
    images, labels = make_batch()
    network = make_network()
    trainer = GateTrainer(network, routes=(0, 2))
    trainer.compile(L2SGD(0.05), run_eagerly=True)
    GateTrainer(network, routes=(0, 1))
    with pytest.raises(ValueError, match=r"among the routes \(0, 2\).*model.routes=\(0, 1\)$"):
        trainer.fit(images, labels, verbose=0)
    assert not network.gates_trained


def test_a_finished_run_of_gates_gives_back_trained_gates(tmp_path):
    images, labels = make_batch()
    batches = tf.data.Dataset.from_tensors((images, labels)).repeat()

    def run():
        trainer = GateTrainer(make_network(), routes=(0, 2))
        trainer.compile(L2SGD(0.05), run_eagerly=True)
        sizes = {"batch_size": len(images), "steps_per_epoch": 2, "epochs": 1}
        workdir = WorkDir(tmp_path, {"epochs": 1}, growing=("epochs",))
        TrainingRun(trainer, workdir, lambda step: batches, **sizes).fit()
        return trainer.model

    first, again = run(), run()
    assert first.gates_trained
    assert again.gates_trained
    np.testing.assert_array_equal(again.route(images), first.route(images))


def test_a_run_refuses_steps_together_that_do_not_divide_an_epoch(tmp_path):
    trainer = GateTrainer(make_network())
    trainer.compile(L2SGD(0.05), steps_per_execution=3)
    sizes = {"batch_size": 2, "steps_per_epoch": 4, "epochs": 1}
    with pytest.raises(ValueError, match=r"must divide .* 4\. Received: steps_per_execution=3$"):
        TrainingRun(trainer, WorkDir(tmp_path, {}), lambda step: None, **sizes)
