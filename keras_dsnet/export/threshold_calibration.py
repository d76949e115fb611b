"""Calibration of the thresholds of an exported file that routes by confidence.

The file itself runs every step on labelled images. From these runs follow the costs and the
accuracy of any thresholds, without another run.
"""

import itertools
import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np

# Combinations of thresholds that a calibration tries.
MOST_COMBINATIONS = 2000


def calibrate(
    interpreter: Any, images: Iterable[np.ndarray], labels: Iterable[int], **limits: float | None
) -> tuple[list[dict[str, Any]], tuple[float, ...]]:
    """Chooses the thresholds of a file; see `DynamicInterpreter.calibrate_confidence`.

    Args:
        interpreter: `DynamicInterpreter`.
        images: Images as for `DynamicInterpreter.run`.
        labels: Int class of each image.
        **limits: `max_madds`, `max_latency_ms` and `max_drop`, one of which is not None.

    Returns:
        Tuple of the rows of the curve and the chosen thresholds.

    Raises:
        ValueError: See `DynamicInterpreter.calibrate_confidence`.
    """
    ((name, limit),) = _check_limits(interpreter, limits).items()
    runs = _StepRuns(interpreter, images, labels)
    key = "madds" if name == "max_drop" else name.removeprefix("max_")
    rows = runs.curve(key)
    if name == "max_drop":
        least = runs.row(np.ones(len(interpreter.steps) - 1))["top1"] - limit
        best = [row for row in rows if row["top1"] >= least - 1e-9]
    else:
        best = [row for row in rows if row[key] <= limit][::-1]
    if not best:
        raise ValueError(
            f"No thresholds meet `{name}`; the least possible is {rows[0][key]:.6g}. "
            f"Received: {name}={limit!r}"
        )
    return rows, best[0]["thresholds"]


def _check_limits(interpreter, limits):
    """Returns the only limit of a calibration that is given, as a dict."""
    if interpreter.is_detector:
        raise ValueError(
            "Thresholds are chosen by the top-1 accuracy of a classifier: set `thresholds` of a "
            "detector's file yourself. Received: the file of a detector"
        )
    if not interpreter.steps:
        raise ValueError(
            "The file has no thresholds, since it routes only by its gates: export it with "
            "routing='confidence'"
        )
    given = {name: limit for name, limit in limits.items() if limit is not None}
    is_number = all(
        isinstance(limit, numbers.Real) and not isinstance(limit, bool) and limit >= 0
        for limit in given.values()
    )
    if len(given) != 1 or not is_number:
        raise ValueError(
            "Exactly one of `max_madds`, `max_latency_ms` and `max_drop` must be a number of at "
            f"least 0. Received: {limits}"
        )
    if "max_latency_ms" in given and not interpreter.latency_ms:
        raise ValueError("`max_latency_ms` needs latencies: call `calibrate_latency()` first.")
    return given


