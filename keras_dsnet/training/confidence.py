"""The calibration of routing by confidence on labelled images."""

import itertools
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_dsnet.models.costs import section_costs
from keras_dsnet.models.routing import confidence_of
from keras_dsnet.training.network_trainer import check_network
from keras_dsnet.utils.argument_checks import check_int, check_number
from keras_dsnet.utils.batch_checks import class_numbers
from keras_dsnet.utils.batches import labelled_batches

# The candidate thresholds of each step where a search tries all combinations of three or more
# steps, and the most combinations that it tries.
_CANDIDATES = 200
_MOST_COMBINATIONS = 200_000


class StepResults(NamedTuple):
    """What one pass over a labelled set shows of some widths, each used at all gates.

    Args:
        widths: Tuple of ints in ascending order.
        madds: int64 `[widths]`, multiply-adds of the layers after the trunk.
        trunk: Int, multiply-adds of the layers before the first gate.
        confidence: float32 `[images, widths]`.
        correct: bool `[images, widths]`, whether the likeliest class is right.
    """

    widths: tuple[int, ...]
    madds: np.ndarray
    trunk: int
    confidence: np.ndarray
    correct: np.ndarray

    def of(self, widths: Sequence[int]) -> "StepResults":
        """Returns the results of some of the widths."""
        columns = [self.widths.index(width) for width in widths]
        return StepResults(
            tuple(widths),
            self.madds[columns],
            self.trunk,
            self.confidence[:, columns],
            self.correct[:, columns],
        )

    def images(self, index: np.ndarray) -> "StepResults":
        """Returns the results on some of the images."""
        return StepResults(
            self.widths, self.madds, self.trunk, self.confidence[index], self.correct[index]
        )


def calibrate_confidence(
    model: keras.Model,
    dataset: Any,
    max_madds: float | None = None,
    max_drop: float | None = None,
    input_shape: Sequence[int] | None = None,
    num_batches: int | None = None,
) -> list[dict[str, Any]]:
    """Chooses the thresholds of routing by confidence, and sets them.

    One pass over the labelled images gives the confidence and the class of each step for each
    image. The whole curve of accuracy against multiply-adds follows from it, without more passes:
    for two steps all thresholds that differ, for more a search. The choice is the most accurate
    point whose mean MAdds are at most `max_madds`, or the cheapest point whose top-1 is at most
    `max_drop` below that of the last step.

    The images must not have trained the network. On training images a network is too sure, and the
    thresholds are too low for other images.

    Args:
        model: `DynamicSlimmableNetwork` with a classifier. Its `confidence_steps` are calibrated.
        dataset: Labelled batches, as for `evaluate_paths`.
        max_madds: Number, maximum of the mean multiply-adds of an image.
        max_drop: Float, maximum of the drop of top-1 under the last step, as a fraction: 0.002 is
            0.2 percentage points. Pass exactly one of `max_madds` and `max_drop`.
        input_shape: `(height, width, 3)`, the size of the images that MAdds are counted for.
            Defaults to the model's. It is needed where the model leaves the size open.
        num_batches: Int, the maximum number of batches to read. Defaults to the whole data set.

    Returns:
        List of dicts, the curve in the order of MAdds. "thresholds" is a tuple, "madds" the mean of
        an image, "top1" in [0, 1], and "shares" a dict from steps to the shares of the images whose
        output they gave. "line" is the top-1 of the line between the static steps at these MAdds,
        "random" that of a random choice between the first and the last step, and "chosen" is True
        for the row whose thresholds were set.

    Raises:
        ValueError: If there is not exactly one limit, no point meets it, the data set has no labels
            or no images, or the model has no classifier or only one step.

    Example:

    ```python
    import numpy as np
    from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, MobileNetStage
    from keras_dsnet.training import calibrate_confidence

    stages = MobileNetStage(1, 2, (8, 12)), MobileNetStage(1, 2, (8, 12, 16), gated=True)
    spec = MobileNetSpec(stem=(8, 12), stages=stages)
    model = DynamicSlimmableNetwork(spec, input_shape=(32, 32, 3), classes=10)
    images = np.random.normal(size=(16, 32, 32, 3)).astype("float32")

    model.confidence_steps = (0, 2)
    rows = calibrate_confidence(model, (images, np.arange(16) % 10), max_drop=1.0)
    model.routing = "confidence"
    assert model.thresholds == rows[0]["thresholds"]
    ```
    """
    check_network(model)
    max_madds, max_drop = _check_limits(max_madds, max_drop)
    steps = model.confidence_steps
    if len(steps) < 2:
        raise ValueError(
            "Calibration needs two confidence steps or more: set `confidence_steps`. "
            f"Received: confidence_steps={steps}"
        )
    stops = f"an image that stops at step {steps[0]}"
    _check_limit_of_madds(model, steps[0], max_madds, input_shape, stops)
    results = collect_steps(model, dataset, steps, input_shape, num_batches)
    rows = confidence_curve(results)
    chosen = choose_row(rows, results, max_madds, max_drop)
    model.thresholds = chosen["thresholds"]
    for row in rows:
        row["chosen"] = row is chosen
    if chosen["top1"] <= max(chosen["line"], chosen["random"]):
        warnings.warn(
            f"Routing by confidence has {chosen['top1']:.2%} top-1 at "
            f"{chosen['madds'] / 1e6:.2f}M multiply-adds, which is not above the line of the "
            f"static steps ({chosen['line']:.2%}) and a random choice ({chosen['random']:.2%}): "
            "try other steps, or a limit between the first and the last step.",
            stacklevel=2,
        )
    return rows


