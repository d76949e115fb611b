"""A detector of one level, and scenes of squares in two colours, for tests of training."""

import keras
import numpy as np
import tensorflow as tf

from keras_dsnet.detection.boxes import ssd_anchors, suppress
from keras_dsnet.detection.multibox import decode_boxes
from keras_dsnet.layers import SlicedConv2D
from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, MobileNetStage

SIZE = 32
CLASSES = 2
_ANCHORS = 4


class TinyDetector(keras.Model):
    bounding_box_format = "rel_yxyx"
    class_names = ("red", "green")

    def __init__(self, backbone, **kwargs):
        super().__init__(**kwargs)
        self.backbone = backbone
        self.classes = CLASSES
        self.anchors = ssd_anchors((SIZE, SIZE), [8], [10, 16], [(2,)])
        channels = backbone.output_shape[-1]
        self.boxes = SlicedConv2D((4 * _ANCHORS,), 3, 1, input_channels=channels, name="boxes")
        self.scores = SlicedConv2D(
            ((CLASSES + 1) * _ANCHORS,), 3, 1, input_channels=channels, name="scores"
        )
        for layer in (self.boxes, self.scores):
            layer.build((None, None, None, channels))
        self.built = True

    def __getattr__(self, name):
        if name in ("num_widths", "num_gates", "resolve_path", "input_shape", "gates_trained"):
            return getattr(self.backbone, name)
        return super().__getattr__(name)

    def call(self, images, path=None, training=False):
        return self._head(self.backbone(images, path=path, training=training))

    def run_sections(self, x, path, first=0, last=None, **kwargs):
        x = self.backbone.run_sections(x, path, first, last, **kwargs)
        return x if last == 0 else self._head(x)

    def _head(self, x):
        count = tf.shape(x)[0]
        return {
            "boxes": tf.reshape(self.boxes(x, width=0), [count, -1, 4]),
            "scores": tf.reshape(self.scores(x, width=0), [count, -1, CLASSES + 1]),
        }

    def detect(self, images, path=None, score_threshold=0.05, max_detections=200):
        found = self(images, path=path)
        found = suppress(
            decode_boxes(found["boxes"], self.anchors),
            tf.nn.softmax(found["scores"])[..., 1:],
            score_threshold=score_threshold,
            max_detections=max_detections,
        )
        counts = found.pop("num_detections").numpy()
        return [
            {name: value.numpy()[i, :n] for name, value in found.items()}
            for i, n in enumerate(counts)
        ]

    def madds(self, path):
        return self.backbone.madds(path)


def make_detector(seed=0, synchronized=False):
    keras.utils.set_random_seed(seed)
    stages = (
        MobileNetStage(1, 2, (12, 16)),
        MobileNetStage(1, 2, (12, 16, 24), gated=True),
        MobileNetStage(1, 1, (16, 24, 32)),
    )
    spec = MobileNetSpec(stem=(8, 12), stages=stages, synchronized=synchronized)
    backbone = DynamicSlimmableNetwork(spec, input_shape=(SIZE, SIZE, 3), include_top=False)
    return TinyDetector(backbone)


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
            label = generator.integers(0, CLASSES)
            images[index, top : top + side, left:right] = -1.0
            images[index, top : top + side, left:right, label] = 2.0
            boxes[index, place] = np.array([top, left, top + side, right]) / SIZE
            classes[index, place] = label
    return images, {"boxes": boxes, "classes": classes}
