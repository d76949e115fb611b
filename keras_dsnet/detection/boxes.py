"""Bounding boxes: formats, overlaps, anchors, suppression, losses, by KerasCV.

Only this module of `keras_dsnet.detection` uses KerasCV, and it imports KerasCV on first use.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

# Every box inside this package is (ymin, xmin, ymax, xmax), relative to the image.
BOX_FORMAT = "rel_yxyx"
BOX_FORMATS = (
    *("yxyx", "rel_yxyx", "xyxy", "rel_xyxy", "xywh", "rel_xywh"),
    *("center_xywh", "center_yxhw"),
)
PADDING = -1
# The second anchor of ratio 1 has the geometric mean of the sizes of two levels.
_SQUARE = 1.0


def convert_boxes(
    boxes: Any, source: str, target: str, image_shape: Sequence[int] | None = None
) -> tf.Tensor:
    """Converts boxes from one format to another. Padding stays padding.

    Args:
        boxes: Float tensor `[..., 4]`, in pixels, or as fractions of the image in formats that
            begin with `"rel_"`. Rows of -1 are padding.
        source: String, the format of `boxes`, such as `"xyxy"`, `"rel_yxyx"` or `"center_xywh"`.
        target: String, the format to convert to.
        image_shape: `(height, width, channels)` in pixels, needed between pixels and fractions.

    Returns:
        float32 tensor of the same shape.

    Raises:
        ValueError: A format is unknown, or `image_shape` is missing.
    """
    for name in (source, target):
        check_box_format(name)
    if source.startswith("rel_") != target.startswith("rel_") and image_shape is None:
        raise ValueError(
            f"`image_shape` must be given between pixels and fractions of the image. Received: "
            f"image_shape=None with source={source!r} and target={target!r}"
        )
    boxes = tf.cast(tf.convert_to_tensor(boxes), tf.float32)
    if source == target:
        return boxes
    import keras_cv

    image_shape = None if image_shape is None else tuple(image_shape)
    converted = keras_cv.bounding_box.convert_format(
        tf.reshape(boxes, [-1, 4]), source=source, target=target, image_shape=image_shape
    )
    is_padding = tf.reduce_all(tf.equal(boxes, PADDING), axis=-1, keepdims=True)
    converted = tf.cast(tf.reshape(converted, tf.shape(boxes)), tf.float32)
    return tf.ensure_shape(tf.where(is_padding, boxes, converted), boxes.shape)


def check_box_format(bounding_box_format: str) -> str:
    """Checks the name of a format of boxes and returns it.

    Raises:
        ValueError: There is no such format.
    """
    if bounding_box_format not in BOX_FORMATS:
        raise ValueError(
            f"`bounding_box_format` must be one of {', '.join(map(repr, BOX_FORMATS))}. "
            f"Received: {bounding_box_format!r}"
        )
    return bounding_box_format


def box_iou(boxes: Any, others: Any, bounding_box_format: str = BOX_FORMAT) -> tf.Tensor:
    """Returns the overlap (intersection over union) of all pairs of boxes.

    Args:
        boxes: Float tensor `[n, 4]` or `[batch, n, 4]`.
        others: Float tensor `[m, 4]` or `[batch, m, 4]`. A pair with padding has an overlap of -1.
        bounding_box_format: String, the format of both. Defaults to `"rel_yxyx"`.

    Returns:
        float32 tensor `[n, m]` or `[batch, n, m]`.
    """
    import keras_cv

    check_box_format(bounding_box_format)
    # Every format of one kind gives the same overlaps, and "yxyx" needs no shape of the image.
    target = "rel_yxyx" if bounding_box_format.startswith("rel_") else "yxyx"
    boxes = convert_boxes(boxes, bounding_box_format, target)
    others = convert_boxes(others, bounding_box_format, target)
    return keras_cv.bounding_box.compute_iou(boxes, others, "yxyx", use_masking=True)


def ssd_anchors(
    image_size: tuple[int, int],
    positions: Sequence[tuple[int, int]],
    strides: Sequence[tuple[float, float]],
    sizes: Sequence[float],
    aspect_ratios: Sequence[Sequence[float]],
) -> np.ndarray:
    """Returns the anchors of SSD (Liu et al., 2016, section 2.2), level by level.

    A level has, at each position, an anchor of ratio 1 and size `s_k`, one of ratio 1 and size
    `sqrt(s_k * s_(k+1))`, and two for each of its aspect ratios `a`: `a` and `1 / a`. Ratios (2,)
    make 4 anchors, (2, 3) make 6.

    Args:
        image_size: `(height, width)` in pixels.
        positions: Sequence of `(rows, columns)`, the number of positions of each level.
        strides: Sequence of `(vertical, horizontal)`, pixels between the positions of each level.
            The first position is half a stride inside the image.
        sizes: Sequence of floats in pixels, one more than levels.
        aspect_ratios: Sequence of the aspect ratios (width / height) of each level.

    Returns:
        float32 array `[anchors, 4]` in the format `"rel_yxyx"`, sorted by level, row, column and
        shape. Anchors can reach beyond the image.

    Raises:
        ValueError: The numbers of positions, strides, sizes and aspect ratios do not fit.
    """
    import keras_cv

    counts = (len(positions), len(strides), len(sizes) - 1, len(aspect_ratios))
    if len(set(counts)) > 1:
        raise ValueError(
            f"`ssd_anchors` needs positions, strides and one tuple of ratios for each level, and "
            f"one more size. Received: {len(positions)} positions, {len(strides)} strides, "
            f"{len(aspect_ratios)} tuples of ratios, {len(sizes)} sizes"
        )
    levels = []
    for (rows, columns), (down, right), size, next_size, ratios in zip(
        positions, strides, sizes[:-1], sizes[1:], aspect_ratios, strict=True
    ):
        # KerasCV has one stride for both axes. With the strides as the units of the axes it is 1.
        shape, unit, skew = (rows, columns, 3), (down * right) ** 0.5, down / right
        fractions = np.array([down / image_size[0], right / image_size[1]] * 2)
        pairs = [value for ratio in ratios for value in (float(ratio), 1 / ratio)]
        shapes = [(size, [_SQUARE]), ((size * next_size) ** 0.5, [_SQUARE]), (size, pairs)]
        parts = []
        for side, values in shapes:
            if values:
                skewed = [value * skew for value in values]
                # Half precision of networks would round the anchors.
                generator = keras_cv.layers.AnchorGenerator(
                    "yxyx", [side / unit], [1.0], skewed, [1], dtype="float32"
                )
                (anchors,) = generator(image_shape=shape).values()
                parts.append(np.reshape(anchors, (-1, len(values), 4)) * fractions)
        levels.append(np.concatenate(parts, axis=1).reshape(-1, 4))
    return np.concatenate(levels).astype(np.float32)


def suppress(
    boxes: tf.Tensor,
    scores: tf.Tensor,
    iou_threshold: float = 0.45,
    score_threshold: float = 0.01,
    max_detections: int = 200,
) -> dict[str, tf.Tensor]:
    """Keeps the best boxes of each class (non-maximum suppression, class by class).

    Args:
        boxes: float32 tensor `[batch, anchors, 4]`, in the format `"rel_yxyx"`.
        scores: float32 tensor `[batch, anchors, classes]`, probabilities without the background.
        iou_threshold: Float, the overlap from which the lower of two boxes is dropped. Defaults to
            0.45.
        score_threshold: Float, the lowest score that is kept. Defaults to 0.01.
        max_detections: Int, the most boxes of an image. Defaults to 200.

    Returns:
        Dict of `"boxes"`, float32 `[batch, max_detections, 4]`; `"scores"`, float32, and
        `"classes"`, int32, `[batch, max_detections]`, sorted by score and padded with -1; and
        `"num_detections"`, int32 `[batch]`.
    """
    import keras_cv

    layer = keras_cv.layers.MultiClassNonMaxSuppression(
        BOX_FORMAT,
        from_logits=False,
        iou_threshold=iou_threshold,
        confidence_threshold=score_threshold,
        max_detections=max_detections,
        max_detections_per_class=max_detections,
        # Half precision moves the edges of boxes by up to a pixel in a thousand.
        dtype="float32",
    )
    found = layer(boxes, scores)
    return {
        "boxes": tf.cast(found["boxes"], tf.float32),
        "scores": tf.cast(found["confidence"], tf.float32),
        "classes": tf.cast(found["classes"], tf.int32),
        "num_detections": tf.cast(found["num_detections"], tf.int32),
    }


def smooth_l1_loss() -> keras.losses.Loss:
    """Returns the loss of box offsets `[batch, anchors, 4]`, one value per anchor."""
    import keras_cv

    return keras_cv.losses.SmoothL1Loss(l1_cutoff=1.0, reduction="none")
