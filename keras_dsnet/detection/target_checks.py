"""Checks of the boxes that a user trains or evaluates a detector with."""

from typing import Any

import numpy as np
import tensorflow as tf

from keras_dsnet.detection.boxes import BOX_FORMAT, PADDING, convert_boxes
from keras_dsnet.utils.batch_checks import as_tensor, checked, describe_value

_RIGHT = (
    "Targets must be a dict of 'boxes' [batch, n, 4] and 'classes' [batch, n], both padded with -1."
)
_NO_BOX = (
    "Boxes must have an area and lie in or near the image, in the `bounding_box_format` of the "
    "detector. Received: as fractions of the image, (ymin, xmin, ymax, xmax) = ("
)


def check_target(
    target: Any, images: tf.Tensor, classes: int, bounding_box_format: str, name: str
) -> tuple[tf.Tensor, tf.Tensor]:
    """Checks the boxes of a batch and converts them to fractions of the image.

    Args:
        target: Dict of `"boxes"`, `[batch, n, 4]`, and `"classes"`, `[batch, n]`, of any type of
            numbers. A class of -1 is padding, whatever its box.
        images: Tensor `[batch, height, width, channels]`, or its `tf.TensorSpec`.
        classes: Int, number of classes.
        bounding_box_format: String, the format of the boxes.
        name: String, a description of the batch for messages.

    Returns:
        `(boxes, classes)`: float32 `[batch, n, 4]` in the format `"rel_yxyx"`, and int32
        `[batch, n]`. In a traced function they depend on the assertions.

    Raises:
        ValueError: If a part is missing or has another shape, a number is not finite, a class is
            not one of the network, or a box has no area.
    """
    if not isinstance(target, dict) or not {"boxes", "classes"} <= set(target):
        raise ValueError(f"{_RIGHT} Received: {describe_value(target)} in {name}")
    boxes, labels = (as_tensor(target[key], name, key) for key in ("boxes", "classes"))
    count = images.shape[0]
    fits = boxes.shape.is_compatible_with([count, None, 4])
    fits = fits and labels.shape.is_compatible_with([count, None])
    if not fits or not boxes.shape[:2].is_compatible_with(labels.shape):
        raise ValueError(
            f"{_RIGHT} Received: boxes of shape {boxes.shape} and classes of shape {labels.shape} "
            f"for images of shape {images.shape} in {name}"
        )
    for key, part in (("boxes", boxes), ("classes", labels)):
        if not (part.dtype.is_integer or part.dtype.is_floating):
            raise ValueError(f"{_RIGHT} Received: {key} of dtype {part.dtype.name} in {name}")
    labels = _checked_classes(tf.cast(labels, tf.float32), classes, name)
    is_object = labels >= 0
    boxes = tf.where(is_object[..., tf.newaxis], tf.cast(boxes, tf.float32), float(PADDING))
    boxes = convert_boxes(boxes, bounding_box_format, BOX_FORMAT, images.shape[1:])
    return _checked_boxes(boxes, is_object, name), labels


def needed_classes(target: dict, classes: tf.Tensor, name: str) -> tf.Tensor:
    """Returns the classes of the objects that have to be found, with padding for the others.

    Args:
        target: Dict that may have `"difficult"`, bool `[batch, n]`: what evaluation ignores.
        classes: int32 tensor `[batch, n]`, padded with -1.
        name: String, a description of the batch for messages.

    Returns:
        int32 tensor `[batch, n]`.

    Raises:
        ValueError: If `"difficult"` has another shape than the classes.
    """
    if "difficult" not in target:
        return classes
    difficult = as_tensor(target["difficult"], name, "difficult")
    if not difficult.shape.is_compatible_with(classes.shape):
        raise ValueError(
            "'difficult' of the targets must have the shape of the classes, "
            f"{classes.shape}. Received: {difficult.shape} in {name}"
        )
    return tf.where(tf.cast(difficult, tf.bool), PADDING, classes)


def check_near(boxes: Any, classes: Any, bounding_box_format: str) -> None:
    """Raises an error where boxes of an evaluation lie far from their image, as pixels would.

    Args:
        boxes: `[batch, n, 4]` in the format `"rel_yxyx"`.
        classes: `[batch, n]`, padded with -1.
        bounding_box_format: String, the format that the boxes were converted from.

    Raises:
        ValueError: If a box does not lie in or near its image.
    """
    boxes = np.asarray(boxes)[np.asarray(classes) >= 0]
    # NaN compares as False.
    right = ((boxes > -1.0) & (boxes < 2.0)).all(axis=-1)
    if not right.all():
        shown = ", ".join(f"{value:g}" for value in boxes[~right][0])
        raise ValueError(
            "Boxes must lie in or near the image, in the format `bounding_box_format`. Received: "
            f"bounding_box_format={bounding_box_format!r}, and as fractions of the image, "
            f"(ymin, xmin, ymax, xmax) = ({shown})"
        )


def _checked_classes(labels, classes, name):
    right = (labels >= PADDING) & (labels < classes) & (labels == tf.floor(labels))

    def line():
        wrong = tf.strings.as_string(tf.boolean_mask(labels, ~right)[0], shortest=True)
        parts = [f"Classes must be from 0 to {classes - 1}, or -1 for padding. Received: ", wrong]
        return tf.strings.join([*parts, f" in {name}"])

    return tf.cast(checked(labels, tf.reduce_all(right), line), tf.int32)


def _checked_boxes(boxes, is_object, name):
    # NaN compares as False.
    has_area = tf.reduce_all(boxes[..., 2:] > boxes[..., :2], axis=-1)
    near = tf.reduce_all((boxes > -1.0) & (boxes < 2.0), axis=-1)
    right = (has_area & near) | ~is_object

    def line():
        wrong = tf.strings.as_string(tf.boolean_mask(boxes, ~right)[0], shortest=True)
        shown = tf.strings.reduce_join(wrong, separator=", ")
        return tf.strings.join([_NO_BOX, shown, f") in {name}"])

    return checked(boxes, tf.reduce_all(right), line)
