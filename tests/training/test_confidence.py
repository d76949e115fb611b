"""Thresholds and steps of routing by confidence, chosen on labelled images."""

import itertools
import warnings

import numpy as np
import pytest
from routed_networks import SHORT_SPEC, random_images, small_network
from tiny_families import TINY_RESNET, tiny_images, tiny_network

from keras_dsnet.models.costs import dynamic_madds, section_costs
from keras_dsnet.training import calibrate_confidence, evaluate_paths, propose_steps
from keras_dsnet.training.confidence import (
    StepResults,
    best_steps,
    confidence_curve,
    ends_of,
    score,
)
from keras_dsnet.training.evaluation import gain_interval

IMAGES = random_images(96)
STEPS = (0, 2, 3)


def labelled_network(**options):
    """Returns a network and labels that its widest path gets right in most cases."""
    network = small_network(spec=SHORT_SPEC, **options)
    labels = np.argmax(network(IMAGES, path="widest"), axis=1)
    wrong = np.random.default_rng(0).random(len(labels)) < 0.1
    return network, np.where(wrong, 0, labels)


def measured(network, labels, thresholds):
    """Returns mean MAdds and top-1 of the network with these thresholds, by running it."""
    network.thresholds = thresholds
    logits, paths = network.run_dynamic(IMAGES)
    starts = np.full_like(paths, network.confidence_steps[0])
    madds = dynamic_madds(network, starts, paths.numpy(), network.confidence_steps, gates=False)
    return madds.mean(), np.mean(np.argmax(logits, axis=1) == labels)


def results_of_two():
    """Returns results of four images, of which the first step is unsure of the two it has wrong."""
    return StepResults(
        (1, 4),
        np.array([10, 50]),
        100,
        np.array([[0.3, 0.9], [0.5, 0.9], [0.5, 0.9], [0.8, 0.9]], "float32"),
        np.array([[False, True], [False, True], [True, True], [True, False]]),
    )


def test_the_curve_of_two_steps_has_every_choice_once():
    rows = confidence_curve(results_of_two())
    assert [(row["madds"], row["top1"]) for row in rows] == [
        (110, 0.5),
        (122.5, 0.75),
        (147.5, 1.0),
        (160, 0.75),
    ]
    assert [row["thresholds"][0] for row in rows] == pytest.approx([0, 0.4, 0.65, 1])
    assert rows[2]["shares"] == {1: 0.25, 4: 0.75}
    # The static steps have 0.5 at 110 and 0.75 at 150.
    assert [row["line"] for row in rows] == pytest.approx([0.5, 0.578125, 0.734375, 0.75])
    assert rows[1]["random"] == rows[1]["line"]


def results_of(confidence, widths=STEPS, seed=0):
    """Returns results with some confidences, in which surer images are right more often."""
    confidence = np.array(confidence, "float32")
    random = np.random.default_rng(seed).random(confidence.shape)
    correct = random < np.nan_to_num(confidence) * np.linspace(0.8, 1, len(widths))
    return StepResults(widths, np.array([10, 20, 40])[: len(widths)], 5, confidence, correct)


def test_the_curve_of_two_steps_is_that_of_all_thresholds():
    generator = np.random.default_rng(0)
    # Coarse confidences have many ties.
    confidence = np.round(generator.uniform(0.2, 1, (300, 2)), 2)
    results = results_of(confidence, (0, 3))
    values = np.unique(results.confidence[:, 0])
    every = [score(results, (t,)) for t in (0, *values[:-1], *(values[1:] - 1e-4), 1)]
    rows = confidence_curve(results)
    points = [(row["madds"], row["top1"]) for row in rows]
    assert {tuple(np.round(p, 9)) for p in points} == {tuple(np.round(p, 9)) for p in every}
    for row in rows:
        assert (row["madds"], row["top1"]) == pytest.approx(score(results, row["thresholds"]))


