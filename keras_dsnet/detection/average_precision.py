"""Average precision of detections, in the manner of PASCAL VOC or of COCO."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_dsnet.utils.batch_checks import describe_value

METRICS = ("voc07", "voc", "coco")
_IOU = 0.5
_POINTS = 11
# The numbers of COCO, in the order in which pycocotools gives them.
_COCO_NUMBERS = ("map", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
# pycocotools counts the 100 best detections of an image.
_COCO_BEST, _COCO_ALL_AREAS = 2, 0


class DetectionMetric:
    """The average precision of detections, added image by image.

    In `"voc07"`, the AP of a class is the mean of the precision at 11 recalls, as in PASCAL VOC
    2007; in `"voc"`, the area under the curve of precision, as from 2010 on. Both count a detection
    as right at an overlap (IoU) of 0.5, and ignore difficult objects. `"coco"` is the mean over
    overlaps from 0.5 to 0.95, counted by pycocotools (the extra `detection`); difficult objects are
    its crowds. A class without an object does not count in the mean.

    Args:
        metric: `"voc07"`, `"voc"` or `"coco"`. Defaults to `"voc07"`.
        class_names: Sequence of str, one name per class in index order.

    Raises:
        ValueError: There is no such metric.
        ImportError: The metric is `"coco"` and pycocotools is not installed.

    Example:

    ```python
    from keras_dsnet.detection import DetectionMetric

    metric = DetectionMetric("voc", class_names=["cat", "dog"])
    metric.update(
        {"boxes": [[0.1, 0.1, 0.5, 0.5]], "classes": [0]},
        {"boxes": [[0.1, 0.1, 0.5, 0.4]], "classes": [0], "scores": [0.9]},
    )
    metric.result()["map"]  # 1.0: of the classes that have objects
    ```
    """

    def __init__(self, metric: str = "voc07", *, class_names: Sequence[str]) -> None:
        if metric not in METRICS:
            raise ValueError(
                f"`metric` must be {', '.join(map(repr, METRICS))}. Received: metric={metric!r}"
            )
        if metric == "coco":
            _pycocotools()
        self.metric = metric
        self.class_names = tuple(class_names)
        self._truths: list[dict[str, np.ndarray]] = []
        self._found: list[dict[str, np.ndarray]] = []
        self._rankings: list[_Ranking] | None = None

    def update(self, target: Mapping[str, Any], detections: Mapping[str, Any]) -> None:
        """Adds an image.

        Args:
            target: Dict of `"boxes"`, float `[n, 4]` in the format `"rel_yxyx"`, and `"classes"`,
                `[n]`, where a class of -1 is padding; optionally `"difficult"`, bool `[n]`;
                `"areas"`, float `[n]`, and `"image_size"`, `(height, width)`, in pixels of the
                image, for the sizes of objects in COCO.
            detections: Dict of `"boxes"`, `[m, 4]`, `"classes"` and `"scores"`, `[m]`.

        Raises:
            ValueError: A part is missing, or the parts differ in length, or a class is unknown.
        """
        truth = self._checked(target, "target", {"difficult": bool, "areas": np.float64})
        size = np.asarray(target.get("image_size", (1.0, 1.0)), np.float64)
        found = self._checked(detections, "detections", {"scores": np.float64})
        if "scores" not in found:
            raise ValueError(
                f"`detections` must have 'scores', one per box. Received: {sorted(detections)}"
            )
        truth.setdefault("difficult", np.zeros(len(truth["boxes"]), bool))
        self._truths.append({**truth, "image_size": size})
        self._found.append(found)
        self._rankings = None

    def _checked(self, part, name, more):
        if not {"boxes", "classes"} <= set(part):
            raise ValueError(
                f"`{name}` must have 'boxes' and 'classes'. Received: {describe_value(part)}"
            )
        kinds = {"boxes": np.float64, "classes": np.int64, **more}
        columns = {key: np.asarray(part[key], kinds[key]) for key in kinds if key in part}
        columns["boxes"] = columns["boxes"].reshape(-1, 4)
        lengths = {key: len(column) for key, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"`{name}` must have one entry per box. Received: {lengths}")
        kept = columns["classes"] >= 0
        columns = {key: column[kept] for key, column in columns.items()}
        highest = max(columns["classes"], default=-1)
        if highest >= len(self.class_names):
            raise ValueError(
                f"`{name}` must have classes from 0 to {len(self.class_names) - 1}. "
                f"Received: {highest}"
            )
        return columns

    def result(self) -> dict[str, Any]:
        """Returns the average precision of all images so far.

        Returns:
            Dict of `"map"`, the mean over the classes with objects, and `"ap"`, a dict from class
            names to AP, None for a class without objects; all in [0, 1]. `"coco"` adds `"ap50"` and
            `"ap75"`, of one overlap, and `"ap_small"`, `"ap_medium"` and `"ap_large"`, of objects
            up to 32 pixels, up to 96 pixels and above (sides of a square of their area).

        Raises:
            ValueError: There is no image.
        """
        if not self._truths:
            raise ValueError("A metric needs one image or more. Received: none; call `update`")
        if self.metric == "coco":
            return _coco_result(self._coco(), self.class_names)
        points = _POINTS if self.metric == "voc07" else None
        average = {
            name: average_precision(recall, precision, points)
            for name, (recall, precision) in self.curves().items()
        }
        counted = [value for value in average.values() if value is not None]
        return {"map": float(np.mean(counted)) if counted else None, "ap": average}

    def curves(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Returns recall and precision of each class at an overlap of 0.5, by its name.

        Each is float64 `[points]`, in the order of falling scores. Both are empty for a class
        without objects.
        """
        if self.metric == "coco":
            evaluated = self._coco()
            table = evaluated.eval["precision"][0, :, :, _COCO_ALL_AREAS, _COCO_BEST]
            recalls = np.asarray(evaluated.params.recThrs)
            return {
                name: (recalls[table[:, index] >= 0], table[table[:, index] >= 0, index])
                for index, name in enumerate(self.class_names)
            }
        once = np.ones(len(self._truths), np.int64)
        return {
            name: _curve(ranking, once)
            for name, ranking in zip(self.class_names, self._ranked(), strict=True)
        }

    def resampled_map(self, counts: np.ndarray) -> float | None:
        """Returns the mean average precision of a resample of the images, for a bootstrap.

        Args:
            counts: Int array `[images]`, how often each image is in the resample, in the order in
                which the images were added.

        Returns:
            Float in [0, 1], the mean over the classes with objects in the resample. None if there
            is no object.

        Raises:
            ValueError: If the metric is `"coco"`, or there is not one count for each image.
        """
        if self.metric == "coco":
            raise ValueError("Resamples are for 'voc07' and 'voc'. Received: metric='coco'")
        counts = np.asarray(counts, np.int64)
        if counts.shape != (len(self._truths),):
            raise ValueError(
                f"`counts` must be an array of {len(self._truths)} ints, one for each image. "
                f"Received: an array of shape {counts.shape}"
            )
        points = _POINTS if self.metric == "voc07" else None
        curves = (_curve(ranking, counts) for ranking in self._ranked())
        values = [average_precision(recall, precision, points) for recall, precision in curves]
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    def _ranked(self):
        if self._rankings is None:
            self._rankings = [
                _rank(self._truths, self._found, index) for index in range(len(self.class_names))
            ]
        return self._rankings

    def _coco(self):
        return _evaluate_coco(self._truths, self._found, self.class_names)


