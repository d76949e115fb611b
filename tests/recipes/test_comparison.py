"""The intervals and verdicts of a reproduction."""

import math

import numpy as np
import pytest
from keras_dsnet_recipes.lib.reproduction import comparison
from keras_dsnet_recipes.lib.reproduction.comparison import Difference


def make_hits(seed, accuracy, seeds=3, images=400):
    return np.random.default_rng(seed).random((seeds, images)) < accuracy


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (7.5, 2.3329), (1e6, 1.95997), (1e30, 1.95997)],
)
def test_student_t_has_the_quantiles_of_the_tables(freedom, quantile):
    assert comparison.student_t(freedom) == pytest.approx(quantile, rel=1e-4)


def test_interval_over_seeds_is_that_of_scipys_t_test():
    stats = pytest.importorskip("scipy.stats")
    first, second = make_hits(0, 0.8), make_hits(1, 0.7)
    test = stats.ttest_ind(first.mean(1), second.mean(1))
    expected = test.confidence_interval(0.95)
    measured = comparison.difference(first, second)
    assert measured.seeds == pytest.approx((expected.low, expected.high), rel=1e-6)
    paired = stats.ttest_rel(first.mean(1), second.mean(1)).confidence_interval(0.95)
    measured = comparison.difference(first, second, paired=True)
    assert measured.seeds == pytest.approx((paired.low, paired.high), rel=1e-6)


def test_other_arms_of_the_table_help_to_estimate_the_deviation_between_seeds():
    first, second = make_hits(0, 0.8, seeds=2), make_hits(1, 0.7, seeds=2)
    other = make_hits(2, 0.5, seeds=2)
    measured = comparison.difference(first, second, others=[other])
    variance = np.mean([arm.mean(1).var(ddof=1) for arm in (first, second, other)])
    half = 3.182446 * math.sqrt(variance)
    assert measured.seeds == pytest.approx((measured.value - half, measured.value + half))


def test_two_arms_of_enough_seeds_estimate_their_deviation_themselves():
    """Gates that nearly all choose the same would make the interval far too narrow."""
    first, second = make_hits(0, 0.8, seeds=3), make_hits(1, 0.7, seeds=3)
    constant = np.tile(make_hits(2, 0.5, seeds=1), (5, 1))
    constant[0, :2] = ~constant[0, :2]
    alone = comparison.difference(first, second)
    assert comparison.difference(first, second, others=[constant] * 4).seeds == alone.seeds


def test_bootstrap_over_images_has_the_width_of_the_closed_form():
    first, second = make_hits(0, 0.8, images=5000), make_hits(1, 0.7, images=5000)
    per_image = first.mean(0) - second.mean(0)
    half = 1.959964 * per_image.std() / math.sqrt(5000)
    low, high = comparison.difference(first, second).images
    assert low == pytest.approx(per_image.mean() - half, abs=0.08 * half)
    assert high == pytest.approx(per_image.mean() + half, abs=0.08 * half)


def test_pairing_of_images_narrows_the_interval():
    first = make_hits(0, 0.7, images=2000)
    second = first.copy()
    second[:, :40] = False
    low, high = comparison.difference(first, second).images
    unpaired = first.mean(0)[np.random.default_rng(2).permutation(2000)]
    apart = comparison.difference(first, np.tile(unpaired, (3, 1))).images
    assert high - low < 0.3 * (apart[1] - apart[0])


def test_whole_interval_is_wider_than_either_and_covers_the_truth():
    covered = 0
    for trial in range(100):
        generator = np.random.default_rng(trial)
        rates = generator.normal([[0.8], [0.8], [0.78], [0.78]], 0.01)
        easy = generator.random(1000)
        hits = easy < rates
        measured = comparison.difference(hits[:2], hits[2:])
        seeds, images = measured.seeds, measured.images
        assert measured.high - measured.low >= images[1] - images[0] - 1e-3
        assert measured.high > measured.value > measured.low
        assert seeds[0] < measured.value < seeds[1]
        covered += measured.low <= 0.02 <= measured.high
    assert covered >= 90


def test_one_seed_gives_no_interval_and_no_verdict():
    measured = comparison.difference(make_hits(0, 0.9, 1), make_hits(1, 0.1, 2))
    assert (measured.low, measured.high, measured.seeds) == (None, None, None)
    assert measured.num_seeds == (1, 2)
    assert comparison.verdict(measured, 0.01) == "undecided"


