"""Image files with bounding boxes, as an image source."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_dsnet.data.file_source import FileSource


@dataclasses.dataclass(frozen=True)
class Objects:
    """The objects in an image.

    Attributes:
        boxes: float32 array `[n, 4]`: ymin, xmin, ymax, xmax, in [0, 1].
        classes: int32 array `[n]`.
        difficult: Boolean array `[n]`, objects that evaluation ignores.
        crowd: Boolean array `[n]`, regions of many objects, which training ignores too.
        areas: float32 array `[n]`, fractions of the image's area.
    """

    boxes: np.ndarray
    classes: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray


class BoxFileSource(FileSource):
    """Image files with the boxes of their objects, read by index.

    Its examples have a dict of the arrays of `Objects` in the place of a label. A file that becomes
    unreadable is replaced in training by a gray image without boxes.

    Args:
        name: Str, name of the data set, for messages.
        paths: Sequence of file names.
        objects: Sequence of `Objects`, one for each file.
        class_names: Sequence of str, one name per class in index order.
        on_bad_image: `"skip"`, or `"raise"` to raise an error at an unreadable file. Defaults to
            `"skip"`.
        orientations: Sequence of ints, the EXIF orientation (1 to 8) of each image. Defaults to
            None if all images are stored upright.
        split: Str, the split of the data set. Defaults to None.
        notes: Sequence of str, lines that a user should read before training starts. Defaults to
            none.

    Attributes:
        class_counts: Tuple of ints, number of boxes of each class in index order.
        num_boxes: Int, number of boxes.
        max_boxes: Int, the most boxes of an image.
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[str],
        objects: Sequence[Objects],
        class_names: Sequence[str],
        on_bad_image: str = "skip",
        orientations: Sequence[int] | None = None,
        split: str | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        # An image has no class of its own.
        labels = [0] * len(paths)
        super().__init__(name, paths, labels, class_names, on_bad_image, orientations, split, notes)
        self.objects = list(objects)
        counts = [len(image.boxes) for image in self.objects]
        self.num_boxes = sum(counts)
        self.max_boxes = max(counts)
        classes = np.concatenate([image.classes for image in self.objects])
        self.class_counts = tuple(np.bincount(classes, minlength=self.num_classes).tolist())

    @property
    def description(self) -> str:
        empty = sum(not len(image.boxes) for image in self.objects)
        without = f", {empty} images without a box" if empty else ""
        return f"{super().description}; {self.num_boxes} boxes{without}"

    def _example_function(self):
        stored_at = super()._example_function()
        columns = {
            field.name: np.concatenate([getattr(image, field.name) for image in self.objects])
            for field in dataclasses.fields(Objects)
        }
        ends = np.cumsum([len(image.boxes) for image in self.objects])
        ends = tf.constant(np.concatenate([[0], ends]), tf.int64)
        columns = {name: tf.constant(column) for name, column in columns.items()}

        def example(index):
            stored, _ = stored_at(index)
            start, stop = ends[index], ends[index + 1]
            return stored, {name: column[start:stop] for name, column in columns.items()}

        return example


def detection_target(objects, image_size):
    """Returns what the pipelines hand on of the objects of an image.

    Args:
        objects: Dict of tensors, as the attributes of `Objects`.
        image_size: Two ints or an int32 tensor `[2]`, height and width of the image in pixels.

    Returns:
        Dict of tensors: "boxes", "classes" (float32), "difficult" (with crowds), "areas" and
        "image_size".
    """
    return {
        "boxes": objects["boxes"],
        "classes": tf.cast(objects["classes"], tf.float32),
        "difficult": objects["difficult"] | objects["crowd"],
        "areas": objects["areas"],
        "image_size": tf.convert_to_tensor(image_size, tf.int32),
    }
