"""Cross-fitting of routings: each half of the images is scored with a choice from the other half.

A threshold that is chosen and scored on the same images looks better than it is. Where no images
are left for the choice, the images are split at random: one half chooses, the other half is scored,
then the halves change places, so that every image is scored once. Many splits show the spread.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_dsnet.training.confidence import (
    StepResults,
    best_steps,
    choose_row,
    confidence_curve,
    ends_of,
)
from keras_dsnet.training.evaluation import gain_interval
from keras_dsnet.utils.argument_checks import check_int

# A function of the indices of the images that choose. It returns whether the routing is right and
# the MAdds that it runs, both for all images.
Choice = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

# The settings that a grid tries.
_SETTINGS = 400


class GateScores(NamedTuple):
    """What the gate of a network says of labelled images.

    Args:
        routes: Tuple of ints, the candidate widths.
        scores: float64 `[images, routes]`; the largest is chosen.
        madds: Int, multiply-adds of the slimming head.
    """

    routes: tuple[int, ...]
    scores: np.ndarray
    madds: int


def cross_fit(
    choose: Choice,
    static_hits: np.ndarray,
    static_madds: Sequence[float],
    splits: int = 20,
    seed: int = 0,
) -> dict[str, float]:
    """Scores a routing by random halves: one half chooses its setting, the other is scored.

    The interval of the gain resamples the images by `gain_interval`. Its routed accuracy and MAdds
    of an image are the means over the splits, and the thresholds stay those of the splits.

    Args:
        choose: Function of an int array, the indices of the images to choose on. It returns bool
            `[images]`, whether the routing is right, and `[images]`, its MAdds, for all images.
        static_hits: bool `[paths, images]`, whether the static paths are right.
        static_madds: `[paths]`, their MAdds in ascending order.
        splits: Int, number of random splits.
        seed: Int, seed of the splits.

    Returns:
        Dict with the means over the splits: "madds", "top1", "gain" over the static line at these
        MAdds, and "drop" under the last static path. "top1_spread" and "gain_spread" are standard
        deviations over the splits. "gain_low" and "gain_high" are the 95 % interval of the mean
        gain, and "lowest_low" is the lowest lower end of the intervals of single splits.

    Raises:
        ValueError: If `splits` is not a positive int, or there are fewer than two images.
    """
    check_int("splits", splits, 1)
    images, generator = static_hits.shape[1], np.random.default_rng(seed)
    if images < 2:
        raise ValueError(f"Halves need two images or more. Received: {images}")
    rows, hits, madds = [], np.zeros((splits, images)), np.zeros((splits, images))
    for split in range(splits):
        order = generator.permutation(images)
        halves = order[: images // 2], order[images // 2 :]
        for chooses, scored in (halves, halves[::-1]):
            right, costs = choose(chooses)
            hits[split, scored], madds[split, scored] = right[scored], costs[scored]
        low, _ = gain_interval(hits[split], madds[split], static_hits, static_madds)
        line = np.interp(madds[split].mean(), static_madds, static_hits.mean(1))
        rows.append((hits[split].mean(), hits[split].mean() - line, low))
    top1, gains, lows = np.array(rows).T
    low, high = gain_interval(hits.mean(0), madds.mean(0), static_hits, static_madds)
    return {
        "madds": float(madds.mean()),
        "top1": float(top1.mean()),
        "top1_spread": float(top1.std()),
        "gain": float(gains.mean()),
        "gain_spread": float(gains.std()),
        "gain_low": low,
        "gain_high": high,
        "lowest_low": float(lows.min()),
        "drop": float(static_hits[-1].mean() - top1.mean()),
    }


def choose_thresholds(
    results: StepResults,
    steps: Sequence[int] | None = None,
    max_madds: float | None = None,
    max_drop: float | None = None,
) -> Choice:
    """Returns the choice of `calibrate_confidence`, for `cross_fit`.

    Args:
        results: `StepResults` of all candidate widths.
        steps: Tuple of ints, the confidence steps. By default the images that choose the thresholds
            also choose two steps, as `propose_steps` does.
        max_madds: Number, see `calibrate_confidence`.
        max_drop: Float, see `calibrate_confidence`. Pass exactly one of the two.
    """

    def choose(images):
        widths = steps or best_steps(results.images(images), max_madds)
        ours = results.of(widths)
        known = ours.images(images)
        row = choose_row(confidence_curve(known), known, max_madds, max_drop)
        ends = ends_of(ours, row["thresholds"])
        return _at(ours.correct, ends), ours.trunk + np.cumsum(ours.madds)[ends]

    return choose


def gate_settings(results: StepResults, gate: GateScores) -> tuple[np.ndarray, np.ndarray]:
    """Returns what a gate gives with many biases on its scores.

    A bias times the relative MAdds of a route is added to its score, as in the "curve" of
    `evaluate_paths`. The first setting is the gate as it is.

    Args:
        results: `StepResults` of all routes or more.
        gate: `GateScores` of the same images.

    Returns:
        bool `[settings, images]`, whether the gate is right, and `[settings, images]`, its MAdds.
    """
    results = results.of(gate.routes)
    relative = (results.madds - results.madds[0]) / (results.madds[-1] - results.madds[0] or 1)
    undecided = gate.scores[:, 0] - gate.scores[:, -1]
    biases = np.quantile(undecided, np.linspace(0, 1, _SETTINGS))
    # Beyond the last quantile every image is decided.
    biases = [0.0, *biases, biases[-1] + np.ptp(gate.scores) + 1]
    choices = [np.argmax(gate.scores + bias * relative, axis=1) for bias in biases]
    madds = results.trunk + gate.madds + results.madds
    return np.stack([_at(results.correct, c) for c in choices]), madds[np.stack(choices)]


def mixed_settings(
    results: StepResults, gate: GateScores, last: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what "gate+confidence" with two steps gives with many thresholds.

    The gate chooses where an image starts. The image goes on to the last step where its confidence
    is at most the threshold.

    Args:
        results: `StepResults` of all routes and the last step, or more.
        gate: `GateScores` of the same images.
        last: Int, the width of the last step.

    Returns:
        As `gate_settings`.
    """
    last = results.widths.index(last)
    columns = np.array([results.widths.index(width) for width in gate.routes])
    starts = columns[np.argmax(gate.scores, axis=1)]
    confidence = _at(results.confidence, starts)
    thresholds = np.append(0, np.quantile(confidence, np.linspace(0, 1, _SETTINGS)))
    more = (confidence <= thresholds[:, None]) & (starts < last)
    hits = np.where(more, results.correct[:, last], _at(results.correct, starts))
    madds = results.trunk + gate.madds + results.madds[starts] + more * results.madds[last]
    return hits, madds