@pytest.mark.parametrize(
    ("low", "high", "paper", "expected"),
    [
        (0.001, 0.03, 0.016, "holds"),
        (-0.03, -0.001, 0.016, "does not hold"),
        (-0.001, 0.02, 0.016, "undecided"),
        (-0.002, 0.007, 0.016, "does not hold"),
        (-0.002, 0.009, 0.016, "undecided"),
        (-0.03, -0.001, -0.016, "holds"),
        (0.001, 0.03, -0.016, "does not hold"),
        (0.001, 0.03, 0.0, "undecided"),
    ],
)
def test_verdict_follows_from_the_interval(low, high, paper, expected):
    measured = Difference((low + high) / 2, low, high, (low, high), (low, high), (2, 2))
    assert comparison.verdict(measured, paper) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.001, 0.03, "holds"),
        (-0.03, -0.001, "does not hold"),
        (-0.001, 0.02, "undecided"),
        (None, None, "undecided"),
    ],
)
def test_verdict_on_a_claim_without_a_figure(low, high, expected):
    measured = Difference(0.0, low, high, None, (0.0, 0.0), (2, 2))
    assert comparison.verdict_of_sign(measured) == expected


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([], "not run yet"),
        (["holds", "holds"], "holds"),
        (["holds", "undecided"], "undecided"),
        (["undecided", "does not hold"], "does not hold"),
        (["holds"], "undecided"),  # one of both was not measured
        (["does not hold"], "does not hold"),
    ],
)
def test_claim_with_several_differences_has_one_verdict(verdicts, expected):
    assert comparison.joint_verdict(verdicts, claimed=2) == expected


@pytest.mark.slow
def test_gates_that_share_supernets_are_compared_for_these_supernets():
    # Five gates, of which three and two share a supernet: the accuracy of a gate is that of its
    # supernet and its own. The interval covers the mean for these supernets in 95 % of the cases.
    generator, group = np.random.default_rng(0), [0, 1, 0, 1, 0]
    covered = {"for_supernets": 0, "for_all": 0}
    for _ in range(400):
        supernets = generator.normal(0, 0.05, 2)
        truth = supernets[group].mean()
        gates = supernets[group] + generator.normal(0, 0.01, 5)
        hits = np.tile(gates[:, None], (1, 2))
        for name, groups in (("for_supernets", [group]), ("for_all", None)):
            low, high = comparison.difference(
                hits, np.zeros_like(hits), paired=True, groups=groups
            ).seeds
            covered[name] += low <= (truth if groups else 0) <= high
    assert covered["for_supernets"] / 400 == pytest.approx(0.95, abs=0.03)
    # Five gates are not five seeds: an interval for all supernets would be too narrow.
    assert covered["for_all"] / 400 < 0.8


def test_gates_that_choose_the_same_have_the_interval_over_images():
    generator = np.random.default_rng(0)
    for _ in range(60):
        row = generator.random(400) - generator.random()
        measured = comparison.difference([row] * 5, np.zeros((5, 400)), paired=True)
        half = 1.959964 * row.std() / math.sqrt(400)
        ends = (row.mean() - half, row.mean() + half)
        assert (measured.low, measured.high) == pytest.approx(ends, abs=1e-6)
    same = comparison.difference([row] * 5, [row + 0.1] * 5)
    assert (same.low, same.high) == pytest.approx((-0.1, -0.1))


def test_copies_of_a_network_tell_nothing_of_the_deviation_between_seeds():
    first, second = make_hits(0, 0.8), make_hits(1, 0.7)
    copies = make_hits(2, 0.5, seeds=2)[[0, 1, 0]]
    group = [0, 1, 0]
    alone = comparison.difference(first, second, groups=[group] * 2)
    beside = comparison.difference(first, second, [copies], groups=[group] * 3)
    assert (beside.low, beside.high) == (alone.low, alone.high)
    other = comparison.difference(first, second, [make_hits(3, 0.5)], groups=[group] * 3)
    assert (other.low, other.high) != (alone.low, alone.high)


def test_supernets_count_once_where_their_gates_are_merged():
    hits = np.array([[0.0], [1.0], [0.5], [1.0]])
    np.testing.assert_array_equal(comparison.merge_groups(hits, "abab"), [[0.25], [1.0]])
    with pytest.raises(ValueError, match="4 rows, 3 groups"):
        comparison.difference(hits, hits, groups=["aba", "abab"])


def test_drops_over_five_points_are_counted():
    assert comparison.count_drops([0.1, 0.3, 0.24, 0.35, 0.30, 0.2]) == 2
    assert comparison.count_drops([0.5]) == 0


def test_static_line_is_between_its_neighbours():
    hits = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 1]])
    line = comparison.static_line(hits, [30, 10, 20], 15)
    np.testing.assert_allclose(line, [0.5, 0, 0.5])
    np.testing.assert_allclose(comparison.static_line(hits, [30, 10, 20], 10), [0, 0, 0])
    assert comparison.static_line(hits, [30, 10, 20], 31) is None


@pytest.mark.parametrize(
    ("shapes", "paired", "message"),
    [
        (((2, 5), (2, 6)), False, "5 and 6 images"),
        (((2, 5), (3, 5)), True, "2 and 3 seeds"),
        (((5,), (2, 5)), False, "must be"),
    ],
)
def test_arms_that_do_not_fit_are_refused(shapes, paired, message):
    with pytest.raises(ValueError, match=message):
        comparison.difference(*(np.ones(shape) for shape in shapes), paired=paired)