class _StepRuns:
    """The steps that a file can run on each of some images, with their results and costs.

    Args:
        interpreter: `DynamicInterpreter`.
        images: Images as for `DynamicInterpreter.run`.
        labels: Int class of each image.
    """

    def __init__(self, interpreter, images, labels):
        images, labels = list(images), np.array(list(labels))
        if not images or labels.shape != (len(images),) or labels.dtype.kind not in "iu":
            raise ValueError(
                "`calibrate_confidence` needs images and an int class for each of them. Received: "
                f"{len(images)} images and labels of shape {labels.shape} and type {labels.dtype}"
            )
        classes = interpreter.run(images[0])[0].size
        (outside,) = np.nonzero((labels < 0) | (labels >= classes))
        if outside.size:
            raise ValueError(
                f"`labels` must be classes of the file, 0 to {classes - 1}. Received: "
                f"labels[{outside[0]}]={labels[outside[0]]}"
            )
        self._count = len(interpreter.steps) - 1
        self._costs = ["madds", "latency_ms"] if interpreter.latency_ms else ["madds"]
        walks = [walk_steps(interpreter, image) for image in images]
        length = len(interpreter.steps) + 1
        # An image with fewer steps ends at its last one.
        walks = [walk + walk[-1:] * (length - len(walk)) for walk in walks]
        self._runs = {
            key: np.array([[run[key] for run in walk] for walk in walks])
            for key in ("width", "class", "confidence", "leaves", *self._costs)
        }
        self._runs["top1"] = self._runs["class"] == labels[:, None]

    def row(self, thresholds):
        """Returns the costs and the accuracy of an image on average with some thresholds."""
        limits = np.where(thresholds >= 1, 2.0, np.where(thresholds <= 0, -1.0, thresholds))
        # The last entry is for runs after which no step follows.
        limits = np.array([*limits, -1.0])
        goes_on = self._runs["confidence"] <= limits[self._runs["leaves"]]
        ends = np.argmin(goes_on, 1)[:, None]
        means = {
            key: float(np.take_along_axis(self._runs[key], ends, 1).mean())
            for key in ("top1", *self._costs)
        }
        widths = np.take_along_axis(self._runs["width"], ends, 1)
        shares = {int(width): float((widths == width).mean()) for width in np.unique(widths)}
        return {"thresholds": tuple(map(float, thresholds)), **means, "shares": shares}

    def curve(self, cost):
        """Returns the rows of the best thresholds at each cost, in ascending order."""
        each = max(2, int(MOST_COMBINATIONS ** (1 / self._count)))
        candidates = [self._candidates(number, each) for number in range(self._count)]
        rows = [self.row(np.array(thresholds)) for thresholds in itertools.product(*candidates)]
        best: list[dict[str, Any]] = []
        for row in sorted(rows, key=lambda row: (row[cost], -row["top1"])):
            if not best or row["top1"] > best[-1]["top1"]:
                best.append(row)
        return best

    def _candidates(self, number, count):
        """Returns at most `count` values of a threshold: 0, 1, and values between confidences."""
        leaving = self._runs["leaves"] == number
        confidences = np.unique(np.clip(self._runs["confidence"][leaving], 0, 1))
        low, high = confidences[:-1], confidences[1:]
        # The file compares in float32, in which a value between neighbours can be the upper one.
        between = ((low + high) / 2).astype("float32").astype("float64")
        values = np.array([0.0, *np.where(between < high, between, low), 1.0])
        return values[np.unique(np.linspace(0, len(values) - 1, count).astype(int))]


def walk_steps(interpreter: Any, image: np.ndarray) -> list[dict[str, Any]]:
    """Runs an image from its start through all further steps.

    Args:
        interpreter: `DynamicInterpreter`.
        image: Image as for `DynamicInterpreter.run`.

    Returns:
        List with a dict for the start and for each step after it: "width", the largest width of its
        path, "class" and "confidence" of the output, "leaves", the index of the threshold up to
        which an image goes on (-1 after the last step), and "madds" and, if it was measured,
        "latency_ms" of all that ran.
    """
    thresholds = np.zeros(len(interpreter.steps) - 1, "float32")
    runs: list[dict[str, Any]] = []
    while not runs or runs[-1]["leaves"] >= 0:
        if runs:
            # The least threshold with which the image goes on.
            thresholds[runs[-1]["leaves"]] = min(max(runs[-1]["confidence"], 1e-6), 1.0)
        output, path, confidence = interpreter.run_steps(image, thresholds)
        # One threshold may lead over two steps. The image then never ends at the first one.
        for step in interpreter.steps:
            if runs and runs[-1]["width"] < step < max(path):
                passed = runs[-1]["class"], runs[-1]["confidence"]
                runs.append(_step_run(interpreter, (step,) * len(path), *passed, runs))
        runs.append(_step_run(interpreter, path, int(output.argmax()), confidence, runs))
    return runs


def _step_run(interpreter, path, label, confidence, before):
    """Returns the dict of `walk_steps` for a path that ran after others."""
    steps, width = interpreter.steps, max(path)
    narrower = [number for number, step in enumerate(steps) if step <= width]
    run = {
        "width": width,
        "class": label,
        "confidence": confidence,
        "leaves": max(narrower, default=0) if width < steps[-1] else -1,
        "madds": _madds_of(interpreter, path, is_start=not before),
    }
    if interpreter.latency_ms:
        run["latency_ms"] = interpreter.latency_ms[width]
    if before:
        # The trunk has run already.
        run["madds"] += before[-1]["madds"] - interpreter.metadata["trunk_madds"]
        if interpreter.latency_ms:
            run["latency_ms"] += before[-1]["latency_ms"] - interpreter.trunk_ms
    return run


def _madds_of(interpreter, path, is_start):
    """Returns the multiply-adds of a path, with those of the gates if they chose it."""
    metadata = interpreter.metadata
    if not is_start or "section_madds" not in metadata:
        return {tuple(row["path"]): row["madds"] for row in metadata["routes"]}[path]
    positions = [0, *(interpreter.routes.index(width) for width in path)]
    tables = zip(metadata["section_madds"], itertools.pairwise(positions))
    sections = sum(table[before][after] for table, (before, after) in tables)
    return metadata["trunk_madds"] + metadata["gate_madds"] + sections
