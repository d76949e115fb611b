"""Cross-fitting: every image is scored with a setting that other images chose."""

import numpy as np
import pytest

from keras_dsnet.training.confidence import StepResults
from keras_dsnet.training.cross_fit import (
    GateScores,
    choose_setting,
    choose_thresholds,
    cross_fit,
    gate_settings,
    mixed_settings,
)

GENERATOR = np.random.default_rng(0)
DIFFICULTY = GENERATOR.random(1000)
WIDTHS, MADDS, TRUNK = (0, 1, 3), np.array([10, 20, 50]), 40
# A wider path is right on more images, and each path is surer of easier images.
CORRECT = np.stack([right > DIFFICULTY for right in (0.7, 0.8, 0.9)], 1)
CONFIDENCE = np.float32(1 - 0.5 * DIFFICULTY[:, None] * np.array([1.0, 0.9, 0.8]))
RESULTS = StepResults(WIDTHS, MADDS, TRUNK, CONFIDENCE, CORRECT)
STATIC = CORRECT.T, TRUNK + MADDS


def test_each_half_is_scored_with_the_choice_of_the_other():
    chosen = []

    def choose(images):
        chosen.append(images)
        scored = np.ones(1000, bool)
        scored[images] = False
        # Right and dear only on the images that did not choose.
        return scored, np.where(scored, 70, 1e9)

    row = cross_fit(choose, *STATIC, splits=3)
    assert len(chosen) == 6
    for first, second in zip(chosen[::2], chosen[1::2]):
        np.testing.assert_array_equal(np.sort(np.append(first, second)), np.arange(1000))
    assert not np.array_equal(chosen[0], chosen[2])
    assert (row["top1"], row["madds"], row["top1_spread"]) == (1, 70, 0)
    line = np.interp(70, STATIC[1], STATIC[0].mean(1))
    assert row["gain"] == pytest.approx(1 - line)
    assert row["drop"] == pytest.approx(CORRECT[:, 2].mean() - 1)
    assert row["gain_low"] < row["gain"] < row["gain_high"]
    assert row["lowest_low"] == row["gain_low"]


@pytest.mark.parametrize("limit", [{"max_madds": 65}, {"max_drop": 0.02}])
def test_confidence_that_knows_hard_images_lies_above_the_line(limit):
    row = cross_fit(choose_thresholds(RESULTS, (0, 3), **limit), *STATIC, splits=2)
    assert row["gain"] > row["gain_low"] > 0.02
    if "max_madds" in limit:
        assert row["madds"] == pytest.approx(65, abs=2)
    else:
        assert row["drop"] == pytest.approx(0.02, abs=0.03)
    proposed = cross_fit(choose_thresholds(RESULTS, **limit), *STATIC, splits=2)
    assert proposed["top1"] > row["top1"] - 0.05


def test_settings_of_a_gate_move_along_the_axis_of_madds():
    gate = GateScores((0, 1), np.stack([-DIFFICULTY, DIFFICULTY - 1], 1), madds=2)
    hits, madds = gate_settings(RESULTS, gate)
    choice = np.argmax(gate.scores, 1)
    np.testing.assert_array_equal(madds[0], TRUNK + 2 + MADDS[choice])
    np.testing.assert_array_equal(hits[0], CORRECT[np.arange(1000), choice])
    assert (madds.mean(1).min(), madds.mean(1).max()) == (52, 62)
    # On the way from one route to the other every image changes once.
    order = np.argsort(madds.mean(1), kind="stable")
    assert np.all(np.diff(madds[order], axis=0) >= 0)
    hits, madds = mixed_settings(RESULTS, gate, 3)
    np.testing.assert_array_equal(madds[0], TRUNK + 2 + MADDS[choice])
    np.testing.assert_array_equal(madds[-1], TRUNK + 2 + MADDS[choice] + 50)
    np.testing.assert_array_equal(hits[-1], CORRECT[:, 2])


def test_a_setting_meets_its_limit_or_is_the_nearest():
    hits = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]], bool)
    madds = np.array([[10] * 4, [20] * 4, [30] * 4])
    last, images = np.array([1, 1, 1, 0], bool), np.arange(4)
    for limit, best in [
        ({"max_madds": 25}, 1),
        ({"max_madds": 5}, 0),
        ({"max_drop": 0.25}, 1),
        ({"max_drop": 0.0}, 2),
    ]:
        right, cost = choose_setting(hits, madds, **limit, last=last)(images)
        assert cost[0] == madds[best, 0]
        np.testing.assert_array_equal(right, hits[best])
    strict = choose_setting(hits[:2], madds[:2], max_drop=0.0, last=last)
    assert strict(images)[1][0] == 20


def test_mistakes_are_named():
    choose = choose_thresholds(RESULTS, (0, 3), max_madds=65)
    with pytest.raises(ValueError, match="`splits` must be"):
        cross_fit(choose, *STATIC, splits=0)
    with pytest.raises(ValueError, match=r"two images or more\. Received: 1"):
        cross_fit(choose, STATIC[0][:, :1], STATIC[1])
