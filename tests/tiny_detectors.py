"""Tiny detectors, no variable of which has its first value."""

import keras
import numpy as np
from routed_networks import SPEC, random_images, spread_choices
from tiny_families import TINY_EFFICIENTNET, TINY_RESNET

from keras_dsnet.detection import FSSD
from keras_dsnet.models import DynamicSlimmableNetwork
from keras_dsnet.models.subnetwork import as_numpy

# The maps of the pyramid have 6, 3 and 1 positions on a side.
SIZE = 24
SPECS = {"mobilenet": SPEC, "resnet": TINY_RESNET, "efficientnet": TINY_EFFICIENTNET}


def tiny_detector(family="mobilenet", head="full", input_shape=(SIZE, SIZE, 3), **options):
    """Returns a detector of 3 classes whose gates choose different widths.

    Args:
        family: "mobilenet", "resnet" or "efficientnet".
        head: of `FSSD`.
        input_shape: of the backbone.
        **options: `dtype`, `spec` of the backbone, or further arguments of `FSSD`.
    """
    keras.utils.set_random_seed(0)
    backbone = DynamicSlimmableNetwork(
        options.pop("spec", SPECS[family]),
        input_shape,
        include_top=False,
        dtype=options.pop("dtype", None),
    )
    detector = FSSD(
        backbone, **{"classes": 3, "channels": 8, "pyramid": 12, "head": head, **options}
    )
    generator = np.random.default_rng(0)
    for variable in detector.variables:
        scale = 2.0 if variable.name == "w2" else 0.2
        noise = generator.normal(scale=scale, size=variable.shape)
        values = np.abs(noise) if "variance" in variable.name else noise
        variable.assign(as_numpy(variable) + values)
    if backbone.num_gates == 1:
        spread_choices(backbone)
    detector.gates_trained = True
    return detector


def detector_images(count=12, size=SIZE):
    """Returns images that gates tell apart, float32 `[count, size, size, 3]`."""
    return random_images(count, size=size)