def _check_limits(max_madds, max_drop):
    if (max_madds is None) == (max_drop is None):
        raise ValueError(
            "Pass exactly one of `max_madds` and `max_drop`. "
            f"Received: max_madds={max_madds!r}, max_drop={max_drop!r}"
        )
    if max_madds is not None:
        return check_number("max_madds", max_madds, "a number above 0", lambda x: x > 0), None
    right = "a fraction from 0 to 1, such as 0.002 for 0.2 percentage points"
    return None, check_number("max_drop", max_drop, right, lambda x: 0 <= x <= 1)


def _check_limit_of_madds(model, width, max_madds, input_shape, what):
    if max_madds is not None and max_madds < (least := model.madds(width, input_shape)):
        raise ValueError(
            f"`max_madds` must be at least {least}, the multiply-adds of {what}. "
            f"Received: max_madds={max_madds:g}"
        )


def collect_steps(
    model: keras.Model,
    dataset: Any,
    widths: Sequence[int],
    input_shape: Sequence[int] | None = None,
    num_batches: int | None = None,
    one_trace: bool = False,
) -> StepResults:
    """Runs all images at all of some widths, with one run of the trunk.

    Args:
        model: `DynamicSlimmableNetwork` with a classifier.
        dataset: Labelled batches, as for `evaluate_paths`.
        widths: Tuple of ints in ascending order.
        input_shape: `(height, width, 3)`. Defaults to the model's.
        num_batches: Int. Defaults to the whole data set.
        one_trace: Bool. True runs all widths by one slower trace, which is made sooner than many
            traces. By default the functions of inference run, so that every confidence is exactly
            the one that decides there.

    Raises:
        ValueError: If a batch has no labels, or there are no images.
    """
    trunk, tables = section_costs(model, widths, input_shape)
    madds = tables[0][0] + sum(np.diagonal(table) for table in tables[1:])
    confidence, correct = [], []
    run = _run_by_one_trace if one_trace else _run_as_inference
    for images, labels in labelled_batches(
        dataset, model.input_shape[1:], model.classes, num_batches
    ):
        labels = class_numbers(labels)
        logits = run(model, tf.cast(images, model.compute_dtype), widths)
        confidence.append(np.stack([confidence_of(x) for x in logits], 1))
        correct.append(np.stack([likeliest(x) == labels for x in logits], 1))
    if not confidence:
        raise ValueError("`dataset` has no images to calibrate on.")
    return StepResults(
        tuple(widths), madds, trunk, np.concatenate(confidence), np.concatenate(correct)
    )


