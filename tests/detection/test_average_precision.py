"""Average precision, by hand and against other implementations."""

import contextlib
import io
import json

import numpy as np
import pytest
from detection_scenes import CLASSES, HEIGHT, WIDTH, scenes

from keras_dsnet.detection import DetectionMetric, class_table
from keras_dsnet.detection.average_precision import average_precision

BOX, OTHER, FAR = [0.0, 0.0, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9], [0.0, 0.6, 0.2, 0.8]
# AP of classes a, b, c and the mean on `scenes(seed)`, computed by GluonCV 0.10.5
# (VOC07MApMetric and VOCMApMetric) from boxes in pixels whose last pixel is inside.
GLUONCV = {
    ("voc07", 0): (0.362738, 0.209335, 0.412333, 0.328135),
    ("voc", 0): (0.350267, 0.196629, 0.400456, 0.315784),
    ("voc07", 1): (0.49334, 0.302512, 0.39081, 0.395554),
    ("voc", 1): (0.494791, 0.307201, 0.395735, 0.399242),
    ("voc07", 3): (0.335897, 0.512471, 0.442778, 0.430382),
    ("voc", 3): (0.319057, 0.521144, 0.457366, 0.432522),
}


def measured(metric, pairs, class_names=CLASSES):
    counted = DetectionMetric(metric, class_names=class_names)
    for target, detections in pairs:
        counted.update(target, detections)
    return counted


def one_image(target, detections, metric="voc"):
    return measured(metric, [(target, detections)], ["cat", "dog"]).result()


@pytest.mark.parametrize(("metric", "seed"), list(GLUONCV))
def test_voc_equals_gluoncv_with_difficult_objects(metric, seed):
    result = measured(metric, scenes(seed)).result()
    np.testing.assert_allclose(
        [*result["ap"].values(), result["map"]], GLUONCV[metric, seed], atol=1e-6
    )


def test_half_of_the_objects_found():
    result = one_image(
        {"boxes": [BOX, OTHER], "classes": [0, 0]},
        {"boxes": [BOX, FAR], "classes": [0, 0], "scores": [0.5, 0.9]},
    )
    # The wrong detection comes first: a precision of 1/2 up to a recall of 1/2.
    assert result == {"map": 0.25, "ap": {"cat": 0.25, "dog": None}}


def test_only_the_best_detection_of_an_object_is_right():
    metric = measured(
        "voc",
        [
            (
                {"boxes": [BOX], "classes": [0]},
                {"boxes": [BOX, BOX], "classes": [0, 0], "scores": [0.4, 0.9]},
            )
        ],
        ["cat"],
    )
    recall, precision = metric.curves()["cat"]
    assert recall.tolist() == [1, 1]
    assert precision.tolist() == [1, 0.5]


def test_difficult_objects_count_neither_as_found_nor_as_missed():
    target = {"boxes": [BOX, OTHER], "classes": [0, 0], "difficult": [False, True]}
    found = {"boxes": [BOX], "classes": [0], "scores": [0.5]}
    assert one_image(target, found)["map"] == 1
    found = {"boxes": [OTHER, BOX], "classes": [0, 0], "scores": [0.9, 0.5]}
    assert one_image(target, found)["map"] == 1


def test_a_class_of_only_difficult_objects_does_not_count():
    target = {"boxes": [BOX, OTHER], "classes": [0, 1], "difficult": [False, True]}
    found = {"boxes": [BOX, FAR], "classes": [0, 1], "scores": [0.9, 0.5]}
    assert one_image(target, found) == {"map": 1.0, "ap": {"cat": 1.0, "dog": None}}


def test_no_detection_and_padding():
    target = {"boxes": [BOX, [-1] * 4], "classes": [0, -1]}
    nothing = {"boxes": [], "classes": [], "scores": []}
    assert one_image(target, nothing)["map"] == 0
    padded = {"boxes": [BOX, [-1] * 4], "classes": [0, -1], "scores": [0.9, -1]}
    assert one_image(target, padded)["map"] == 1


def test_the_devkit_counts_a_recall_of_three_tenths_below_its_fourth_level():
    recall, precision = np.array([0.1, 0.2, 3 / 10]), np.ones(3)
    assert average_precision(recall, precision, 11) == pytest.approx(3 / 11)
    assert average_precision(recall, precision) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("target", "found", "message"),
    [
        ({"boxes": [BOX]}, {}, "`target` must have 'boxes' and 'classes'"),
        ({"boxes": [BOX], "classes": [0, 1]}, {}, r"one entry per box. Received: .*'classes': 2"),
        ({"boxes": [BOX], "classes": [2]}, {}, "`target` must have classes from 0 to 1. Rec.*: 2"),
        (
            {"boxes": [BOX], "classes": [1]},
            {"boxes": [BOX], "classes": [1]},
            "`detections` must have 'scores'",
        ),
    ],
    ids=["keys", "lengths", "class", "scores"],
)
def test_a_wrong_image_is_refused(target, found, message):
    with pytest.raises(ValueError, match=message):
        one_image(target, found)


