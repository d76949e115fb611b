"""Detections from the results of a detector's TFLite file.

This file needs numpy only. Copy it beside `dynamic_interpreter.py` to a device that has no
TensorFlow and runs detectors.
"""

import numbers

import numpy as np

# Scores that say neither yes nor no.
_LOW, _HIGH = 0.3, 0.7


def select_boxes(
    boxes: np.ndarray,
    scores: np.ndarray,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.45,
    max_detections: int = 200,
) -> dict[str, np.ndarray]:
    """Keeps the best boxes of each class (non-maximum suppression, class by class).

    Args:
        boxes: float32 `[anchors, 4]`, (ymin, xmin, ymax, xmax).
        scores: float32 `[anchors, classes]`, probabilities without the background.
        score_threshold: Float in [0, 1]. Scores above it are kept. Defaults to 0.05.
        iou_threshold: Float in [0, 1]. Of two boxes of a class that overlap more, the one with the
            lower score is dropped. Defaults to 0.45.
        max_detections: Integer, the largest number of boxes. Defaults to 200.

    Returns:
        Dict of `"boxes"`, float32 `[n, 4]`, clipped to [0, 1]; `"scores"`, float32 `[n]`, in
        descending order; and `"classes"`, int32 `[n]`.

    Raises:
        ValueError: If a threshold is not in [0, 1], or `max_detections` is not a positive int.
    """
    check_limits(score_threshold, iou_threshold, max_detections)
    corners = np.concatenate(
        [np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1
    )
    anchors, classes = [], []
    for label in np.flatnonzero((scores > score_threshold).any(0)):
        candidates = np.flatnonzero(scores[:, label] > score_threshold)
        # Of equal scores the first anchor comes first.
        order = candidates[np.argsort(-scores[candidates, label], kind="stable")]
        kept = _suppress(corners[order], iou_threshold, max_detections)
        anchors.append(order[kept])
        classes.append(np.full(len(kept), label, "int32"))
    chosen = np.concatenate([*anchors, np.zeros(0, "int64")]).astype("int64")
    labels = np.concatenate([*classes, np.zeros(0, "int32")]).astype("int32")
    values = scores[chosen, labels]
    best = np.argsort(-values, kind="stable")[:max_detections]
    return {
        "boxes": np.clip(boxes[chosen[best]], 0.0, 1.0).astype("float32"),
        "scores": values[best].astype("float32"),
        "classes": labels[best],
    }


def check_limits(
    score_threshold: float, iou_threshold: float, max_detections: int
) -> tuple[float, float, int]:
    """Returns the limits of `select_boxes`.

    Args:
        score_threshold: As for `select_boxes`.
        iou_threshold: As for `select_boxes`.
        max_detections: As for `select_boxes`.

    Raises:
        ValueError: If one of them does not fit.
    """
    for name, value in (("score_threshold", score_threshold), ("iou_threshold", iou_threshold)):
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not (is_number and 0 <= value <= 1):
            raise ValueError(f"`{name}` must be a number from 0 to 1. Received: {name}={value!r}")
    is_int = isinstance(max_detections, numbers.Integral) and not isinstance(max_detections, bool)
    if not is_int or max_detections < 1:
        raise ValueError(
            "`max_detections` must be an int of at least 1. "
            f"Received: max_detections={max_detections!r}"
        )
    return score_threshold, iou_threshold, max_detections


def _suppress(corners, iou_threshold, most):
    """Returns the positions of the boxes that are kept, which are sorted by score."""
    areas = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    left = np.arange(len(corners))
    kept: list[int] = []
    while left.size and len(kept) < most:
        first, left = left[0], left[1:]
        kept.append(int(first))
        begin = np.maximum(corners[first, :2], corners[left, :2])
        end = np.minimum(corners[first, 2:], corners[left, 2:])
        overlap = np.prod(np.maximum(end - begin, 0), axis=1)
        union = areas[first] + areas[left] - overlap
        # A box without area overlaps no other.
        has_area = (areas[left] > 0) & (areas[first] > 0)
        iou = np.where(has_area, overlap / np.where(has_area, union, 1), 0)
        left = left[iou <= np.float32(iou_threshold)]
    return kept


def confidence_of(scores: np.ndarray, kind: str) -> np.float32:
    """Returns how sure a detector is that it has found all objects of an image.

    Args:
        scores: float32 `[1, anchors, classes]`, probabilities without the background.
        kind: The confidence of the file's metadata; see `keras_dsnet.detection.FSSD`.

    Returns:
        float32 from 0 to 1. It is 0 where a probability is not a number.
    """
    if kind == "largest_score":
        confidence = scores.max()
    elif kind == "clear_scores":
        confidence = 1 / (1 + np.count_nonzero((scores > _LOW) & (scores < _HIGH)))
        confidence = 0.0 if np.isnan(scores).any() else confidence
    else:
        background = np.maximum(1 - scores.sum(-1, keepdims=True), 0)
        every = np.concatenate([background, scores], -1)
        entropy = -(every * np.log(np.maximum(every, np.finfo("float32").tiny))).sum(-1)
        confidence = 1 - entropy.mean() / np.log(every.shape[-1])
    return np.float32(confidence if confidence >= 0 else 0)