class _Ranking(NamedTuple):
    """The detections of a class that count, in the order of falling scores.

    Args:
        images: int64 array `[detections]`, the image of each.
        right: bool array `[detections]`.
        objects: int64 array `[images]`, the number of objects that count.
    """

    images: np.ndarray
    right: np.ndarray
    objects: np.ndarray


def _curve(ranking, counts):
    """Returns recall and precision of a class, in the order of falling scores.

    Args:
        ranking: `_Ranking`.
        counts: int64 array `[images]`, how often each image counts.
    """
    objects = ranking.objects @ counts
    if not objects:
        return np.empty(0), np.empty(0)
    weights = counts[ranking.images]
    if not weights.any():
        return np.zeros(1), np.zeros(1)
    # The precision of an image that counts twice is that after both: the area is the same.
    images, right = weights[weights > 0], ranking.right[weights > 0]
    hits = np.cumsum(right * images)
    return hits / objects, hits / np.cumsum(images)


def _rank(truths, found, label):
    scores, right, counted, images = [], [], [], []
    objects = np.zeros(len(truths), np.int64)
    for image, (truth, detections) in enumerate(zip(truths, found, strict=True)):
        chosen = truth["classes"] == label
        difficult = truth["difficult"][chosen]
        objects[image] = (~difficult).sum()
        mine = detections["classes"] == label
        if not mine.any():
            continue
        image_scores = detections["scores"][mine]
        order = np.argsort(-image_scores, kind="stable")
        overlaps = _overlaps(detections["boxes"][mine][order], truth["boxes"][chosen])
        image_right, ignored = _matches(overlaps, difficult)
        scores.append(image_scores[order])
        right.append(image_right)
        counted.append(~ignored)
        images.append(np.full(len(order), image))
    if not scores:
        return _Ranking(np.zeros(0, np.int64), np.zeros(0, bool), objects)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    order = order[np.concatenate(counted)[order]]
    return _Ranking(np.concatenate(images)[order], np.concatenate(right)[order], objects)


