"""Small networks, trainers and batches for tests of both training stages."""

import keras
import numpy as np
import tensorflow as tf

from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, MobileNetStage
from keras_dsnet.training import L2SGD, SupernetTrainer

SPEC = MobileNetSpec(
    stem=(4, 6),
    stages=(
        MobileNetStage(1, 2, (6, 8)),
        MobileNetStage(1, 2, (8, 12, 16), gated=True),
        MobileNetStage(1, 1, (12, 16, 24)),
    ),
)


def make_network(seed=0, **options):
    """Returns a network for `SupernetTrainer`.

    Args:
        seed: int.
        **options: of `DynamicSlimmableNetwork`.
    """
    keras.utils.set_random_seed(seed)
    network = DynamicSlimmableNetwork(
        SPEC, input_shape=(16, 16, 3), classes=5, classifier_activation=None, **options
    )
    generator = np.random.default_rng(seed)
    for variable in network.variables:
        noise = generator.normal(scale=0.1, size=variable.shape)
        if "variance" in variable.name:
            noise = np.abs(noise)
        variable.assign_add(noise.astype("float32"))
    return network


def make_trainer(network=None, optimizer=None, eagerly=True, **options):
    """Returns a compiled `SupernetTrainer`.

    It runs eagerly by default, because a trace takes longer than a few steps.
    """
    trainer = SupernetTrainer(network or make_network(), **options)
    trainer.compile(optimizer or L2SGD(0.1, weight_decay=0.0), run_eagerly=eagerly)
    return trainer


def make_batch(count=12):
    """Returns random images and labels for `make_network`."""
    generator = np.random.default_rng(1)
    images = generator.normal(size=(count, 16, 16, 3)).astype("float32")
    return tf.constant(images), tf.constant(generator.integers(0, 5, count), tf.int32)


def values_of(variables):
    """Returns copies of the values of variables."""
    return [variable.numpy().copy() for variable in variables]


def gate_network(**options):
    """Returns a network for `GateTrainer`, with another width than that of stage I.

    Args:
        **options: of `MobileNetSpec`.
    """
    keras.utils.set_random_seed(0)
    spec = MobileNetSpec(
        stem=(4, 6),
        stages=(
            MobileNetStage(1, 2, (6, 8)),
            MobileNetStage(1, 2, (8, 12, 16, 24), gated=True),
            MobileNetStage(1, 1, (12, 16, 24, 32)),
        ),
        **options,
    )
    network = DynamicSlimmableNetwork(
        spec, input_shape=(16, 16, 3), classes=4, classifier_activation=None
    )
    generator = np.random.default_rng(0)
    for variable in network.weights:
        noise = generator.normal(scale=0.3, size=variable.shape)
        if "variance" in variable.name:
            noise = np.abs(noise)
        variable.assign_add(noise.astype("float32"))
    return network


def gate_batch(count=40):
    """Returns random images and labels for `gate_network`."""
    generator = np.random.default_rng(1)
    images = generator.normal(size=(count, 16, 16, 3)).astype("float32")
    return tf.constant(images), tf.constant(generator.integers(0, 4, count), tf.int32)
