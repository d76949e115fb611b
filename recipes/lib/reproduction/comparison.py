"""The difference between two arms of an experiment, with an interval that gives a verdict.

An arm is an array of hits `[seeds, images]`, in [0, 1]. Two sources of chance are counted:

- Seeds. The standard deviation between seeds is pooled over both arms. Where they have fewer than
  four degrees of freedom, as with two seeds, that is too few to estimate it, and all arms of the
  table are pooled. The interval is that of Student's t-test with a pooled deviation.
- Images. Both arms saw the same images, so a paired bootstrap resamples the images, and takes the
  mean over the seeds of each image.

Gates of several seeds share a supernet. A group is the rows of an arm that share one; deviations
are those from the mean of the group, so that the interval holds for these supernets and not for
others. `merge_groups` makes each supernet a seed instead, where arms of other supernets follow.
Where all gates of a group choose the same, they are copies of one network, which tell nothing of
the deviation between the seeds of other arms.

The interval of the verdict adds both variances. Its degrees of freedom are those of Welch and
Satterthwaite. The deviation over images includes a part of the deviation over seeds, so that this
interval is too wide rather than too narrow.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

LEVEL = 0.95
HOLDS, UNDECIDED = "holds", "undecided"
VERDICTS = (HOLDS, "does not hold", UNDECIDED, "not tested", "not run yet")
# The share of the paper's difference that an interval has to exclude, beside a difference of 0,
# for the verdict "does not hold".
EXCLUDED_SHARE = 0.5
# Degrees of freedom from which two arms estimate the deviation between their seeds themselves.
# Further arms can have another deviation: gates that nearly all choose the same hardly have any.
_ENOUGH = 4
_RESAMPLES = 2000
_CHUNK = 100
# Degrees of freedom from which Student's t is the normal distribution.
_MANY = 1e6


@dataclasses.dataclass(frozen=True)
class Difference:
    """A difference of top-1 between two arms, as fractions.

    Attributes:
        value: Float, mean of the first arm minus mean of the second.
        low: Float or None, lower end of the 95 % interval over seeds and images.
        high: Float or None, upper end. Both are None if an arm has only one seed.
        seeds: Pair of floats or None, the interval over seeds for these images.
        images: Pair of floats, the interval over images for these seeds.
        num_seeds: Pair of ints, the numbers of seeds of both arms.
    """

    value: float
    low: float | None
    high: float | None
    seeds: tuple[float, float] | None
    images: tuple[float, float]
    num_seeds: tuple[int, int]


def difference(
    first, second, others: Sequence = (), paired: bool = False, groups: Sequence | None = None
) -> Difference:
    """Compares two arms that saw the same images.

    Args:
        first: Array `[seeds, images]` of hits in [0, 1].
        second: Array `[seeds, images]`; the numbers of seeds can differ unless `paired`.
        others: Further arms of the table, from which the deviation between seeds is estimated too.
            Not used if `paired`.
        paired: Bool, whether row i of both arms is the same trained network, such as a gate and the
            static widths of its supernet. The interval over seeds is then that of the differences.
        groups: For each arm, first and second and the others, a sequence of the group of each row.
            By default the rows of an arm are one group.

    Returns:
        A `Difference`.

    Raises:
        ValueError: If the arms have other shapes.
    """
    first, second = _as_hits(first, "first"), _as_hits(second, "second")
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            "Two arms must have seen the same images. Received: "
            f"{first.shape[1]} and {second.shape[1]} images"
        )
    if paired and len(first) != len(second):
        raise ValueError(
            f"Paired arms must have the same seeds. Received: {len(first)} and {len(second)} seeds"
        )
    per_image = first.mean(axis=0) - second.mean(axis=0)
    value = float(per_image.mean())
    image_variance = float(per_image.var()) / len(per_image)
    if paired:
        groups = [[0] * len(first)] if groups is None else groups
        error, freedom = _paired_error(first.mean(axis=1) - second.mean(axis=1), groups[0])
    else:
        arms = [first, second, *(_as_hits(other, "others") for other in others)]
        groups = [[0] * len(arm) for arm in arms] if groups is None else groups
        error, freedom = _pooled_error(arms, groups)
    images = _bootstrap(per_image)
    counts = (len(first), len(second))
    if not freedom:
        return Difference(value, None, None, None, images, counts)
    half = student_t(freedom) * error
    total = error**2 + image_variance
    both = student_t(_satterthwaite(error, freedom, total)) * math.sqrt(total)
    seeds = (value - half, value + half)
    return Difference(value, value - both, value + both, seeds, images, counts)


def merge_groups(arm, group: Sequence):
    """Returns the mean over the rows of each group of an arm, `[groups, images]`.

    Args:
        arm: Array `[seeds, images]` of hits in [0, 1].
        group: The group of each row.
    """
    arm = _as_hits(arm, "arm")
    names = dict.fromkeys(group)
    return np.stack([arm[[name == other for other in group]].mean(axis=0) for name in names])


def verdict(measured: Difference, paper: float) -> str:
    """Returns whether a difference of the paper is confirmed.

    Args:
        measured: A `Difference`, first arm minus second.
        paper: Float, the difference of the paper as a fraction, of which the sign is the claim.

    Returns:
        "holds" if the interval lies on the claim's side of 0. "does not hold" if it lies on the
        other side, or if it contains 0 and no difference of half the paper's size. Otherwise, and
        with one seed, "undecided".
    """
    if measured.low is None or measured.high is None or not paper:
        return "undecided"
    low, high = sorted(math.copysign(1, paper) * end for end in (measured.low, measured.high))
    if low > 0:
        return "holds"
    return "does not hold" if high < EXCLUDED_SHARE * abs(paper) else "undecided"


def verdict_of_sign(measured: Difference) -> str:
    """Returns whether a claim without a figure, that the first arm is above, is confirmed.

    Args:
        measured: A `Difference`, first arm minus second.

    Returns:
        "holds" if the interval lies above 0, "does not hold" if it lies below. Otherwise, and with
        one seed, "undecided".
    """
    if measured.low is None or measured.high is None or measured.low <= 0 <= measured.high:
        return "undecided"
    return "holds" if measured.low > 0 else "does not hold"


def contrast_row(contrast, measured: Difference, **more: Any) -> dict[str, Any]:
    """Returns the row of a contrast in the results of its table.

    Args:
        contrast: A `paper_tables.Contrast`.
        measured: A `Difference` of its arms.
        **more: Further fields of the row, such as the multiply-adds of the comparison.
    """
    claim = verdict_of_sign(measured) if contrast.sign else None
    if contrast.paper is not None:
        claim = verdict(measured, contrast.paper)
    return {
        "first": contrast.first,
        "second": contrast.second,
        "path": contrast.path,
        **more,
        "weights": contrast.weights,
        "paper": contrast.paper,
        **dataclasses.asdict(measured),
        "verdict": claim,
    }


def joint_verdict(verdicts: Sequence[str], claimed: int) -> str:
    """Returns the verdict of a claim with several differences.

    Args:
        verdicts: The verdicts of the differences that were measured.
        claimed: Int, the number of differences of the claim.

    Returns:
        "does not hold" if one of them does not hold, "holds" if all are measured and hold,
        otherwise "undecided". Without measured differences "not run yet".
    """
    if not verdicts:
        return "not run yet"
    if "does not hold" in verdicts:
        return "does not hold"
    return "holds" if list(verdicts) == ["holds"] * claimed else "undecided"


def count_drops(accuracies: Sequence[float], size: float = 0.05) -> int:
    """Returns how often an accuracy falls by more than `size` from one epoch to the next.

    Args:
        accuracies: Accuracies in [0, 1], one for each epoch.
        size: Float, a fraction.
    """
    steps = np.diff(np.asarray(accuracies, "float64"))
    # The accuracies are rounded in the log, so that a drop of exactly `size` is not counted.
    return int(np.sum(-steps > size + 1e-9))


def static_line(hits, madds: Sequence[float], at: float):
    """Returns the hits of the line between static widths at given multiply-adds.

    Args:
        hits: Array `[paths, images]` of the static paths.
        madds: Multiply-adds of the paths.
        at: Float, multiply-adds between the least and the most of `madds`.

    Returns:
        float array `[images]`, or None if `at` lies outside.
    """
    order = np.argsort(madds)
    costs, hits = np.asarray(madds, "float64")[order], np.asarray(hits, "float64")[order]
    if not costs[0] <= at <= costs[-1]:
        return None
    right = max(1, int(np.searchsorted(costs, at)))
    weight = (at - costs[right - 1]) / (costs[right] - costs[right - 1])
    return (1 - weight) * hits[right - 1] + weight * hits[right]


def student_t(freedom: float, level: float = LEVEL) -> float:
    """Returns the quantile of Student's t that bounds a two-sided interval.

    Args:
        freedom: Float above 0, degrees of freedom.
        level: Float, the probability of the interval.
    """
    # Beyond, `freedom / (freedom + t^2)` is rounded to 1.
    freedom = min(freedom, _MANY)
    # SciPy comes with scikit-learn only, so the quantile is found by bisection: the probability of
    # |T| > t is the regularised incomplete beta function of `freedom / (freedom + t^2)`.
    target, low, high = 1 - level, 0.0, 1.0
    while _outside(high, freedom) > target:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _outside(middle, freedom) > target else (low, middle)
    return (low + high) / 2


def _outside(t, freedom):
    import tensorflow as tf

    share = tf.constant(freedom / (freedom + t * t), tf.float64)
    half = tf.constant(0.5, tf.float64)
    return float(tf.math.betainc(tf.constant(freedom / 2, tf.float64), half, share))


def _as_hits(hits, name):
    hits = np.asarray(hits, "float64")
    if hits.ndim != 2 or not hits.size:
        raise ValueError(f"`{name}` must be [seeds, images]. Received: shape {hits.shape}")
    return hits


def _pooled_error(arms, groups):
    """Returns the standard error of the difference of the first two arms, and its freedom."""
    kept = [_without_copies(arm, group) for arm, group in zip(arms, groups, strict=True)]
    if min(len(arm) for arm in arms[:2]) < 2:
        return 0.0, 0
    if not any(len(arm) for arm, _ in kept[:2]):
        return 0.0, _MANY
    found = [_deviation(arm.mean(axis=1), group) for arm, group in kept if len(arm)]
    own = found[: sum(len(arm) > 0 for arm, _ in kept[:2])]
    found = own if sum(free for _, free in own) >= _ENOUGH else found
    freedom = sum(free for _, free in found)
    if not freedom:
        return 0.0, 0
    squares = sum(square for square, _ in found)
    return math.sqrt(squares / freedom * (1 / len(arms[0]) + 1 / len(arms[1]))), freedom


def _without_copies(arm, group):
    """Returns an arm and the groups of its rows without those groups whose rows are all equal."""
    if len(group) != len(arm):
        raise ValueError(f"Each row needs a group. Received: {len(arm)} rows, {len(group)} groups")
    rows = {name: [i for i, other in enumerate(group) if other == name] for name in group}
    equal = {name for name, each in rows.items() if not np.ptp(arm[each], 0).any()}
    copies = {name for name in equal if len(rows[name]) > 1}
    kept = [index for index, name in enumerate(group) if name not in copies]
    return arm[kept], [group[index] for index in kept]


def _paired_error(differences, group):
    squares, freedom = _deviation(differences, group)
    if not freedom:
        return 0.0, 0
    return math.sqrt(squares / freedom / len(differences)), freedom


def _deviation(means, group):
    """Returns the sum of squares of deviations from the means of groups, and its freedom."""
    members = [means[[name == other for other in group]] for name in dict.fromkeys(group)]
    squares = sum(float(((m - m.mean()) ** 2).sum()) for m in members)
    return squares, len(means) - len(members)


def _satterthwaite(error, freedom, total):
    """Returns the degrees of freedom where only the variance over seeds is estimated from few."""
    return freedom * (total / error**2) ** 2 if error else _MANY


def _bootstrap(per_image):
    """Returns the 95 % interval of the mean over images, by resampling the images."""
    generator, count, means = np.random.default_rng(0), len(per_image), []
    # Differences take few distinct values, so a resample is a draw of how often each occurs.
    values, counts = np.unique(per_image, return_counts=True)
    for _ in range(_RESAMPLES // _CHUNK):
        drawn = generator.multinomial(count, counts / count, size=_CHUNK)
        means += (drawn @ values / count).tolist()
    low, high = np.percentile(means, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)