def test_wrong_metrics_are_refused():
    with pytest.raises(ValueError, match=r"`metric` must be 'voc07', 'voc', 'coco'\. Rec"):
        DetectionMetric("voc12", class_names=["cat"])
    with pytest.raises(ValueError, match="A metric needs one image or more"):
        DetectionMetric("voc", class_names=["cat"]).result()


def _by_files(pairs, folder, evaluated_by):
    """Returns the numbers of COCO for json files, as its users write them."""
    images, annotations, results = [], [], []
    for image, (target, found) in enumerate(pairs):
        images.append({"id": image, "width": WIDTH, "height": HEIGHT, "file_name": f"{image}.jpg"})
        for box, label, crowd in zip(target["boxes"], target["classes"], target["difficult"]):
            corners = _box(box)
            annotations.append(
                {
                    "id": 1 + len(annotations),
                    "image_id": image,
                    "category_id": 10 + int(label),
                    "bbox": corners,
                    "area": corners[2] * corners[3],
                    "iscrowd": int(crowd),
                }
            )
        results += [
            {"image_id": image, "category_id": 10 + int(label), "bbox": _box(box), "score": score}
            for box, label, score in zip(found["boxes"], found["classes"], found["scores"].tolist())
        ]
    categories = [{"id": 10 + index, "name": name} for index, name in enumerate(CLASSES)]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    coco, evaluation = evaluated_by
    with contextlib.redirect_stdout(io.StringIO()):
        known = coco(str(folder / "truth.json"))
        evaluated = evaluation(known, known.loadRes(str(folder / "results.json")), "bbox")
        evaluated.evaluate()
        evaluated.accumulate()
        evaluated.summarize()
    return evaluated.stats[:6]


def _box(box):
    top, left, bottom, right = np.asarray(box) * [HEIGHT, WIDTH, HEIGHT, WIDTH]
    return [float(left), float(top), float(right - left), float(bottom - top)]


NUMBERS = ("map", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


@pytest.mark.parametrize("seed", [0, 1])
def test_coco_equals_pycocotools_on_files(seed, tmp_path):
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    pairs = scenes(seed)
    expected = _by_files(pairs, tmp_path, (COCO, COCOeval))
    result = measured("coco", pairs).result()
    np.testing.assert_allclose([result[name] for name in NUMBERS], expected, atol=1e-6)
    assert 0.05 < result["map"] < result["ap50"] < 1
    assert result["map"] == pytest.approx(np.mean(list(result["ap"].values())))


def test_coco_prints_nothing_and_gives_curves(capsys):
    pytest.importorskip("pycocotools")
    metric = measured("coco", scenes(0))
    metric.result()
    recall, precision = metric.curves()["a"]
    assert len(recall) == len(precision) == 101
    assert capsys.readouterr() == ("", "")


def test_coco_without_an_object_or_a_detection():
    pytest.importorskip("pycocotools")
    nothing = {"boxes": [], "classes": [], "scores": []}
    result = one_image({"boxes": [BOX], "classes": [0]}, nothing, "coco")
    assert (result["map"], result["ap"]) == (0.0, {"cat": 0.0, "dog": None})
    assert one_image({"boxes": [], "classes": []}, nothing, "coco")["map"] is None


def test_the_table_of_classes_has_the_best_first():
    result = {"map": 0.5, "ap": {"cat": 0.4, "dog": None, "elk": 0.6}}
    names = [row["class"] for row in class_table(result)]
    assert names == ["elk", "cat", "dog", "mean"]


@pytest.mark.parametrize("metric", ["voc07", "voc"])
def test_a_resample_is_the_metric_of_its_images(metric):
    images = scenes(3, images=6)
    names = [*CLASSES, "none"]
    every = DetectionMetric(metric, class_names=names)
    for target, found in images:
        every.update(target, found)
    counts = np.array([2, 0, 1, 0, 3, 1])
    drawn = DetectionMetric(metric, class_names=names)
    for (target, found), count in zip(images, counts, strict=True):
        for _ in range(count):
            drawn.update(target, found)
    assert every.resampled_map(counts) == pytest.approx(drawn.result()["map"], abs=1e-12)
    assert every.resampled_map(np.ones(6)) == every.result()["map"]
    assert every.resampled_map(np.zeros(6)) is None
    with pytest.raises(ValueError, match=r"one for each image. Received: an array of shape"):
        every.resampled_map(counts[:2])


def test_a_class_is_missed_if_only_ignored_objects_of_it_were_found():
    target = {"boxes": [BOX, OTHER], "classes": [0, 0], "difficult": [False, True]}
    metric = DetectionMetric("voc", class_names=["cat"])
    metric.update(target, {"boxes": [OTHER], "classes": [0], "scores": [0.9]})
    assert metric.result() == {"map": 0.0, "ap": {"cat": 0.0}}
