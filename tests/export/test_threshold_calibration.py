"""Tests a file's own thresholds: per call, within bounds and budgets, and chosen by calibration."""

import numpy as np
import pytest
from exported import Exported
from routed_networks import random_images, small_network
from tiny_families import TINY_RESNET, tiny_images, tiny_network

from keras_dsnet.export import DynamicInterpreter
from keras_dsnet.export.threshold_calibration import _StepRuns, walk_steps
from keras_dsnet.models.costs import section_costs

IMAGES = random_images(40)
LABELS = np.random.default_rng(0).integers(0, 5, len(IMAGES))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    options = {"steps": (0, 1, 3), "thresholds": (0.27, 0.23), "verbose": False}
    return Exported(small_network(), folder, routing="confidence", **options)


@pytest.fixture
def interpreter(exported):
    return DynamicInterpreter(exported.filename)


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    network = tiny_network(TINY_RESNET)
    options = {"routing": "gate+confidence", "steps": (0, 2), "thresholds": 0.3, "verbose": False}
    return Exported(network, tmp_path_factory.mktemp("gated"), **options)


def madds_of(network, start, ran):
    """Returns the MAdds of a path and of further widths after the same trunk."""
    trunk = section_costs(network, (0,))[0]
    return network.madds(start) + sum(network.madds(width) - trunk for width in ran)


@pytest.mark.slow
def test_the_metadata_name_steps_thresholds_and_shared_madds(interpreter, exported):
    metadata = interpreter.metadata
    assert metadata["routing"] == "confidence"
    assert interpreter.steps == (0, 1, 3)
    assert interpreter.thresholds == (0.27, 0.23)
    assert metadata["trunk_madds"] == section_costs(exported.network, (0,))[0]


def test_thresholds_of_a_call_replace_those_of_the_file(interpreter):
    for thresholds, path in ((0, (0,)), ((1, 0), (1,)), (1.0, (3,)), (np.float32([1, 1]), (3,))):
        assert {interpreter.run(image, thresholds=thresholds)[1] for image in IMAGES[:4]} == {path}
    stored = [interpreter.run(image) for image in IMAGES]
    given = [interpreter.run(image, thresholds=(0.27, 0.23)) for image in IMAGES]
    assert [path for _, path in stored] == [path for _, path in given]
    assert len({path for _, path in stored}) > 1


@pytest.mark.parametrize(
    "thresholds", [1.5, -0.1, (0.5, 0.5, 0.5), "a", np.nan, (0.5, None), [0.5], "0.5", [[0.5, 0.5]]]
)
def test_wrong_thresholds_are_refused(interpreter, thresholds):
    with pytest.raises(ValueError, match=r"`thresholds` must be 2 numbers from 0 to 1.*Received"):
        interpreter.run(IMAGES[0], thresholds=thresholds)


def test_an_upper_bound_holds_with_other_thresholds(interpreter):
    assert {interpreter.run(i, max_width=1, thresholds=1)[1] for i in IMAGES[:4]} == {(1,)}
    assert {interpreter.run(i, max_width=2, thresholds=1)[1] for i in IMAGES[:4]} == {(1,)}
    assert {interpreter.run(i, max_width=0, thresholds=1)[1] for i in IMAGES[:4]} == {(0,)}
    with pytest.raises(ValueError, match="Bounds of the start need the thresholds of the file"):
        interpreter.run(IMAGES[0], min_width=1, thresholds=1)
    for width in (0, 1, 3):
        bounds = {"min_width": width, "max_width": width}
        assert interpreter.run(IMAGES[0], thresholds=1, **bounds)[1] == (width,)


def test_a_budget_counts_all_steps_that_may_come(interpreter):
    interpreter.latency_ms, interpreter.trunk_ms = {0: 2.0, 1: 3.0, 3: 5.0}, 1.0
    # Up to each step: 2, 2 + 2, 2 + 2 + 4.
    for budget, widest in ((2.0, 0), (3.9, 0), (4.0, 1), (7.9, 1), (8.0, 3)):
        assert interpreter.widest_within(budget) == widest
        assert {interpreter.run(i, budget_ms=budget, thresholds=1)[1] for i in IMAGES[:3]} == {
            (widest,)
        }
    # From a start at width 1: 3, 3 + 4.
    assert interpreter.widest_within(6.9, min_width=1) == 1
    assert interpreter.widest_within(7.0, min_width=1) == 3
    with pytest.warns(UserWarning, match="No route fits `budget_ms`"):
        assert interpreter.widest_within(1.0) == 0


