"""The references of the training benchmark take the steps that the package takes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_dsnet_recipes.benchmarks.reference.bare_efficientnet import BareEfficientNet
from keras_dsnet_recipes.benchmarks.reference.bare_mobilenet import BareMobileNet
from keras_dsnet_recipes.benchmarks.reference.bare_resnet import BareResNet
from keras_dsnet_recipes.benchmarks.reference.bare_stage1 import BareStageOne

from keras_dsnet.models import (
    DynamicSlimmableNetwork,
    EfficientNetSpec,
    EfficientNetStage,
    MobileNetSpec,
    MobileNetStage,
    ResNetSpec,
    ResNetStage,
)
from keras_dsnet.training import L2SGD, SupernetTrainer

BATCH, SIZE, CLASSES = 4, 32, 10
# Few blocks, since tracing takes the time: one of every kind.
TINY_RESNET = ResNetSpec(
    stem=(8,), stages=(ResNetStage(2, 1, (8, 16, 24)), ResNetStage(1, 2, (8, 16, 24)))
)
TINY_EFFICIENTNET = EfficientNetSpec(
    stem=(4,),
    stages=(
        EfficientNetStage(1, 2, (4,), expansion=1),
        EfficientNetStage(2, 1, (8, 12, 16), kernel_size=5, expansion=2, gated=True),
    ),
    top=20,
    attention_ratio=2.0,
)
TINY_MOBILENET = MobileNetSpec(
    stem=(8, 12),
    stages=(
        MobileNetStage(1, 2, (16, 24)),
        MobileNetStage(2, 2, (32, 40, 48, 56, 64), gated=True),
        MobileNetStage(1, 1, (48, 56, 64, 72, 80)),
    ),
)
# The two random paths of a step: of several gates neither is the wider one everywhere.
NETWORKS = {
    "BareResNet": (TINY_RESNET, [(0, 2), (2, 1)]),
    "BareEfficientNet": (TINY_EFFICIENTNET, [(1,), (1,)]),
    "BareMobileNet": (TINY_MOBILENET, [(1,), (3,)]),
}


def make_images():
    generator = np.random.default_rng(0)
    images = generator.normal(size=(BATCH, SIZE, SIZE, 3)).astype("float32")
    return tf.constant(images), tf.constant(generator.integers(0, CLASSES, BATCH), tf.int32)


def make_trainer(spec, widths):
    keras.utils.set_random_seed(0)
    model = DynamicSlimmableNetwork(spec, (SIZE, SIZE, 3), CLASSES, classifier_activation=None)
    generator = np.random.default_rng(1)
    for variable in model.variables:
        if "kernel" not in variable.name and variable.dtype == "float32":
            noise = generator.uniform(-0.1, 0.1, size=variable.shape)
            variable.assign_add(noise.astype("float32"))
    trainer = SupernetTrainer(model)
    trainer.compile(L2SGD(0.05))
    trainer.draw_widths = tf.Variable(widths, trainable=False).read_value
    return trainer


def make_reference(name, spec, widths):
    networks = {
        network.__name__: network for network in (BareMobileNet, BareResNet, BareEfficientNet)
    }
    reference = BareStageOne(networks[name](spec, CLASSES), BATCH, SIZE)
    # A constant would be known while tracing, and every shape with it.
    reference.draw_widths = tf.Variable(widths, trainable=False).read_value
    return reference


def views(reference, half, attribute):
    """The reference's arrays under the package's names, packed vectors one by one."""
    parameters = reference.net.parameters[half]
    arrays = {name: getattr(p, attribute).numpy() for name, p in parameters.items()}
    for channels, packed in reference.net.vectors[half].items():
        arrays.update(zip(packed, arrays.pop(f"vectors {channels}")))
    return arrays


def first(value, shape):
    """The first channels of the package's variable, in the reference's shape."""
    value = np.asarray(value)
    value = value[0, 0] if len(shape) == 2 and value.ndim == 4 else value
    return value[tuple(slice(size) for size in shape)]


def copy_weights(trainer, reference):
    named = {variable.path: variable for variable in trainer.model.variables}
    net = reference.net
    for half in (0, 1):
        for name, parameter in net.parameters[half].items():
            if name in named:
                value = first(named[name], parameter.variable.shape)
                parameter.variable.assign(value)
                parameter.average.assign(value)
        for channels, packed in net.vectors[half].items():
            parameter = net.parameters[half][f"vectors {channels}"]
            value = np.stack([first(named[name], (channels.most,)) for name in packed])
            parameter.variable.assign(value)
            parameter.average.assign(value)
        for channels, packed in net.norms[half].items():
            moving, average = net.statistics[half][channels]
            shape = (moving.shape[0], channels.most)
            kinds = ("moving_mean", "moving_variance")
            table = [[first(named[f"{n}/{kind}"], shape) for n in packed] for kind in kinds]
            for variable in (moving, average):
                variable.assign(np.transpose(table, (2, 0, 1, 3)))


@pytest.mark.parametrize(
    "name",
    # One network in every run: the others' reference takes three times as long to trace.
    [
        pytest.param(name, marks=[] if name == "BareMobileNet" else [pytest.mark.long])
        for name in NETWORKS
    ],
)
def test_a_step_of_the_reference_is_a_step_of_the_package(name):
    spec, widths = NETWORKS[name]
    trainer, reference = make_trainer(spec, widths), make_reference(name, spec, widths)
    copy_weights(trainer, reference)
    images, labels = make_images()
    logs = trainer.train_on_batch(images, labels, return_dict=True)
    losses = reference.train_step(images, labels).numpy()
    np.testing.assert_allclose(logs["slimmest_loss"], losses[0], rtol=1e-4)
    np.testing.assert_allclose(logs["random_loss"], losses[1:3].mean(), rtol=1e-4)
    np.testing.assert_allclose(logs["widest_loss"], losses[3], rtol=1e-4)

    moved = {variable.path: variable for variable in trainer.model.variables}
    averages = {v.path: a for v, a in zip(trainer._average.variables, trainer.teacher_variables)}
    compared = set()
    for half in (0, 1):
        for attribute, package in (("variable", moved), ("average", averages)):
            for path, value in views(reference, half, attribute).items():
                expected = first(package[path], value.shape)
                scale = np.abs(expected).max() + 1e-3
                np.testing.assert_allclose(value, expected, atol=1e-4 * scale, err_msg=path)
                compared.add(path)
        for channels, packed in reference.net.norms[half].items():
            for package, table in zip((moved, averages), reference.net.statistics[half][channels]):
                shape = (table.shape[0], channels.most)
                for index, path in enumerate(packed):
                    for kind, name in enumerate(("moving_mean", "moving_variance")):
                        expected = first(package[f"{path}/{name}"], shape)
                        actual = table.numpy()[:, kind, index]
                        np.testing.assert_allclose(actual, expected, atol=1e-4, err_msg=path)
    assert compared == {variable.path for variable in trainer.optimized_variables}