def _matches(overlaps, difficult):
    """Returns which detections of an image are right, and which are ignored.

    A detection belongs to the object that it overlaps most, and only the best one of an object is
    right.
    """
    right = np.zeros(len(overlaps), bool)
    ignored = np.zeros(len(overlaps), bool)
    if not overlaps.shape[1]:
        return right, ignored
    taken = np.zeros(overlaps.shape[1], bool)
    for index, nearest in enumerate(overlaps.argmax(axis=1)):
        if overlaps[index, nearest] < _IOU:
            continue
        ignored[index] = difficult[nearest]
        right[index] = not difficult[nearest] and not taken[nearest]
        taken[nearest] = True
    return right, ignored


def _overlaps(boxes, others):
    # In NumPy: a call of TensorFlow for each class of each image would take most of the time.
    begin = np.maximum(boxes[:, None, :2], others[None, :, :2])
    end = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.clip(end - begin, 0, None).prod(axis=-1)
    areas = [(each[:, 2:] - each[:, :2]).prod(axis=-1) for each in (boxes, others)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-12)


def average_precision(
    recall: np.ndarray, precision: np.ndarray, points: int | None = None
) -> float | None:
    """Returns the average precision of a curve.

    Args:
        recall: float64 array `[n]`, ascending.
        precision: float64 array `[n]`.
        points: Int, the number of recalls from 0 to 1 at which the highest precision of that or a
            higher recall is averaged. Defaults to None for the area under those precisions.

    Returns:
        Float in [0, 1]. None for an empty curve.
    """
    if not len(recall):
        return None
    if points is not None:
        # The levels of the VOC devkit and of its translations: that of 0.3 is above 3 / 10 by one
        # bit, so published numbers count a recall of 3 / 10 as below it.
        levels = np.arange(points) * (1.0 / (points - 1))
        reached = recall[None] >= levels[:, None]
        return float(np.max(np.where(reached, precision[None], 0.0), axis=1).mean())
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * highest))


def _pycocotools():
    try:
        from pycocotools import coco, cocoeval
    except ImportError as error:
        raise ImportError("The metric 'coco' needs pycocotools: pip install pycocotools") from error
    return coco, cocoeval


def _evaluate_coco(truths, found, class_names):
    coco, cocoeval = _pycocotools()
    annotations, rows = [], []
    for image, (truth, detections) in enumerate(zip(truths, found, strict=True), start=1):
        boxes = _pixels(truth["boxes"], truth["image_size"])
        areas = truth.get("areas", boxes[:, 2] * boxes[:, 3])
        for box, label, area, ignored in zip(
            boxes.tolist(), truth["classes"], areas, truth["difficult"]
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(label),
                    "bbox": box,
                    "area": float(area),
                    "iscrowd": int(ignored),
                }
            )
        columns = [np.full(len(detections["scores"]), image)[:, None]]
        columns += [_pixels(detections["boxes"], truth["image_size"])]
        columns += [detections["scores"][:, None], detections["classes"][:, None]]
        rows.append(np.concatenate(columns, axis=1))
    # pycocotools prints its progress.
    with contextlib.redirect_stdout(io.StringIO()):
        known = coco.COCO()
        known.dataset = {
            "images": [{"id": image} for image in range(1, len(truths) + 1)],
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for i, name in enumerate(class_names)],
        }
        known.createIndex()
        detected = np.concatenate(rows)
        results = known.loadRes(detected) if len(detected) else coco.COCO()
        evaluated = cocoeval.COCOeval(known, results, "bbox")
        evaluated.evaluate()
        evaluated.accumulate()
        evaluated.summarize()
    return evaluated


def _pixels(boxes, image_size):
    """Returns boxes as left, top, width, height in pixels, in float64."""
    corners = boxes * np.tile(image_size, 2)
    return np.concatenate([corners[:, 1::-1], (corners[:, 2:] - corners[:, :2])[:, ::-1]], axis=1)


def _coco_result(evaluated, class_names):
    numbers = dict(zip(_COCO_NUMBERS, map(_known, evaluated.stats[: len(_COCO_NUMBERS)])))
    table = evaluated.eval["precision"][..., _COCO_ALL_AREAS, _COCO_BEST]
    average = {
        name: _known(table[:, :, index][table[:, :, index] > -1].mean())
        if (table[:, :, index] > -1).any()
        else None
        for index, name in enumerate(class_names)
    }
    return {**numbers, "ap": average}


def _known(value):
    """Returns a number of pycocotools, or None where it has no object to count."""
    return None if value < 0 else float(value)