def _run_as_inference(model, images, widths):
    features, _ = model.run_section(0, None, (0, 0), images, with_scores=False)
    return [model.run_rest(width, features) for width in widths]


def _run_by_one_trace(model, images, widths):
    paths = [model.resolve_path(width) for width in widths]
    features = model.run_any_width(0, images, paths[0])
    return [model.run_any_width(1, features, path) for path in paths]


def likeliest(logits: tf.Tensor) -> np.ndarray:
    """Returns the class of the largest logit of each image, int32 `[batch]`."""
    return tf.argmax(tf.cast(logits, tf.float32), axis=1, output_type=tf.int32).numpy()


def confidence_curve(results: StepResults) -> list[dict[str, Any]]:
    """Returns one row for each choice of thresholds, in the order of MAdds.

    For two steps the curve is exact: it has every set of images that a threshold can select. For
    more steps a search tries combinations of quantiles and keeps those with no better point at
    fewer MAdds.

    Args:
        results: `StepResults` of the steps.

    Returns:
        List of dicts, see `calibrate_confidence`.
    """
    thresholds, madds, top1, stops = _points(results)
    shares = stops / stops.sum(axis=1, keepdims=True)
    lines, randoms = line_at(results, madds), _random_at(results, madds)
    return [
        {
            "thresholds": tuple(map(float, row)),
            "madds": float(madds[i]),
            "top1": float(top1[i]),
            "shares": {w: float(s) for w, s in zip(results.widths, shares[i]) if s},
            "line": float(lines[i]),
            "random": float(randoms[i]),
        }
        for i, row in enumerate(thresholds)
    ]


def _points(results):
    """Returns the curve as arrays: thresholds, mean MAdds, top-1, images that stop at each step."""
    return _points_of_two(results) if len(results.widths) == 2 else _searched_points(results)


def _searched_points(results):
    count, images = len(results.widths) - 1, len(results.confidence)
    size = max(3, min(_CANDIDATES, int(_MOST_COMBINATIONS ** (1 / count))))
    confidence = _comparable(results.confidence)
    grids = [_quantiles(confidence[:, step], size) for step in range(count)]
    shape = [len(grid) for grid in grids]
    # The first candidate of each step with which an image goes on: 0 lets no image go on.
    bins = [np.searchsorted(grid[1:], c) + 1 for grid, c in zip(grids, confidence.T)]
    gains = np.diff(results.correct.astype("float64"), axis=1)
    madds = results.trunk + np.full([1] * count, results.madds[0], "float64")
    hits, reached = np.full([1] * count, results.correct[:, 0].sum(), "float64"), []
    for step in range(1, count + 1):
        cells = np.ravel_multi_index(bins[:step], shape[:step])
        number, gain = (
            _sums_up_to(cells, weights, shape[:step]).reshape(*shape[:step], *[1] * (count - step))
            for weights in (None, gains[:, step - 1])
        )
        reached.append(np.broadcast_to(number, shape))
        madds, hits = madds + number / images * results.madds[step], hits + gain
    madds, hits = madds.ravel(), np.rint(hits.ravel())
    order = np.lexsort((-hits, madds))
    best_before = np.maximum.accumulate(np.append(-1, hits[order]))[:-1]
    kept = order[hits[order] > best_before]
    index = np.unravel_index(kept, shape)
    thresholds = np.stack([grid[i] for grid, i in zip(grids, index)], 1)
    reached = np.stack([np.full(len(kept), images), *(r[index] for r in reached)], 1)
    stops = reached - np.append(reached[:, 1:], np.zeros((len(kept), 1)), 1)
    return thresholds, madds[kept], hits[kept] / images, stops


def _sums_up_to(cells, weights, shape):
    """Returns for each cell of a grid the sum of the weights of all cells up to it."""
    sums = np.bincount(cells, weights, minlength=int(np.prod(shape))).reshape(shape)
    for axis in range(len(shape)):
        sums = np.cumsum(sums, axis)
    return sums