def test_thresholds_are_exact_between_neighbours_in_float32():
    # Neighbours, an image without a confidence, and softmaxes that round to 1 and above it.
    values = [0.5]
    for _ in range(6):
        values.append(np.nextafter(np.float32(values[-1]), np.float32(1)))
    values += [np.nextafter(np.float32(1), np.float32(0)), 1.0, 1.0000001, np.nan]
    results = results_of(np.stack([values] * 2, 1), (0, 3))
    rows = confidence_curve(results)
    assert [row["shares"].get(3, 0) * 11 for row in rows] == pytest.approx([*range(10), 11])
    for row in rows:
        (threshold,) = row["thresholds"]
        assert 0 <= threshold <= 1
        assert np.float32(threshold) == threshold
        goes_on = np.sum(ends_of(results, row["thresholds"]))
        assert goes_on / 11 == pytest.approx(row["shares"].get(3, 0))


def test_a_search_counts_as_single_thresholds_do():
    confidence = np.random.default_rng(1).uniform(0.2, 1, (60, 3))
    confidence[::9, 0], confidence[::7, 1] = np.nan, 1.0000001
    results = results_of(confidence)
    rows = confidence_curve(results)
    for row in rows:
        assert (row["madds"], row["top1"]) == pytest.approx(score(results, row["thresholds"]))
        stops = np.bincount(ends_of(results, row["thresholds"]), minlength=3) / 60
        assert [row["shares"].get(step, 0) for step in STEPS] == pytest.approx(stops)
    # All pairs of thresholds on a grid: none is better at fewer MAdds.
    for first, second in itertools.product(np.linspace(0, 1, 21), repeat=2):
        madds, top1 = score(results, (first, second))
        assert max(row["top1"] for row in rows if row["madds"] <= madds) >= top1 - 1 / 60 - 1e-9
    assert min(row["madds"] for row in rows) == 15


