"""The reference of the training benchmark takes the step that the package takes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_dsnet.applications import DSMobileNet

from keras_dsnet.training import L2SGD, SupernetTrainer

WIDTHS = (3, 9)
BATCH, SIZE, CLASSES = 4, 32, 10


def make_images():
    generator = np.random.default_rng(0)
    images = generator.normal(size=(BATCH, SIZE, SIZE, 3)).astype("float32")
    return tf.constant(images), tf.constant(generator.integers(0, CLASSES, BATCH), tf.int32)


def make_trainer():
    keras.utils.set_random_seed(0)
    model = DSMobileNet(input_shape=(SIZE, SIZE, 3), classes=CLASSES, classifier_activation=None)
    generator = np.random.default_rng(1)
    for variable in model.variables:
        if "kernel" not in variable.name and variable.dtype == "float32":
            noise = generator.uniform(-0.1, 0.1, size=variable.shape)
            variable.assign_add(noise.astype("float32"))
    trainer = SupernetTrainer(model)
    trainer.compile(L2SGD(0.05))
    trainer.draw_widths = lambda: tf.constant(WIDTHS)[:, None]
    return trainer


def make_reference():
    from bare_mobilenet import BareMobileNet
    from bare_stage1 import BareStageOne

    reference = BareStageOne(BareMobileNet(CLASSES), BATCH, SIZE)
    reference.draw_widths = lambda: tf.constant(WIDTHS)
    return reference


def views(reference, section, attribute):
    """The reference's arrays under the package's names, packed vectors one by one."""
    parameters = reference.net.parameters[section]
    arrays = {name: getattr(p, attribute).numpy() for name, p in parameters.items()}
    for options, names in reference.net.vectors[section].items():
        arrays.update(zip(names, arrays.pop(f"vectors {options}")))
    return arrays


def first(value, shape):
    """The first channels of the package's variable, in the reference's shape."""
    value = np.asarray(value)
    value = value[0, 0] if len(shape) == 2 and value.ndim == 4 else value
    return value[tuple(slice(size) for size in shape)]


def copy_weights(trainer, reference):
    named = {variable.path: variable for variable in trainer.model.variables}
    for section in (0, 1):
        for name, parameter in reference.net.parameters[section].items():
            if name in named:
                value = first(named[name], parameter.variable.shape)
                parameter.variable.assign(value)
                parameter.average.assign(value)
        for options, names in reference.net.vectors[section].items():
            parameter = reference.net.parameters[section][f"vectors {options}"]
            value = np.stack([first(named[name], options[-1:]) for name in names])
            parameter.variable.assign(value)
            parameter.average.assign(value)
        for options, names in reference.net.norms[section].items():
            shape = (len(options), options[-1])
            kinds = ("moving_mean", "moving_variance")
            table = [[first(named[f"{n}/{kind}"], shape) for n in names] for kind in kinds]
            for variable in reference.net.statistics[section][options]:
                variable.assign(np.transpose(table, (2, 0, 1, 3)))


@pytest.mark.slow
def test_a_step_of_the_reference_is_a_step_of_the_package():
    trainer, reference = make_trainer(), make_reference()
    copy_weights(trainer, reference)
    images, labels = make_images()
    logs = trainer.train_on_batch(images, labels, return_dict=True)
    losses = reference.train_step(images, labels).numpy()
    np.testing.assert_allclose(logs["slimmest_loss"], losses[0], rtol=1e-4)
    np.testing.assert_allclose(logs["random_loss"], losses[1:3].mean(), rtol=1e-4)
    np.testing.assert_allclose(logs["widest_loss"], losses[3], rtol=1e-4)

    moved = {variable.path: variable for variable in trainer.model.variables}
    averages = {v.path: a for v, a in zip(trainer._averaged, trainer.teacher_variables)}
    for section in (0, 1):
        for attribute, package in (("variable", moved), ("average", averages)):
            for name, value in views(reference, section, attribute).items():
                expected = first(package[name], value.shape)
                scale = np.abs(expected).max() + 1e-3
                np.testing.assert_allclose(value, expected, atol=1e-4 * scale, err_msg=name)
        for options, names in reference.net.norms[section].items():
            tables = reference.net.statistics[section][options]
            for package, table in zip((moved, averages), tables):
                for index, name in enumerate(names):
                    expected = first(package[f"{name}/moving_mean"], (len(options), options[-1]))
                    actual = table.numpy()[:, 0, index]
                    np.testing.assert_allclose(actual, expected, atol=1e-4, err_msg=name)