def _quantiles(confidence, size):
    inner = np.quantile(confidence, np.linspace(0, 1, size)[1:-1], method="midpoint")
    # Decisions are made in float32, where different numbers may be equal.
    inner = np.unique(inner.astype("float32"))
    return np.concatenate([[0], inner[(inner > 0) & (inner < 1)], [1]]).astype("float32")


def _comparable(confidence):
    """Returns confidences that a threshold compares as the network does.

    An image whose confidence is NaN goes on with every threshold above 0. A softmax may round to
    more than 1.
    """
    return np.minimum(np.nan_to_num(confidence, nan=0.0), np.float32(1))


def _points_of_two(results):
    """Sorts the images by the confidence of the first step; each prefix goes on."""
    confidence = _comparable(results.confidence[:, 0])
    order = np.argsort(confidence, kind="stable")
    confidence = confidence[order]
    gains = np.cumsum(np.subtract(*results.correct[order].T[::-1], dtype="int64"))
    # A threshold selects all images of an equal confidence or none.
    ends = np.flatnonzero(np.append(np.diff(confidence) > 0, True))
    low, high = confidence[ends[:-1]], confidence[ends[:-1] + 1]
    # In the middle of a gap, so that rounding selects the same images in another run. Between two
    # neighbours in float32, in which the network compares, there is no middle.
    between = ((low.astype("float64") + high) / 2).astype("float32")
    between = np.where(between < high, between, low)
    thresholds = np.concatenate([[0.0], between, [1.0]])
    images, counts = len(order), np.append(0, ends + 1)
    madds = results.trunk + results.madds[0] + counts / images * results.madds[1]
    top1 = (results.correct[:, 0].sum() + np.append(0, gains[ends])) / images
    return thresholds[:, None], madds, top1, np.stack([images - counts, counts], axis=1)


def ends_of(results: StepResults, thresholds: Sequence[float]) -> np.ndarray:
    """Returns for each image the index of the step whose output it gets, int `[images]`.

    Args:
        results: `StepResults` of the steps.
        thresholds: One number for each step except the last.
    """
    unsure = np.stack(
        [
            # The same rule as in `keras_dsnet.models.routing`, also for NaN.
            (t >= 1) | ((t > 0) & ~(results.confidence[:, step] > t))
            for step, t in enumerate(np.asarray(thresholds, "float32"))
        ],
        1,
    )
    return np.sum(np.cumprod(unsure, axis=1), axis=1)


def score(results: StepResults, thresholds: Sequence[float]) -> tuple[float, float]:
    """Returns the mean MAdds of an image and top-1 with some thresholds.

    Args:
        results: `StepResults` of the steps.
        thresholds: One number for each step except the last.
    """
    ends = ends_of(results, thresholds)
    madds = results.trunk + np.cumsum(results.madds)[ends].mean()
    return float(madds), float(results.correct[np.arange(len(ends)), ends].mean())


def line_at(results: StepResults, madds: Any) -> Any:
    """Returns the top-1 of the line between the static steps at some MAdds.

    Outside their range it is that of the nearest step.

    Args:
        results: `StepResults` of the steps.
        madds: Number or array, multiply-adds of an image.
    """
    return np.interp(madds, results.trunk + results.madds, results.correct.mean(0))


def _random_at(results, madds):
    """Returns the top-1 of a random choice between the first and the last step at some MAdds.

    A random choice needs no first step where it takes the last.
    """
    first, last = results.madds[0], results.madds[-1]
    share = np.clip((madds - results.trunk - first) / (last - first or 1), 0, 1)
    top1 = results.correct.mean(0)
    return (1 - share) * top1[0] + share * top1[-1]


