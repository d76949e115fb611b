"""Tiny networks of the families that the authors did not release."""

import dataclasses

import keras
import numpy as np

from keras_dsnet.models import (
    DynamicSlimmableNetwork,
    EfficientNetSpec,
    EfficientNetStage,
    ResNetSpec,
    ResNetStage,
)

TINY_RESNET = ResNetSpec(
    stem=(8,),
    stages=(
        ResNetStage(2, 1, (8, 16, 24)),
        ResNetStage(1, 2, (8, 16, 24)),
        ResNetStage(1, 1, (8, 16, 24)),
    ),
)
TINY_EFFICIENTNET = EfficientNetSpec(
    stem=(4,),
    stages=(
        EfficientNetStage(2, 2, (4,), expansion=1),
        EfficientNetStage(2, 1, (8, 12, 16), kernel_size=5, expansion=2, gated=True),
        EfficientNetStage(1, 2, (8, 16, 24), expansion=2),
    ),
    top=20,
    attention_ratio=2.0,
)


@dataclasses.dataclass(frozen=True)
class GatedStage:
    """A stage of families that a test makes."""

    strides: int
    channels: tuple
    gated: bool = True


def tiny_network(spec, **options):
    """Returns a network for 16x16 images and 5 classes, no variable of which has its first value.

    Fresh statistics are equal at every width, fresh attention is one and fresh residual branches
    are zero: all hide mistakes.
    """
    keras.utils.set_random_seed(0)
    options = {"input_shape": (16, 16, 3), "classes": 5, "classifier_activation": None, **options}
    network = DynamicSlimmableNetwork(spec, **options)
    generator = np.random.default_rng(0)
    for variable in network.variables:
        scale = 2.0 if variable.name == "w2" else 0.2
        noise = generator.normal(scale=scale, size=variable.shape)
        variable.assign_add(np.abs(noise) if "variance" in variable.name else noise)
    network.gates_trained = True
    return network


def tiny_images(count=24):
    """Returns images of many contrasts, which gates tell apart: float32 `[count, 16, 16, 3]`."""
    generator = np.random.default_rng(1)
    contrasts = np.geomspace(0.05, 5.0, count)[:, None, None, None]
    images = generator.normal(generator.normal(size=(count, 1, 1, 3)), 1.0, (count, 16, 16, 3))
    return (images * contrasts).astype("float32")
