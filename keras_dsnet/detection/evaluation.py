"""Evaluation of a detector: average precision against multiply-adds."""

import collections
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_dsnet.detection.average_precision import METRICS, DetectionMetric
from keras_dsnet.detection.boxes import BOX_FORMAT, convert_boxes
from keras_dsnet.detection.target_checks import check_near
from keras_dsnet.training.evaluation import OFF_ROUTE_ROWS
from keras_dsnet.utils.batches import check_num_batches, refuse_endless

# Of the detections that are counted: a higher threshold would cut the curves of precision short.
_SCORE_THRESHOLD = 0.01
_MAX_DETECTIONS = {"coco": 100}
_DYNAMIC = "dynamic"
# Resamples of the bootstrap, and the percentiles of a 95 % interval.
_RESAMPLES, _INTERVAL = 500, (2.5, 97.5)


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
        dict for each gate, from widths to the shares of the images that took them;
        `"static_line"`, the mean average precision of the line between the static paths at the
        same MAdds, without `"largest"`, which has another front; `"gain"`, the precision above it;
        and `"gain_low"` and `"gain_high"`, the 95 % interval of the gain by a paired bootstrap over
        the images, which is not made for `"coco"`. They are None where the MAdds are outside the
        static paths.

    Raises:
        ValueError: There is no such metric, or the data set is empty or never ends.
    """
    if metric not in METRICS:
        raise ValueError(
            f"`metric` must be {', '.join(map(repr, METRICS))}. Received: metric={metric!r}"
        )
    check_num_batches(num_batches)
    refuse_endless(dataset, num_batches)
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
    rows = [
        {"path": path, **_costs(detector, path, routed, ran), **each.result()}
        for path, each in zip(paths, counted, strict=True)
    ]
    for row in rows:
        if row["path"] == _DYNAMIC:
            row.update(_gain(rows, counted, row, ran))
    return rows


def _gain(rows, counted, dynamic, ran):
    """Returns the gain of the routed network over the line between the static paths."""
    gain = dict.fromkeys(("static_line", "gain", "gain_low", "gain_high"))
    pairs = zip(rows, counted, strict=True)
    static = {row["madds"]: (row, each) for row, each in pairs if row["path"] not in OFF_ROUTE_ROWS}
    costs, madds = sorted(static), dynamic["madds"]
    known = [dynamic["map"], *(static[cost][0]["map"] for cost in costs)]
    if madds is None or None in known or not costs or not costs[0] <= madds <= costs[-1]:
        return gain
    gain["static_line"] = float(np.interp(madds, costs, known[1:]))
    gain["gain"] = dynamic["map"] - gain["static_line"]
    routed = next(each for row, each in zip(rows, counted, strict=True) if row is dynamic)
    if routed.metric != "coco":
        lines = [static[cost][1] for cost in costs]
        gain["gain_low"], gain["gain_high"] = _gain_interval(routed, ran, lines, costs)
    return gain


def _gain_interval(routed, ran, static, costs):
    """Returns the 95 % interval of a gain; see `keras_dsnet.training.evaluation.gain_interval`.

    Args:
        routed: `DetectionMetric` of the routed network.
        ran: List of floats, its MAdds of each image.
        static: List of the `DetectionMetric` of each static path.
        costs: List of their MAdds in ascending order.
    """
    generator, gains, images = np.random.default_rng(0), [], len(ran)
    for _ in range(_RESAMPLES):
        counts = np.bincount(generator.integers(images, size=images), minlength=images)
        found = [each.resampled_map(counts) for each in (routed, *static)]
        # A resample without an object has no precision.
        if None not in found:
            gains.append(found[0] - np.interp(counts @ ran / images, costs, found[1:]))
    low, high = np.percentile(gains, _INTERVAL)
    return float(low), float(high)


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
    check_near(parts["boxes"], parts["classes"], bounding_box_format)
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