def choose_setting(
    hits: np.ndarray,
    madds: np.ndarray,
    max_madds: float | None = None,
    max_drop: float | None = None,
    last: np.ndarray | None = None,
) -> Choice:
    """Returns the choice among settings by the rule of `calibrate_confidence`, for `cross_fit`.

    Args:
        hits: bool `[settings, images]`, whether the routing is right with each setting.
        madds: `[settings, images]`, its MAdds.
        max_madds: Number. The setting is the most accurate whose mean MAdds are within it. Where
            none is, it is the cheapest.
        max_drop: Float. The setting is the cheapest whose top-1 is at most this fraction under that
            of `last`. Where none is, it is the most accurate.
        last: bool `[images]`, whether the last step is right.
    """

    def choose(images):
        top1, cost = hits[:, images].mean(1), madds[:, images].mean(1)
        if max_madds is not None:
            fits = cost <= max_madds
            order = np.lexsort((cost, -top1)) if fits.any() else np.argsort(cost)
        else:
            fits = top1 >= last[images].mean() - max_drop - 1e-9
            order = np.lexsort((-top1, cost)) if fits.any() else np.argsort(-top1)
        best = next((i for i in order if fits[i]), order[0])
        return hits[best], madds[best]

    return choose


def _at(table: Any, columns: np.ndarray) -> np.ndarray:
    """Returns one entry of each row."""
    return table[np.arange(len(columns)), columns]