@pytest.mark.long
def test_a_start_by_gates_may_be_the_costliest(gated):
    interpreter = DynamicInterpreter(gated.filename)
    interpreter.latency_ms, interpreter.trunk_ms = {0: 2.0, 1: 3.0, 2: 5.0}, 1.0
    # A start at width 1, then width 2: 3 + 4.
    for budget, widest in ((2.9, 0), (3.0, 1), (6.9, 1), (7.0, 2)):
        assert interpreter.widest_within(budget) == widest


def test_the_shared_time_follows_from_a_run_of_all_steps(interpreter):
    latencies = interpreter.calibrate_latency(rounds=2, runs=2)
    assert list(latencies) == [0, 1, 3]
    assert 0 <= interpreter.trunk_ms <= min(latencies.values())
    # Each of the three steps alone runs the trunk too; all of them run it once.
    times = {0: 2.0, 1: 3.0, 3: 5.0, "all": 8.0}
    assert interpreter._trunk_of(times, IMAGES[0]) == pytest.approx(1.0)


def test_every_step_of_an_image_is_run_and_counted(interpreter, exported):
    network = exported.network
    for image in IMAGES[:6]:
        runs = walk_steps(interpreter, image)
        assert [run["width"] for run in runs] == [0, 1, 3]
        assert [run["leaves"] for run in runs] == [0, 1, -1]
        assert [run["madds"] for run in runs] == [
            madds_of(network, 0, ran) for ran in ((), (1,), (1, 3))
        ]
        for run in runs:
            logits = network.run_sections(image[None], network.resolve_path(run["width"])).numpy()
            assert run["class"] == logits.argmax()
            assert run["confidence"] == pytest.approx(
                np.exp(logits - logits.max()).max() / np.exp(logits - logits.max()).sum(), abs=1e-5
            )


@pytest.mark.long
def test_starts_of_gates_are_counted_with_their_heads(gated):
    interpreter, network = DynamicInterpreter(gated.filename), gated.network
    starts = network.route(tiny_images(8)).numpy().tolist()
    assert len(set(map(tuple, starts))) > 1
    for image, start in zip(tiny_images(8), starts):
        runs = walk_steps(interpreter, image)
        slimming = network.costs(tuple(start)).slimming
        assert runs[0]["madds"] == network.madds(tuple(start)) + slimming
        expected = [max(start)] if max(start) == 2 else [max(start), 2]
        assert [run["width"] for run in runs] == expected
        if len(runs) > 1:
            assert runs[1]["madds"] == madds_of(network, tuple(start), (2,)) + slimming


def test_a_threshold_is_between_its_neighbours_in_float32():
    # Half-way between the two largest float32 numbers up to 1 is 1, which means "always".
    confidence = np.array([0.5, np.nextafter(np.float32(1), np.float32(0)), 1, 1], "float64")
    runs = object.__new__(_StepRuns)
    runs._runs = {"leaves": np.zeros(4, int), "confidence": confidence}
    candidates = runs._candidates(0, 100)
    np.testing.assert_array_equal(candidates, candidates.astype("float32"))
    assert candidates[0] == 0
    assert candidates[-1] == 1
    assert 0.5 < candidates[1] < candidates[2] < 1
    assert [int((confidence <= t).sum()) for t in candidates[1:3]] == [1, 2]


@pytest.mark.slow
def test_one_threshold_may_lead_over_two_steps(tmp_path):
    network = small_network(routes=(0, 1))
    options = {"routing": "gate+confidence", "steps": (1, 3), "verbose": False}
    interpreter = DynamicInterpreter(Exported(network, tmp_path, **options).filename)
    found = [walk_steps(interpreter, image) for image in IMAGES]
    assert {tuple(run["width"] for run in runs) for runs in found} == {(0, 1, 3), (1, 3)}
    for image, runs in zip(IMAGES, found):
        for threshold in (0.0, 0.24, 0.27, 0.3, 1.0):
            goes_on = [run["confidence"] <= threshold < 1 or threshold == 1 for run in runs[:-1]]
            end = ([*goes_on, False]).index(False) if threshold else 0
            if all(abs(run["confidence"] - threshold) > 1e-6 for run in runs):
                assert interpreter.run(image, thresholds=threshold)[1] == (runs[end]["width"],)


