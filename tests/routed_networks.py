"""A small network of one gate whose images choose different widths."""

import numpy as np

from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, MobileNetStage

SIZE = 16
SPEC = MobileNetSpec(
    stem=(4, 6),
    stages=(
        MobileNetStage(1, 2, (8, 12)),
        MobileNetStage(2, 2, (8, 16, 24, 32), gated=True),
        MobileNetStage(1, 1, (16, 24, 32, 48)),
    ),
)


def small_network(classes=5, dtype=None, input_shape=(SIZE, SIZE, 3), seed=0, **options):
    """Returns a network with random variables, statistics different per width, a gate that counts.

    Args:
        classes: int.
        dtype: dtype policy.
        input_shape: of the network.
        seed: int.
        **options: `spec`, or arguments of `DynamicSlimmableNetwork`.
    """
    spec = options.pop("spec", SPEC)
    network = DynamicSlimmableNetwork(spec, input_shape, classes=classes, dtype=dtype, **options)
    generator = np.random.default_rng(seed)
    for variable in network.variables:
        if "variance" in variable.name:
            variable.assign(generator.uniform(0.5, 2.0, variable.shape))
        elif variable.name == "w2":
            # Scores that differ more between images than between widths.
            values = generator.normal(size=variable.shape)
            variable.assign(values - values.mean(0))
        else:
            variable.assign_add(generator.normal(scale=0.2, size=variable.shape))
    network.gates_trained = True
    return network


def random_images(count, seed=1, size=SIZE):
    """Returns preprocessed images `[count, size, size, 3]`, each of another strength."""
    generator = np.random.default_rng(seed)
    strength = generator.uniform(0.2, 3.0, (count, 1, 1, 1))
    shift = generator.normal(size=(count, 1, 1, 3))
    noise = generator.normal(size=(count, size, size, 3))
    return (strength * noise + shift).astype("float32")