@pytest.mark.parametrize("steps", [(0, 3), STEPS])
def test_rows_are_what_the_network_does_with_their_thresholds(steps):
    network, labels = labelled_network()
    network.routing, network.confidence_steps = "confidence", steps
    rows = calibrate_confidence(network, (IMAGES, labels), max_drop=0.0)
    assert [row["madds"] for row in rows] == sorted(row["madds"] for row in rows)
    (chosen,) = [row for row in rows if row["chosen"]]
    assert network.thresholds == chosen["thresholds"]
    for row in rows[:: max(len(rows) // 5, 1)]:
        assert (row["madds"], row["top1"]) == pytest.approx(
            measured(network, labels, row["thresholds"]), rel=1e-9
        )
        assert sum(row["shares"].values()) == pytest.approx(1)
        taken = network.route(IMAGES).numpy()[:, 0]
        assert row["shares"] == {w: np.mean(taken == w) for w in np.unique(taken)}


def test_a_search_of_three_steps_is_at_least_as_good_as_two_of_them():
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.2, 1, (400, 3)).astype("float32")
    correct = generator.random((400, 3)) < confidence * [0.8, 0.9, 1.0]
    results = StepResults(STEPS, np.array([10, 20, 40]), 5, confidence, correct)
    two = [row for row in confidence_curve(results.of((0, 3))) if row["madds"] <= 25]
    three = [row for row in confidence_curve(results) if row["madds"] <= 25 + 10]
    assert max(row["top1"] for row in three) >= max(row["top1"] for row in two) - 0.01
    for (_, before), (_, after) in itertools.pairwise(enumerate(three)):
        assert before["top1"] < after["top1"]
        assert before["madds"] <= after["madds"]
    ends = ends_of(results, (0, 1))
    assert set(ends) == {0}
    assert set(ends_of(results, (1, 1))) == {2}


@pytest.mark.parametrize("limit", ["max_madds", "max_drop"])
def test_the_choice_meets_its_limit(limit):
    network, labels = labelled_network()
    widest = np.mean(np.argmax(network(IMAGES, path=3), axis=1) == labels)
    value = network.madds(3) if limit == "max_madds" else 0.05
    rows = calibrate_confidence(network, (IMAGES, labels), **{limit: value})
    (chosen,) = [row for row in rows if row["chosen"]]
    if limit == "max_madds":
        assert chosen["madds"] <= value
        assert chosen["top1"] == max(row["top1"] for row in rows if row["madds"] <= value)
    else:
        assert chosen["top1"] >= widest - 0.05 - 1e-9
        better = [row for row in rows if row["top1"] >= widest - 0.05 - 1e-9]
        assert chosen["madds"] == min(row["madds"] for row in better)


def test_several_gates_are_calibrated_along_paths_of_one_width():
    network, images = tiny_network(TINY_RESNET), tiny_images(32)
    labels = np.argmax(network(images, path="widest"), axis=1)
    rows = calibrate_confidence(network, (images, labels), max_drop=0.0)
    trunk, tables = section_costs(network, (0,))
    assert rows[0]["madds"] == network.madds(0)
    assert rows[-1]["madds"] == network.madds(0) + network.madds(2) - trunk
    assert len(tables) == 3


def test_confidence_that_does_not_help_is_warned_of():
    network, _ = labelled_network()
    labels = np.argmax(network(IMAGES, path="slimmest"), axis=1)
    with pytest.warns(UserWarning, match="not above the line"):
        calibrate_confidence(network, (IMAGES, labels), max_madds=network.madds(3))


def test_mistakes_are_named_and_change_nothing():
    network, labels = labelled_network()
    data, thresholds = (IMAGES, labels), network.thresholds
    least = network.madds(0)
    for limits, message in [
        ({}, r"exactly one of .* max_madds=None, max_drop=None"),
        ({"max_madds": 1e9, "max_drop": 0.1}, "exactly one of"),
        ({"max_madds": -1}, "above 0. Received: max_madds=-1"),
        ({"max_drop": 2}, "Received: max_drop=2"),
        ({"max_madds": least - 1}, f"at least {least}, .*step 0. Received: max_madds="),
    ]:
        with pytest.raises(ValueError, match=message):
            calibrate_confidence(network, data, **limits)
    with pytest.raises(ValueError, match=r"batches \(images, labels\)"):
        calibrate_confidence(network, [IMAGES], max_drop=0.1)
    with pytest.raises(ValueError, match="no images"):
        calibrate_confidence(network, [], max_drop=0.1)
    assert network.thresholds == thresholds
    network.confidence_steps = (2,)
    with pytest.raises(
        ValueError, match=r"two confidence steps.*Received: confidence_steps=\(2,\)"
    ):
        calibrate_confidence(network, data, max_drop=0.1)
    with pytest.raises(ValueError, match="`count` must be an int of 2"):
        propose_steps(network, data, count=1)
    with pytest.raises(ValueError, match="5 steps need as many routes"):
        propose_steps(network, data, count=5)
    with pytest.raises(ValueError, match=r"narrowest route\. Received: max_madds=1"):
        propose_steps(network, data, max_madds=1)


def test_proposed_steps_are_the_best_of_all_routes():
    network, labels = labelled_network()
    steps = propose_steps(network, (IMAGES, labels), max_madds=network.madds(3))
    best = {}
    for pair in itertools.combinations(range(4), 2):
        network.confidence_steps = pair
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = calibrate_confidence(network, (IMAGES, labels), max_drop=1.0)
        best[pair] = max(r["top1"] for r in rows if r["madds"] <= network.madds(3))
    assert best[steps] == max(best.values())
    assert len(propose_steps(network, (IMAGES, labels), count=3)) == 3
    assert best_steps(results_of_two()) == (1, 4)


def test_rows_of_routings_count_all_that_ran():
    network, labels = labelled_network()
    network.routing, network.confidence_steps = "gate+confidence", STEPS
    rows = {row["path"]: row for row in evaluate_paths(network, (IMAGES, labels))}
    assert [*rows] == [0, 1, 2, 3, "gate", "confidence", "gate+confidence", "dynamic"]
    for name in ("gate", "confidence", "gate+confidence"):
        network.routing = name
        logits, paths, starts = network.run_routed(IMAGES)
        steps = () if name == "gate" else STEPS
        madds = dynamic_madds(
            network, starts.numpy(), paths.numpy(), steps, gates=name != "confidence"
        )
        row = rows[name]
        assert row["madds"] == pytest.approx(madds.mean(), rel=1e-12)
        assert row["madds_p95"] == pytest.approx(np.percentile(madds, 95))
        assert row["madds_worst"] >= madds.max()
        assert row["top1"] == np.mean(np.argmax(logits, axis=1) == labels)
    assert {**rows["gate+confidence"], "path": "dynamic"}.items() <= rows["dynamic"].items()
    curve = rows["gate"]["curve"]
    assert any(
        point["bias"] == 0
        and point["top1"] == rows["gate"]["top1"]
        and point["madds"] == pytest.approx(rows["gate"]["madds"])
        for point in curve
    )
    slimming = network.costs(0).slimming
    assert curve[0]["madds"] < rows["gate"]["madds"] < curve[-1]["madds"]
    assert curve[-1]["madds"] <= network.madds(3) + slimming


def test_the_wide_front_does_not_change_the_curve_of_the_gate():
    network, labels = labelled_network()
    curves = []
    for more in ([], ["largest"]):
        rows = evaluate_paths(network, (IMAGES, labels), paths=[0, 1, 2, 3, *more])
        curves.append(next(row["curve"] for row in rows if row["path"] == "gate"))
    assert curves[0] == curves[1]


def test_steps_measure_confidence_without_trained_gates():
    network, labels = labelled_network()
    network.gates_trained = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = evaluate_paths(network, (IMAGES, labels), steps=(1, 3))
    assert [row["path"] for row in rows] == [0, 1, 2, 3, "confidence"]
    network.routing, network.confidence_steps = "confidence", (1, 3)
    assert rows[-1]["madds"] == evaluate_paths(network, (IMAGES, labels), [])[-1]["madds"]
    with pytest.raises(ValueError, match="Received: routings=\\('gates',\\)"):
        evaluate_paths(network, (IMAGES, labels), routings=("gates",))


def test_the_interval_of_a_gain_is_that_of_paired_images():
    generator = np.random.default_rng(0)
    static = generator.random((2, 2000)) < 0.8
    # The routed network is right where both static paths are, and in 5 % of the other images.
    hits = static.all(0) | (generator.random(2000) < 0.2)
    madds = np.full(2000, 15)
    low, high = gain_interval(hits, madds, static, [10, 20])
    gain = hits.mean() - static.mean()
    deviation = np.std(hits - static.mean(0)) / 2000**0.5
    assert low == pytest.approx(gain - 1.96 * deviation, abs=0.3 * deviation)
    assert high == pytest.approx(gain + 1.96 * deviation, abs=0.3 * deviation)
    assert (low, high) == gain_interval(hits, madds, static, [10, 20])


def test_the_interval_of_a_gain_takes_the_line_at_the_madds_of_each_resample():
    generator = np.random.default_rng(1)
    # Hard images cost more, and few static paths get them right.
    hard = generator.random(3000) < 0.4
    static = np.stack([~hard | (generator.random(3000) < p) for p in (0.2, 0.7)])
    hits, madds = static[1], np.where(hard, 25, 10)
    low, high = gain_interval(hits, madds, static, [10, 20])
    # The delta method: the line moves by its slope times the change of the mean MAdds.
    right = static.mean(1)
    share, slope = (madds.mean() - 10) / 10, (right[1] - right[0]) / 10
    line = static[0] + share * (1.0 * static[1] - static[0])
    deviation = np.std(hits - line - slope * madds) / 3000**0.5
    gain = hits.mean() - np.interp(madds.mean(), [10, 20], right)
    assert low == pytest.approx(gain - 1.96 * deviation, abs=0.3 * deviation)
    assert high == pytest.approx(gain + 1.96 * deviation, abs=0.3 * deviation)
    # Without the slope the interval would be another.
    assert abs(np.std(hits - line) / 3000**0.5 - deviation) > 0.05 * deviation
