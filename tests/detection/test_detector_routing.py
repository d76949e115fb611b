"""Routing of a detector by the confidence in its scores."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny_detectors import detector_images, tiny_detector

from keras_dsnet.detection import calibrate_detector, compare_confidences
from keras_dsnet.detection.confidence import CONFIDENCES, CONFIDENCES_OF_PROBABILITIES
from keras_dsnet.export.detection_runtime import confidence_of
from keras_dsnet.models.costs import section_costs


@pytest.fixture(scope="module")
def detector():
    return tiny_detector()


@pytest.fixture(autouse=True)
def by_gate(request):
    yield
    if "detector" in request.fixturenames:
        detector = request.getfixturevalue("detector")
        detector.routing, detector.confidence = "gate", "largest_score"
        detector.confidence_steps = detector.thresholds = None


def test_confidences_of_known_scores():
    sure = np.log([[[0.98, 0.01, 0.01], [0.01, 0.01, 0.98]]])
    unsure = np.log([[[0.5, 0.4, 0.1], [0.34, 0.33, 0.33]]])
    scores = tf.constant(np.concatenate([sure, unsure]), tf.float32)
    values = {name: confidence(scores).numpy() for name, confidence in CONFIDENCES.items()}
    np.testing.assert_allclose(values["largest_score"], [0.98, 0.4], rtol=1e-5)
    np.testing.assert_allclose(values["clear_scores"], [1, 1 / 4], rtol=1e-5)
    entropies = [-np.sum(np.exp(s) * s, -1).mean() / np.log(3) for s in (sure, unsure)]
    np.testing.assert_allclose(values["low_entropy"], 1 - np.array(entropies), rtol=1e-4)


@pytest.mark.parametrize("confidence", CONFIDENCES)
def test_an_image_goes_on_where_its_confidence_is_small(detector, confidence):
    images = detector_images(8)
    slim, wide = detector(images, path=0), detector(images, path=3)
    detector.routing, detector.confidence = "confidence", confidence
    sure = CONFIDENCES[confidence](slim["scores"]).numpy()
    threshold = float(np.sort(sure)[3:5].mean())
    detector.thresholds = (threshold,)
    goes_on = sure <= threshold
    assert 0 < goes_on.sum() < 8
    assert detector.route(images).numpy()[:, 0].tolist() == np.where(goes_on, 3, 0).tolist()
    outputs = detector(images)
    for name in outputs:
        expected = np.where(goes_on[:, None, None], wide[name], slim[name])
        np.testing.assert_allclose(outputs[name], expected, rtol=1e-3, atol=1e-3)


def test_costs_count_all_that_ran(detector):
    images = detector_images(4)
    front, (table,) = section_costs(detector, (0, 3))
    assert [front + cost for cost in table[0]] == [detector.madds(0), detector.madds(3)]
    detector.routing, detector.thresholds = "confidence", 1.0
    found = detector.detect(images)
    assert {each["madds"] for each in found} == {front + int(table.sum())}
    detector.thresholds = 0.0
    assert {each["madds"] for each in detector.detect(images)} == {detector.madds(0)}
    detector.routing = "gate"
    for each in detector.detect(images):
        assert each["madds"] == detector.madds(each["path"]) + detector.costs(0).slimming
    assert detector.detect(images, path=2)[0]["madds"] == detector.madds(2)


def test_gates_may_choose_where_an_image_starts(detector):
    images = detector_images(8)
    starts = detector.route(images).numpy()[:, 0]
    detector.routing, detector.thresholds = "gate+confidence", 1.0
    assert detector.route(images).numpy()[:, 0].tolist() == [3] * 8
    detector.thresholds = 0.0
    assert detector.route(images).numpy()[:, 0].tolist() == starts.tolist()


def test_settings_are_saved(detector, tmp_path):
    detector.routing, detector.confidence = "confidence", "low_entropy"
    detector.confidence_steps = (0, 1, 3)
    detector.thresholds = (0.25, 0.5)
    detector.replace_routes((0, 1, 3))
    detector.class_names = ("a", "b", "c")
    new = type(detector).from_config(tiny_detector().get_config())
    try:
        detector.save(tmp_path / "d.keras")
        detector.save_weights(tmp_path / "d.weights.h5")
    finally:
        detector.replace_routes(range(4))
    new.load_weights(tmp_path / "d.weights.h5")
    for loaded in (new, keras.models.load_model(tmp_path / "d.keras")):
        assert loaded.routing == "confidence"
        assert loaded.confidence == "low_entropy"
        assert loaded.confidence_steps == (0, 1, 3)
        assert loaded.thresholds == (0.25, 0.5)
        assert loaded.routes == (0, 1, 3) == loaded.backbone.routes
        assert loaded.class_names == ("a", "b", "c")


def test_a_wrong_setting_is_named(detector):
    with pytest.raises(ValueError, match=r"`confidence` must be 'largest_score' or .*'margin'"):
        detector.confidence = "margin"
    with pytest.raises(ValueError, match="routing='both'"):
        detector.routing = "both"
    with pytest.raises(ValueError, match="thresholds=2"):
        detector.thresholds = 2
    with pytest.raises(ValueError, match="`routes` must be ascending widths from 0 to 3"):
        detector.routes = (1, 9)


def test_confidences_are_compared_by_the_images_with_missed_boxes(detector):
    images = detector_images(8)
    boxes, probabilities = (values.numpy() for values in detector.decode(detector(images, path=0)))
    best = probabilities.max(-1).argmax(1)
    rows = np.arange(8)
    target = {"boxes": boxes[rows, best][:, None], "classes": probabilities[rows, best].argmax(-1)}
    target["classes"] = target["classes"][:, None]
    # The third of these images has a box of no anchor, the fourth has padding only.
    target["boxes"][2], target["boxes"][3], target["classes"][3] = 1.5, -1, -1
    largest = probabilities.max((1, 2))
    threshold = float(largest.min()) / 2
    missed = np.arange(8) == 2
    batches = [
        (images[part], {name: values[part] for name, values in target.items()})
        for part in (slice(0, 5), slice(5, 8))
    ]
    compared = compare_confidences(detector, batches, 0, score_threshold=threshold)
    assert {row["confidence"] for row in compared} == set(CONFIDENCES)
    assert [row["auc"] for row in compared] == sorted(row["auc"] for row in compared)[::-1]
    (row,) = (row for row in compared if row["confidence"] == "largest_score")
    expected = np.mean((largest[2] < largest[~missed]) + 0.5 * (largest[2] == largest[~missed]))
    assert row == {
        "confidence": "largest_score",
        "auc": pytest.approx(expected),
        "missed": 1 / 8,
        "images": 8,
    }
    # Nobody has to find a box that is difficult.
    for _, part in batches:
        part["difficult"] = (part["boxes"] == 1.5).all(-1)
    assert compare_confidences(detector, batches, 0, score_threshold=threshold)[0]["missed"] == 0
    nothing = compare_confidences(detector, batches[1:], 0, score_threshold=threshold)
    assert nothing[0]["auc"] is None
    with pytest.raises(ValueError, match="`dataset` must have one image or more"):
        compare_confidences(detector, [])
    with pytest.raises(ValueError, match="`dataset` never ends: pass `num_batches`"):
        compare_confidences(detector, itertools.cycle(batches))


def test_a_threshold_keeps_the_budget(detector):
    detector.routing, detector.confidence_steps = "confidence", (0, 2)
    images = detector_images(8)
    costs = {}
    for threshold in (0.0, 1.0):
        detector.thresholds = (threshold,)
        (costs[threshold],) = {found["madds"] for found in detector.detect(images)}
    budget = costs[0.0] + 0.4 * (costs[1.0] - costs[0.0])
    row = calibrate_detector(detector, [images[:4], (images[4:], {})], budget)
    madds = [found["madds"] for found in detector.detect(images)]
    assert detector.thresholds == (row["threshold"],)
    assert row["share"] == 3 / 8
    assert np.mean(madds) == row["madds"] < budget
    # The images that go on are those of which the first step is least sure.
    sure = CONFIDENCES["largest_score"](detector(images, path=0)["scores"]).numpy()
    assert set(np.argsort(sure)[:3]) == set(np.flatnonzero(np.array(madds) == costs[1.0]))
    assert calibrate_detector(detector, [images], costs[1.0])["threshold"] == 1.0
    assert calibrate_detector(detector, [images], costs[0.0])["threshold"] == 0.0
    same = calibrate_detector(detector, [np.tile(images[:1], (4, 1, 1, 1))], budget)
    assert same == {"threshold": 0.0, "share": 0.0, "madds": costs[0.0]}


def test_a_budget_that_cannot_be_kept_is_refused(detector):
    detector.confidence_steps = (0, 1, 2)
    with pytest.raises(ValueError, match=r"must be two widths. Received: .*\(0, 1, 2\)"):
        calibrate_detector(detector, [], 1e9)
    detector.confidence_steps = (0, 2)
    with pytest.raises(ValueError, match=r"`max_madds` must be .* of width 0. Received: .*=5"):
        calibrate_detector(detector, [], 5)
    with pytest.raises(ValueError, match="`dataset` must have one image or more"):
        calibrate_detector(detector, [], 1e12)
    with pytest.raises(ValueError, match="`dataset` never ends: pass `num_batches`"):
        calibrate_detector(detector, itertools.repeat(detector_images(2)), 1e12)


@pytest.mark.parametrize("kind", CONFIDENCES)
def test_a_score_that_is_no_number_is_no_confidence(kind):
    scores = np.full((1, 4, 3), 0.25, "float32")
    scores[0, 1, 2] = np.nan
    assert confidence_of(scores, kind) == 0
    sure = CONFIDENCES_OF_PROBABILITIES[kind](tf.constant(scores)).numpy()
    assert not sure[0] > 0