def choose_row(
    rows: Sequence[dict[str, Any]],
    results: StepResults,
    max_madds: float | None,
    max_drop: float | None,
) -> dict[str, Any]:
    """Returns the row of a curve that meets a limit.

    Args:
        rows: Rows of `confidence_curve`.
        results: `StepResults` of the steps.
        max_madds: Number or None.
        max_drop: Float or None.

    Raises:
        ValueError: If no row meets the limit.
    """
    if max_madds is not None:
        fitting = [row for row in rows if row["madds"] <= max_madds]
        if not fitting:
            nearest = min(rows, key=lambda row: row["madds"])
            raise ValueError(
                f"`max_madds` must be at least {nearest['madds']:.0f}, the multiply-adds of an "
                f"image that stops at step {results.widths[0]}. Received: max_madds={max_madds:g}"
            )
        return max(fitting, key=lambda row: (row["top1"], -row["madds"]))
    last, drop = float(results.correct[:, -1].mean()), max_drop or 0.0
    fitting = [row for row in rows if row["top1"] >= last - drop - 1e-9]
    if not fitting:
        nearest = max(rows, key=lambda row: row["top1"])
        raise ValueError(
            f"No thresholds have a drop of at most {drop:g}. The smallest drop of top-1 is "
            f"{last - nearest['top1']:g}, with thresholds={nearest['thresholds']}. "
            f"Received: max_drop={drop:g}"
        )
    return min(fitting, key=lambda row: (row["madds"], -row["top1"]))


def propose_steps(
    model: keras.Model,
    dataset: Any,
    max_madds: float | None = None,
    count: int = 2,
    input_shape: Sequence[int] | None = None,
    num_batches: int | None = None,
) -> tuple[int, ...]:
    """Returns the confidence steps of `routes` that are best on labelled images.

    One pass runs all routes. It does not change the model.

    Args:
        model: `DynamicSlimmableNetwork` with a classifier.
        dataset: Labelled batches that did not train the network, as for `evaluate_paths`.
        max_madds: Number, mean multiply-adds of an image. The best steps are those with the highest
            top-1 within it. By default they have the largest area under the curve of top-1 over
            MAdds, between the first and the last route.
        count: Int, the number of steps. Defaults to 2.
        input_shape: `(height, width, 3)`. Defaults to the model's.
        num_batches: Int. Defaults to the whole data set.

    Returns:
        Tuple of `count` ascending widths, for `model.confidence_steps`.

    Raises:
        ValueError: If there are fewer routes than `count`, or no steps meet `max_madds`.
    """
    check_network(model)
    check_int("count", count, 2)
    if max_madds is not None:
        max_madds = check_number("max_madds", max_madds, "a number above 0", lambda x: x > 0)
        narrowest = "the narrowest route"
        _check_limit_of_madds(model, model.routes[0], max_madds, input_shape, narrowest)
    if len(model.routes) < count:
        raise ValueError(f"{count} steps need as many routes. Received: routes={model.routes}")
    results = collect_steps(model, dataset, model.routes, input_shape, num_batches, True)
    return best_steps(results, max_madds, count)


def best_steps(
    results: StepResults, max_madds: float | None = None, count: int = 2
) -> tuple[int, ...]:
    """Returns the best steps of results, as `propose_steps` does for a data set.

    Args:
        results: `StepResults` of all candidate widths.
        max_madds: Number, mean multiply-adds of an image, or None for the area under the curve.
        count: Int, the number of steps.

    Raises:
        ValueError: If no steps meet `max_madds`.
    """
    first, last = results.trunk + results.madds[0], results.trunk + results.madds[-1]
    grid = np.linspace(first, last, 200)
    scores = {}
    for steps in itertools.combinations(results.widths, count):
        _, madds, top1, _ = _points(results.of(steps))
        if max_madds is not None:
            scores[steps] = float(np.max(top1[madds <= max_madds], initial=-1.0))
        else:
            # Below the first step an image has no answer.
            best_so_far = np.maximum.accumulate(top1)
            scores[steps] = float(np.interp(grid, madds, best_so_far, left=0.0).mean())
    best = max(scores, key=scores.__getitem__)
    if scores[best] < 0:
        least = int(results.trunk + results.madds[0])
        raise ValueError(
            f"`max_madds` must be at least {least}, the multiply-adds of the narrowest route. "
            f"Received: max_madds={max_madds:g}"
        )
    return best
