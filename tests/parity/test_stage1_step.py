"""One stage-I step against the authors' step."""

import numpy as np
import pytest
import tensorflow as tf

from keras_dsnet.training import L2SGD, SupernetTrainer
from keras_dsnet.weights.ds_mbnet import mobilenet_tensors


class AuthorsTrainer(SupernetTrainer):
    """Takes the given widths; the authors draw others for the teacher than for the student."""

    student_widths = teacher_widths = ()

    def draw_widths(self):
        return tf.constant(self.student_widths, tf.int32)[:, None]

    def teacher_probabilities(self, images, paths):
        paths = [paths[0], *map(self.model.resolve_path, self.teacher_widths)]
        return super().teacher_probabilities(images, paths)


@pytest.fixture(scope="module")
def step(shared_numbers):
    return shared_numbers("tiny_step")


# Float64 shows that the step is theirs, to the rounding of their float32. TensorFlow's float32
# batch norm adds up thousands of numbers in float32, which theirs does in float64.
@pytest.fixture(params=[("float64", 1e-4), ("float32", 5e-4)], ids=lambda param: param[0])
def precision(request):
    """The type of the network, and how far from the authors' numbers it may be."""
    return request.param


@pytest.fixture
def tolerance(precision):
    return precision[1]


@pytest.fixture
def trainer(new_tiny_network, step, precision):
    """A trainer with the authors' settings, weights and teacher."""
    model = new_tiny_network(64, dtype=precision[0])
    trainer = AuthorsTrainer(
        model, label_path="largest", ema_momentum=float(step["ema_decay"]), ema_warmup=False
    )
    trainer.student_widths = step["student_width"][1:3]
    trainer.teacher_widths = step["teacher_width"][1:].tolist()
    for average, variable in zip(
        trainer.teacher_variables, new_tiny_network(64, ema=True).variables
    ):
        average.assign(variable)
    # As after a saved trainer was loaded: the first step would begin the teacher anew.
    trainer._has_teacher = True
    optimizer = L2SGD(
        float(step["lr"]), float(step["momentum"]), weight_decay=float(step["weight_decay"])
    )
    # Eagerly: a trace takes longer than the step.
    trainer.compile(optimizer, run_eagerly=True)
    return trainer


@pytest.fixture
def batch(step, to_images, precision):
    return tf.constant(to_images(step["img"]), precision[0]), tf.constant(step["label"], tf.int32)


def of_tensor(target, value):
    """Returns the part of a variable's value that a tensor of a checkpoint is, in its layout."""
    # The last place is that of the path "largest", which the authors' widest width shares.
    value = np.asarray(value)[target.places[-1]]
    value = np.transpose(value, np.argsort(target.axes)) if target.axes else value
    return np.reshape(value, target.shape)


def test_losses_and_logits(trainer, step, batch, tolerance):
    subnetworks = trainer._subnetworks(trainer.draw_widths())
    # Of the random sub-networks the wider one comes first here.
    order = [0, 2, 1, 3]
    losses, logits, _ = trainer._gradients(*batch, subnetworks)
    expected = [step["loss_largest"], *step["loss_uniform"][::-1], step["loss_smallest"]]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(logits, step["student_logits"][0], atol=tolerance)
    for path, index in zip(subnetworks.paths, order):
        outputs = trainer.model.run_sections(batch[0], path, training=True)
        np.testing.assert_allclose(outputs, step["student_logits"][index], atol=tolerance)


@pytest.mark.slow
def test_teacher_probabilities(trainer, step, batch, tolerance):
    paths = trainer._subnetworks(trainer.draw_widths()).paths
    probabilities = trainer.teacher_probabilities(batch[0], paths)
    expected = tf.nn.softmax(step["teacher_logits"])
    np.testing.assert_allclose(probabilities, expected, atol=tolerance)


def test_gradients(trainer, step, batch, tolerance):
    gradients = trainer._gradients(*batch, trainer._subnetworks(trainer.draw_widths()))[2]
    by_variable = {
        id(variable): gradient
        for variable, gradient in zip(trainer.optimized_variables, gradients, strict=True)
    }
    targets = mobilenet_tensors(trainer.model)
    names = [name.removeprefix("grad/") for name in step if name.startswith("grad/")]
    for name in names:
        expected = step[f"grad/{name}"]
        gradient = of_tensor(targets[name], by_variable.pop(id(targets[name].variable)))
        largest = np.max(np.abs(expected))
        np.testing.assert_allclose(gradient, expected, atol=tolerance * largest, err_msg=name)
    # The authors skip the one parameter without a gradient, the slimming head, as stage I does.
    assert not by_variable
    assert step["params_without_grad"].tolist() == ["blocks.3.first_block.gate.gate.0.weight"]


def test_weights_statistics_and_averages_after_the_step(trainer, step, batch, tolerance):
    trainer.train_on_batch(*batch)
    targets = mobilenet_tensors(trainer.model)
    averages = {
        id(variable): average
        for variable, average in zip(trainer._average.variables, trainer.teacher_variables)
    }
    counts = {"new": 0, "ema": 0}
    for key, expected in step.items():
        when, _, name = key.partition("/")
        target = targets.get(name)
        if when not in counts or target is None or target.variable is None:
            continue
        variable = target.variable
        value = variable if when == "new" else averages[id(variable)]
        np.testing.assert_allclose(of_tensor(target, value), expected, atol=tolerance, err_msg=key)
        counts[when] += 1
    # All but the counters of batches.
    saved = [n for n in targets if targets[n].variable is not None]
    assert counts["ema"] == len(saved)
    assert counts["new"] > len(saved) / 4


@pytest.mark.parametrize("precision", [("float32", 0)], indirect=True)
def test_weight_decay_leaves_out_norms_biases_and_gates(trainer, step):
    """The authors decay the kernels of gates too; here no variable of a gate is."""
    undecayed = {id(variable) for variable in trainer._undecayed_variables()}
    targets = mobilenet_tensors(trainer.model)
    theirs = {id(targets[name].variable) for name in step["no_decay"]}
    kernels = {id(v) for g in gates(trainer.model) for v in (g.w1, g.w2, g.w3)}
    assert undecayed == theirs | kernels - {id(None)}


def gates(model):
    return [step.layer for steps in model.sections for step in steps if step.kind == "gate"]
