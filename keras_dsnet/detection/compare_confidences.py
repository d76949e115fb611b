"""A comparison of what routing by confidence can read from the scores of a detector."""

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_dsnet.detection.boxes import BOX_FORMAT, convert_boxes
from keras_dsnet.detection.confidence import CONFIDENCES
from keras_dsnet.detection.detection_gate_trainer import found_every_box
from keras_dsnet.detection.target_checks import check_near, needed_classes
from keras_dsnet.models.path import PathLike
from keras_dsnet.utils.batches import check_num_batches, refuse_endless


def compare_confidences(
    detector: Any,
    dataset: Iterable,
    path: PathLike = "slimmest",
    *,
    score_threshold: float = 0.3,
    num_batches: int | None = None,
    bounding_box_format: str = BOX_FORMAT,
) -> list[dict[str, Any]]:
    """Measures how well each confidence tells the images of which a path misses a box.

    Use validation images: the choice of a confidence is part of the training.

    Args:
        detector: `FSSD`, trained.
        dataset: Batches of `(images, target)`, as of `detection_evaluation_pipeline`. Boxes that
            are `"difficult"`, crowds among them, need not be found, as in `DetectionMetric`.
        path: The path whose scores are read, usually the first of `confidence_steps`.
        score_threshold: Float, the lowest probability of a box that counts as found. Defaults to
            0.3.
        num_batches: Int, the maximum number of batches to read. Defaults to the whole data set.
        bounding_box_format: String, the format of the boxes of `dataset`. Defaults to
            `"rel_yxyx"`.

    Returns:
        List of dicts, the best confidence first: `"confidence"`, a value of `FSSD.confidence`;
        `"auc"`, the probability that an image with a missed box has less confidence than one
        without, where equal ones count half (0.5 is chance, None if there are not both kinds of
        images); `"missed"`, the share of the images with a missed box; and `"images"`, their
        number.

    Raises:
        ValueError: If the data set is empty or never ends.
    """
    check_num_batches(num_batches)
    refuse_endless(dataset, num_batches)
    found, values = [], {name: [] for name in CONFIDENCES}
    for images, target in itertools.islice(dataset, num_batches):
        outputs = detector(images, path=path)
        boxes = convert_boxes(target["boxes"], bounding_box_format, BOX_FORMAT, images.shape[1:])
        classes = tf.cast(target["classes"], tf.int32)
        check_near(boxes, classes, bounding_box_format)
        classes = needed_classes(target, classes, "`dataset`")
        decoded, probabilities = detector.decode(outputs)
        found.append(found_every_box(decoded, probabilities, boxes, classes, score_threshold))
        for name, confidence in CONFIDENCES.items():
            values[name].append(confidence(outputs["scores"]))
    if not found:
        raise ValueError("`dataset` must have one image or more. Received: none")
    every = np.concatenate(found)
    rows = [
        {
            "confidence": name,
            "auc": _area(np.concatenate(parts), every),
            "missed": float(np.mean(~every)),
            "images": len(every),
        }
        for name, parts in values.items()
    ]
    return sorted(rows, key=lambda row: -(row["auc"] or 0.0))


def _area(confidence, found):
    """Returns the area under the curve of true against false alarms."""
    missed = np.sort(confidence[~found])
    if not missed.size or not found.any():
        return None
    below, up_to = (np.searchsorted(missed, confidence[found], side) for side in ("left", "right"))
    return float(np.mean(below + up_to) / (2 * missed.size))