@pytest.mark.parametrize(
    "limit",
    [{"max_madds": 30e3}, {"max_drop": 0.05}, {"max_latency_ms": 5.0}],
    ids=lambda limit: next(iter(limit)),
)
def test_calibration_meets_a_limit_on_the_images(interpreter, limit):
    interpreter.latency_ms, interpreter.trunk_ms = {0: 2.0, 1: 3.0, 3: 5.0}, 1.0
    if "max_madds" in limit:
        limit = {"max_madds": 1.5 * interpreter.metadata["routes"][0]["madds"]}
    rows = interpreter.calibrate_confidence(IMAGES, LABELS, **limit)
    chosen = [row for row in rows if row["thresholds"] == interpreter.thresholds]
    assert len(chosen) == 1
    # What the file then does is what the row says.
    results = [interpreter.run(image) for image in IMAGES]
    widths = np.array([path[0] for _, path in results])
    top1 = np.mean([output.argmax() for output, _ in results] == LABELS)
    assert top1 == pytest.approx(chosen[0]["top1"])
    assert chosen[0]["shares"] == {
        width: pytest.approx((widths == width).mean()) for width in sorted(set(widths.tolist()))
    }
    every = [interpreter.run(image, thresholds=1)[0].argmax() for image in IMAGES]
    if "max_drop" in limit:
        assert top1 >= np.mean(every == LABELS) - 0.05
        assert chosen[0] == next(
            row for row in rows if row["top1"] >= np.mean(every == LABELS) - 0.05
        )
    else:
        key = next(iter(limit)).removeprefix("max_")
        within = [row for row in rows if row[key] <= limit[f"max_{key}"]]
        assert chosen[0]["top1"] == max(row["top1"] for row in within)
    assert [row["madds"] for row in rows] == sorted(row["madds"] for row in rows)
    assert [row["top1"] for row in rows] == sorted(row["top1"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Exactly one of"),
        ({"max_madds": 1e9, "max_drop": 0.1}, "Exactly one of"),
        ({"max_drop": -0.1}, "Exactly one of"),
        ({"max_madds": True}, "Exactly one of"),
        ({"max_madds": 10.0}, "No thresholds meet `max_madds`; the least possible is"),
        ({"max_latency_ms": 10.0}, r"call `calibrate_latency\(\)` first"),
        ({"max_drop": 0.1, "labels": LABELS[:3]}, "needs images and an int class for each"),
        ({"max_drop": 0.1, "labels": LABELS / 2}, "needs images and an int class for each"),
        ({"max_drop": 0.1, "images": [], "labels": []}, "needs images and an int class for each"),
        ({"max_drop": 0.1, "labels": LABELS[:8] + 99}, r"classes of the file, 0 to \d+\. Received"),
        ({"max_drop": 0.1, "labels": [0] * 7 + [-1]}, r"Received: labels\[7\]=-1"),
    ],
)
def test_wrong_arguments_of_a_calibration_are_refused(interpreter, arguments, message):
    arguments = {"images": IMAGES[:8], "labels": LABELS[:8], **arguments}
    with pytest.raises(ValueError, match=message):
        interpreter.calibrate_confidence(**arguments)
    assert interpreter.thresholds == (0.27, 0.23)


@pytest.mark.slow
def test_a_file_that_routes_by_its_gates_has_no_thresholds(tmp_path):
    network = small_network(routes=(0,))
    interpreter = DynamicInterpreter(Exported(network, tmp_path, verbose=False).filename)
    assert interpreter.steps == ()
    assert interpreter.thresholds is None
    with pytest.raises(ValueError, match="`thresholds` are for files that route by confidence"):
        interpreter.run(IMAGES[0], thresholds=0.5)
    with pytest.raises(ValueError, match="The file has no thresholds"):
        interpreter.calibrate_confidence(IMAGES[:2], [0, 1], max_drop=0.1)
