"""A small FSSD, and scenes of squares in two colours, for tests of training."""

import keras
import numpy as np

from keras_dsnet.detection import FSSD
from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, MobileNetStage

SIZE = 32
CLASSES = ("red", "green")


def make_detector(seed=0, synchronized=False, **options):
    backbone = _network(seed, synchronized, include_top=False)
    options = {"channels": 8, "pyramid": (16, 16), "scales": (0.3, 0.4, 0.6), **options}
    return FSSD(backbone, classes=2, class_names=CLASSES, aspect_ratios=((2,), (2,)), **options)


def make_classifier():
    return _network(0, synchronized=False, classes=4)


def _network(seed, synchronized, **options):
    keras.utils.set_random_seed(seed)
    stages = (
        MobileNetStage(1, 2, (12, 16)),
        MobileNetStage(1, 2, (12, 16, 24), gated=True),
        MobileNetStage(1, 1, (16, 24, 32)),
    )
    spec = MobileNetSpec(stem=(8, 12), stages=stages, synchronized=synchronized)
    return DynamicSlimmableNetwork(spec, input_shape=(SIZE, SIZE, 3), **options)


def scenes(count, seed=0):
    """Returns images with one or two squares each, and their target; the last image has none."""
    generator = np.random.default_rng(seed)
    images = generator.normal(0, 0.1, (count, SIZE, SIZE, 3)).astype("float32")
    boxes = np.full((count, 2, 4), -1, np.float32)
    classes = np.full((count, 2), -1, np.float32)
    for index in range(count - 1):
        for place in range(generator.integers(1, 3)):
            side = generator.integers(8, 14)
            top, left = generator.integers(0, SIZE - side), 16 * place + generator.integers(0, 4)
            right = min(left + side, SIZE)
            label = generator.integers(0, len(CLASSES))
            images[index, top : top + side, left:right] = -1.0
            images[index, top : top + side, left:right, label] = 2.0
            boxes[index, place] = np.array([top, left, top + side, right]) / SIZE
            classes[index, place] = label
    return images, {"boxes": boxes, "classes": classes}
