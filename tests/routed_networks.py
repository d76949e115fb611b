"""A small network of one gate whose images choose different widths."""

import dataclasses

import keras
import numpy as np

from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, MobileNetStage
from keras_dsnet.models.executors import SlicedExecutor
from keras_dsnet.models.subnetwork import as_numpy

SIZE = 16
SPEC = MobileNetSpec(
    stem=(4, 6),
    stages=(
        MobileNetStage(1, 2, (8, 12)),
        MobileNetStage(2, 2, (8, 16, 24, 32), gated=True),
        MobileNetStage(1, 1, (16, 24, 32, 48)),
    ),
    attention_ratio=0.5,
)
# One block before the gate and one after it, for tests that more blocks would only slow down.
SHORT_SPEC = dataclasses.replace(
    SPEC, stages=(SPEC.stages[0], dataclasses.replace(SPEC.stages[1], blocks=1))
)


def small_network(classes=5, dtype=None, input_shape=(SIZE, SIZE, 3), seed=0, **options):
    """Returns a network with random variables, whose statistics differ between widths.

    Args:
        classes: int.
        dtype: dtype policy.
        input_shape: of the network.
        seed: int.
        **options: `spec`, or arguments of `DynamicSlimmableNetwork`.
    """
    spec = options.pop("spec", SPEC)
    keras.utils.set_random_seed(seed)
    network = DynamicSlimmableNetwork(spec, input_shape, classes=classes, dtype=dtype, **options)
    generator = np.random.default_rng(seed)
    for variable in network.variables:
        if "variance" in variable.name:
            variable.assign(generator.uniform(0.5, 2.0, variable.shape))
        else:
            variable.assign_add(generator.normal(scale=0.2, size=variable.shape))
    spread_choices(network)
    network.gates_trained = True
    return network


def spread_choices(network):
    """Gives the slimming head weights with which `random_images` choose about equally often."""
    (gate,) = network.slimming_gates
    images = keras.ops.cast(random_images(64), network.compute_dtype)
    # All steps of the front except the gate.
    features = SlicedExecutor(network.resolve_path(0)).run(network.sections[0][:-1], images)
    pooled = as_numpy(features).mean((1, 2))
    encoder = (gate.w1, gate.b1) if gate.share_encoder else (gate.w1_slimming, gate.b1_slimming)
    weights, bias = map(as_numpy, encoder)
    hidden = np.maximum(pooled @ weights[: pooled.shape[1]] + bias, 0)
    # The two directions in which images differ most and which are zero on average; each width
    # has a sector of their plane.
    mean = hidden.mean(0) / np.linalg.norm(hidden.mean(0))
    _, values, axes = np.linalg.svd(hidden - np.outer(hidden @ mean, mean), full_matrices=False)
    angles = 2 * np.pi * np.arange(gate.w2.shape[1]) / gate.w2.shape[1]
    sectors = np.stack([np.cos(angles), np.sin(angles)]) / values[:2, None]
    gate.w2.assign(2 * len(images) ** 0.5 * axes[:2].T @ sectors)


def odd_gammas(network):
    """Sets gamma to zero in a third of all channels, and below zero in another third."""
    for variable in network.variables:
        if variable.name == "gamma":
            values = as_numpy(variable)
            values[::3] = 0
            values[1::3] *= -1
            variable.assign(values)
    spread_choices(network)
    return network


def random_images(count, seed=1, size=SIZE):
    """Returns preprocessed images `[count, size, size, 3]`, each of another strength."""
    generator = np.random.default_rng(seed)
    strength = generator.uniform(0.2, 3.0, (count, 1, 1, 1))
    shift = generator.normal(size=(count, 1, 1, 3))
    noise = generator.normal(size=(count, size, size, 3))
    return (strength * noise + shift).astype("float32")
