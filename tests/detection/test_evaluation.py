"""Evaluation of a detector at several widths."""

import matplotlib.image
import numpy as np
import pytest
from detection_scenes import CLASSES, scenes

from keras_dsnet.detection import (
    DetectionMetric,
    detection_evaluation_pipeline,
    evaluate_detection,
    load_detection_source,
    plot_detections,
    plot_precision_recall,
)


class Detector:
    """Finds every object of the batches that it is shown, at width 0 only the first of each."""

    num_widths, classes, gates_trained = 2, 2, True

    def __init__(self, dataset):
        self.answers = {images.numpy().tobytes(): target for images, target in dataset}
        self.asked = []

    def madds(self, path):
        return 100 * (1 + path)

    def detect(self, images, path=None, score_threshold=0.05, max_detections=200):
        self.asked.append((path, score_threshold, max_detections))
        target = self.answers[np.asarray(images).tobytes()]
        count = 1 if path == 0 else None
        return [
            {
                "boxes": boxes[:count],
                "classes": classes[:count],
                "scores": np.full(len(boxes[:count]), 0.5),
                "path": index % 2,
            }
            for index, (boxes, classes) in enumerate(
                zip(target["boxes"].numpy(), target["classes"].numpy())
            )
        ]


@pytest.fixture
def batches(voc_folder):
    return detection_evaluation_pipeline(
        load_detection_source(voc_folder),
        image_size=24,
        batch_size=3,
        preprocess=lambda images: images,
    )


@pytest.mark.parametrize("metric", ["voc07", "voc"])
def test_rows_of_widths_and_of_the_routed_network(batches, metric):
    detector = Detector(batches)
    metrics = {}
    rows = evaluate_detection(
        detector, batches, metric=metric, class_names=["cat", "dog"], metrics=metrics
    )
    assert [(row["path"], row["madds"]) for row in rows[:2]] == [(0, 100), (1, 200)]
    assert rows[0]["ap"] == {"cat": 1.0, "dog": 0.0}
    assert rows[1]["map"] == rows[2]["map"] == 1
    # Of three images a batch, the second one takes width 1.
    assert (rows[2]["path"], rows[2]["madds"]) == ("dynamic", pytest.approx(400 / 3))
    assert rows[2]["shares"] == [{0: pytest.approx(2 / 3), 1: pytest.approx(1 / 3)}]
    line = rows[0]["map"] + (rows[1]["map"] - rows[0]["map"]) / 3
    assert rows[2]["static_line"] == pytest.approx(line)
    assert rows[2]["gain"] == pytest.approx(1 - line)
    assert 0 <= rows[2]["gain_low"] <= rows[2]["gain"] <= rows[2]["gain_high"] <= 1
    assert "gain" not in rows[1]
    assert {asked[0] for asked in detector.asked} == {0, 1, None}
    assert list(metrics) == [0, 1, "dynamic"]


def test_every_step_that_ran_is_counted_and_routing_by_confidence_has_a_row(batches):
    class Confident(Detector):
        gates_trained, routing = False, "confidence"

        def detect(self, images, path=None, **options):
            found = super().detect(images, path, **options)
            # Every image ran width 0 first.
            return [{**each, "madds": 100 + 200 * each["path"]} for each in found]

    rows = evaluate_detection(Confident(batches), batches)
    assert [row["path"] for row in rows] == [0, 1, "dynamic"]
    assert rows[2]["madds"] == pytest.approx(100 + 200 / 3)
    (row,) = evaluate_detection(Confident(batches), batches, ["dynamic"])
    assert row["gain"] is row["gain_low"] is None


def test_the_largest_path_is_not_on_the_line_between_the_static_paths(batches):
    class WithLargest(Detector):
        def madds(self, path):
            # Between width 0 and the routed network, and as precise as width 1.
            return 110 if path == "largest" else super().madds(path)

    rows = evaluate_detection(WithLargest(batches), batches, [0, "largest", 1, "dynamic"])
    assert rows[1]["map"] == 1
    (*_, expected) = evaluate_detection(Detector(batches), batches)
    assert rows[3] == expected
    assert expected["static_line"] < 1


def test_other_formats_and_fewer_batches(voc_folder):
    settings = {"image_size": 24, "batch_size": 3, "preprocess": lambda images: images}
    source = load_detection_source(voc_folder)
    relative = detection_evaluation_pipeline(source, **settings)
    pixels = detection_evaluation_pipeline(source, **settings, bounding_box_format="xyxy")
    detector = Detector(relative)
    (row,) = evaluate_detection(
        detector, pixels, paths=[1], bounding_box_format="xyxy", num_batches=2
    )
    assert row["ap"] == {"0": 1.0, "1": 1.0}
    assert len(detector.asked) == 2


def test_mistakes_are_named(batches):
    with pytest.raises(ValueError, match="`metric` must be"):
        evaluate_detection(Detector(batches), batches, metric="map")
    with pytest.raises(ValueError, match="`dataset` must have one image or more"):
        evaluate_detection(Detector(batches), [])
    with pytest.raises(ValueError, match="`dataset` never ends: pass `num_batches`"):
        evaluate_detection(Detector(batches), batches.repeat())


def test_boxes_in_pixels_are_not_taken_for_fractions(voc_folder):
    settings = {"image_size": 24, "batch_size": 3, "preprocess": lambda images: images}
    source = load_detection_source(voc_folder)
    pixels = detection_evaluation_pipeline(source, **settings, bounding_box_format="xyxy")
    detector = Detector(detection_evaluation_pipeline(source, **settings))
    with pytest.raises(ValueError, match=r"Received: bounding_box_format='rel_yxyx', and as frac"):
        evaluate_detection(detector, pixels, paths=[1])


def test_a_plot_of_precision(tmp_path):
    metric = DetectionMetric("voc", class_names=[*CLASSES, "none"])
    for target, found in scenes(0, images=8):
        metric.update(target, found)
    figure = plot_precision_recall(metric.curves(), tmp_path / "curves.png", title="A test")
    assert len(figure.axes[0].lines) == len(CLASSES)
    assert matplotlib.image.imread(tmp_path / "curves.png").shape[2] == 4
    with pytest.raises(ValueError, match="needs a class with objects"):
        plot_precision_recall({"none": (np.empty(0), np.empty(0))}, tmp_path / "none.png")


def test_a_sheet_draws_boxes_where_they_are(tmp_path):
    images = np.zeros((3, 20, 30, 3), np.uint8)
    found = {"boxes": [[0.1, 0.2, 0.5, 0.6], [-1] * 4, [0, 0, 1, 1]], "classes": [1, -1, 0]}
    figure = plot_detections(images, [found] * 3, ["cat", "dog"], tmp_path / "sheet.png", columns=2)
    assert len(figure.axes) == 3
    box, whole = figure.axes[0].patches
    assert (*box.get_xy(), box.get_width(), box.get_height()) == pytest.approx((5.5, 1.5, 12, 8))
    assert (whole.get_width(), whole.get_height()) == (30, 20)
    scored = {**found, "scores": [0.9, -1, 0.1]}
    figure = plot_detections(images[:1], [scored], ["cat", "dog"], tmp_path / "one.png")
    assert [text.get_text() for text in figure.axes[0].texts] == ["dog 0.90"]
    with pytest.raises(ValueError, match="1 dicts for 3 images"):
        plot_detections(images, [found], ["cat", "dog"], tmp_path / "none.png")
