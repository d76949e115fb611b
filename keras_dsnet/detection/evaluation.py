"""Evaluation of a detector: average precision against multiply-adds."""

import collections
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_dsnet.detection.average_precision import METRICS, DetectionMetric
from keras_dsnet.detection.boxes import BOX_FORMAT, convert_boxes
from keras_dsnet.utils.batches import check_num_batches

# Of the detections that are counted: a higher threshold would cut the curves of precision short.
_SCORE_THRESHOLD = 0.01
_MAX_DETECTIONS = {"coco": 100}
_DYNAMIC = "dynamic"


def evaluate_detection(
    detector: Any,
    dataset: Iterable,
    paths: Sequence | None = None,
    metric: str = "voc07",
    *,
    class_names: Sequence[str] | None = None,
    num_batches: int | None = None,
    bounding_box_format: str = BOX_FORMAT,
    metrics: dict | None = None,
) -> list[dict[str, Any]]:
    """Measures the average precision of a detector at several widths.

    Args:
        detector: Detector with the methods `detect(images, path=None, score_threshold=...,
            max_detections=...)`, which returns a list with a dict of `"boxes"` (`"rel_yxyx"`),
            `"scores"` and `"classes"` for each image, and optionally its `"path"` and the
            `"madds"` of all that ran, and `madds(path)`.
        dataset: Batches of `(images, target)`, as of `detection_evaluation_pipeline`.
        paths: Sequence of the paths to measure. `"dynamic"` is the routed network. Defaults to
            every width, and the routed network if its gates are trained or it routes by confidence.
        metric: `"voc07"`, `"voc"` or `"coco"`, as in `DetectionMetric`. Defaults to `"voc07"`.
        class_names: Sequence of str, one name per class. Defaults to `detector.class_names`, else
            to the numbers of `detector.classes`.
        num_batches: Int, the maximum number of batches to read. Defaults to the whole data set.
        bounding_box_format: String, the format of the boxes of `dataset`. Defaults to
            `"rel_yxyx"`.
        metrics: Dict that is filled with the `DetectionMetric` of each path, whose `curves` can be
            plotted. Optional.

    Returns:
        List of dicts with `"path"`, `"madds"` and the entries of `DetectionMetric.result`. MAdds of
        the routed network are the mean over the images, with every width that was tried; None if
        the detector returns neither them nor the paths. Its row also has `"shares"`, a list with a
        dict for each gate, from widths to the shares of the images that took them.

    Raises:
        ValueError: There is no such metric, or the data set is empty.
    """
    if metric not in METRICS:
        raise ValueError(
            f"`metric` must be {', '.join(map(repr, METRICS))}. Received: metric={metric!r}"
        )
    check_num_batches(num_batches)
    if paths is None:
        routes = detector.gates_trained or getattr(detector, "routing", None) == "confidence"
        paths = [*range(detector.num_widths), *([_DYNAMIC] if routes else [])]
    if class_names is None:
        class_names = getattr(detector, "class_names", None)
    if class_names is None:
        class_names = [str(index) for index in range(detector.classes)]
    counted = [DetectionMetric(metric, class_names=class_names) for _ in paths]
    routed: collections.Counter = collections.Counter()
    ran: list[float] = []
    count = 0
    for images, target in itertools.islice(dataset, num_batches):
        targets = _targets(target, images.shape, bounding_box_format)
        count += len(targets)
        for index, path in enumerate(paths):
            found = detector.detect(
                images,
                path=None if path == _DYNAMIC else path,
                score_threshold=_SCORE_THRESHOLD,
                max_detections=_MAX_DETECTIONS.get(metric, 200),
            )
            for each, detections in zip(targets, found, strict=True):
                counted[index].update(each, detections)
                if path == _DYNAMIC and "path" in detections:
                    taken = detections["path"]
                    routed[taken] += 1
                    # By confidence an image runs more than the path that it ends at.
                    madds = detections.get("madds")
                    ran.append(detector.madds(taken) if madds is None else madds)
    if not count:
        raise ValueError("`dataset` must have one image or more. Received: none")
    if metrics is not None:
        metrics.update(zip(paths, counted, strict=True))
    return [
        {"path": path, **_costs(detector, path, routed, ran), **each.result()}
        for path, each in zip(paths, counted, strict=True)
    ]


def _costs(detector, path, routed, ran):
    """Returns the MAdds of a path, of the routed network with the shares of its widths."""
    if path != _DYNAMIC:
        return {"madds": detector.madds(path)}
    if not ran:
        return {"madds": None}
    shares = collections.defaultdict(collections.Counter)
    for taken, count in routed.items():
        for gate, width in enumerate(taken if isinstance(taken, tuple) else (taken,)):
            shares[gate][width] += count / len(ran)
    return {
        "madds": float(np.mean(ran)),
        "shares": [dict(sorted(share.items())) for share in shares.values()],
    }


def _targets(target, shape, bounding_box_format):
    """Returns the target of each image of a batch, in fractions of the image."""
    boxes = convert_boxes(target["boxes"], bounding_box_format, BOX_FORMAT, shape[1:])
    parts = {key: np.asarray(value) for key, value in target.items()}
    parts |= {"boxes": np.asarray(boxes)}
    # Sizes of objects are those in the image that the network sees, unless the target states them.
    parts.setdefault("image_size", np.tile(shape[1:3], (shape[0], 1)))
    return [{key: value[index] for key, value in parts.items()} for index in range(shape[0])]


def class_table(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the average precision of each class as rows for `keras_dsnet.runs.write_table`.

    Args:
        result: Dict of `DetectionMetric.result`, or a row of `evaluate_detection`.

    Returns:
        List of dicts with `"class"` and `"ap"`, the best class first, and the mean as the last row.
    """
    rows = [{"class": name, "ap": value} for name, value in result["ap"].items()]
    rows.sort(key=lambda row: (row["ap"] is None, -(row["ap"] or 0.0), row["class"]))
    return [*rows, {"class": "mean", "ap": result["map"]}]
