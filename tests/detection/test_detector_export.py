"""Files of detectors: what they return, how they route, what `DynamicInterpreter` makes of it."""

import ast
import pathlib
import re
import zipfile

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras_dsnet.applications import DSMobileNet
from routed_networks import SHORT_SPEC
from tiny_detectors import SIZE, detector_images, tiny_detector

from keras_dsnet.detection import FSSD
from keras_dsnet.detection.boxes import suppress
from keras_dsnet.export import DynamicInterpreter, detection_runtime, quantize_aware
from keras_dsnet.export.detection_runtime import select_boxes

IMAGES = detector_images(6)
ROUTES = (0, 3)
# No detection is left out, so that equal scores do not decide which.
MOST = 1000


def detector_of(**options):
    """Returns a detector with few layers, whose scores and boxes are not extreme."""
    detector = tiny_detector(
        spec=SHORT_SPEC, classes=2, class_names=("cat", "dog"), pyramid=(12, 8), **options
    )
    for layer in detector.head_layers:
        if layer.name.startswith(("scores", "boxes")) and layer.name.endswith("conv"):
            layer.kernel.assign(0.2 * layer.kernel)
    return detector


def export(detector, folder, **options):
    """Returns the name of a file and the report of the export."""
    filename = folder / "d.tflite"
    return filename, detector.export(filename, format="litert", verbose=False, **options)


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    detector = detector_of()
    detector.replace_routes(ROUTES)
    return detector, *export(detector, tmp_path_factory.mktemp("gated"))


@pytest.fixture(scope="module")
def confident(tmp_path_factory):
    detector = detector_of(head="light", confidence="low_entropy")
    detector.confidence_steps = ROUTES
    detector.routing = "confidence"
    folder = tmp_path_factory.mktemp("confident")
    return detector, *export(detector, folder, layout="fast")


def decoded(detector, images, path):
    boxes, scores = detector.decode(detector(images, path=path))
    return {"boxes": boxes.numpy(), "scores": scores.numpy()}


def check_same(results, expected):
    for name, values in expected.items():
        outputs = np.concatenate([result[name] for result in results])
        assert outputs.dtype == np.float32
        largest = np.abs(values).max()
        np.testing.assert_allclose(outputs, values, rtol=0, atol=1e-4 * largest)


def check_detections(found, expected):
    assert found["path"] == expected["path"]
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-4)
    # Nearly equal scores may be in another order.
    for label, score, box in zip(found["classes"], found["scores"], found["boxes"], strict=True):
        same = (expected["classes"] == label) & (np.abs(expected["scores"] - score) < 1e-4)
        assert np.abs(expected["boxes"][same] - box).max(1).min() < 1e-3


@pytest.mark.slow
def test_a_file_returns_the_boxes_and_scores_of_every_route(gated):
    detector, filename, report = gated
    runner = Interpreter(str(filename)).get_signature_runner("bounded")
    assert [row["path"] for row in report["routes"]] == list(ROUTES)
    with zipfile.ZipFile(filename) as archive:
        assert archive.read("labels.txt").split() == [b"cat", b"dog"]
    for width in ROUTES:
        bound = np.array([width], "int32")
        results = [runner(image=image[None], min_width=bound, max_width=bound) for image in IMAGES]
        assert {name: result.shape for name, result in results[0].items()} == {
            "boxes": (1, len(detector.anchors), 4),
            "scores": (1, len(detector.anchors), 2),
            "path": (1,),
        }
        check_same(results, decoded(detector, IMAGES, width))


def test_a_gate_in_the_file_chooses_as_that_of_the_detector(gated):
    detector, filename, _ = gated
    interpreter = DynamicInterpreter(filename)
    expected = detector.detect(IMAGES, max_detections=MOST)
    assert {own["path"] for own in expected} == {(width,) for width in ROUTES}
    for image, own in zip(IMAGES, expected, strict=True):
        check_detections(interpreter.detect(image, max_detections=MOST), own)
    few = {"score_threshold": 0.4, "iou_threshold": 0.2, "max_detections": 5}
    found = interpreter.detect(IMAGES[0], **few, min_width=3, max_width=3)
    check_detections(found, detector.detect(IMAGES[:1], path=3, **few)[0])
    assert 0 < len(found["scores"]) <= 5


@pytest.mark.slow
def test_an_image_goes_on_by_the_confidence_of_the_detector(confident):
    detector, filename, _ = confident
    interpreter = DynamicInterpreter(filename)
    tuned = Interpreter(str(filename)).get_signature_runner("tuned")
    never = np.zeros(1, "float32")
    slim = [tuned(image=image[None], thresholds=never)["confidence"][0] for image in IMAGES]
    expected = detector._confidence_of(detector(IMAGES, path=0)).numpy()
    np.testing.assert_allclose(slim, expected, atol=1e-5)
    threshold = float(np.sort(expected)[2:4].mean())
    detector.thresholds = (threshold,)
    paths = detector.route(IMAGES).numpy()
    assert 0 < np.count_nonzero(paths) < len(IMAGES)
    for image, own in zip(IMAGES, detector.detect(IMAGES, max_detections=MOST), strict=True):
        check_detections(interpreter.detect(image, thresholds=threshold, max_detections=MOST), own)
    slim = interpreter.detect(IMAGES[0], max_width=0, max_detections=MOST)
    check_detections(slim, detector.detect(IMAGES[:1], 0, max_detections=MOST)[0])
    assert interpreter.metadata["confidence"] == "low_entropy"


def test_a_kernel_of_the_head_is_stored_once_for_all_routes(gated, confident):
    for detector, _, report in (gated, confident):
        shared = report["shared"]
        head = sum(4 * layer.kernel.shape.num_elements() for layer in _head_convs(detector))
        assert shared["parts_apart"] - shared["constants"] >= head


def _head_convs(detector):
    return detector.file_task().static_layers


@pytest.mark.parametrize("input_type", [pytest.param("float32", marks=pytest.mark.long), "uint8"])
def test_int8_scores_and_boxes_have_scales_of_their_own(input_type, tmp_path):
    detector = detector_of()
    pixels = np.random.default_rng(0).integers(0, 256, (16, SIZE, SIZE, 3), "uint8")
    images = detector.preprocess_input(pixels)
    inputs = pixels if input_type == "uint8" else images
    options = {"input_type": input_type, "representative_data": inputs}
    filename, _ = export(detector, tmp_path, path=3, quantize="int8", **options)
    expected = decoded(detector, images, 3)
    runner = Interpreter(str(filename)).get_signature_runner("serving_default")
    results = [runner(image=image[None]) for image in inputs]
    assert {result.dtype for result in results[0].values()} == {np.dtype("float32")}
    scores = np.concatenate([result["scores"] for result in results])
    boxes = np.concatenate([result["boxes"] for result in results])
    assert np.abs(scores - expected["scores"]).mean() < 0.03
    errors = np.abs(boxes - expected["boxes"]).mean() / np.abs(expected["boxes"]).mean()
    assert errors < 0.1
    # In int8 a probability would be a multiple of 1 / 256.
    assert len(np.unique(scores)) > 2 * 256


@pytest.mark.parametrize("seed", range(3))
def test_boxes_are_selected_as_by_the_detector(seed):
    generator = np.random.default_rng(seed)
    corners = generator.uniform(-0.2, 1.0, (300, 2))
    boxes = np.concatenate([corners, corners + generator.uniform(0, 0.4, (300, 2))], 1)
    boxes[::50, 2:] = boxes[::50, :2]
    scores = generator.uniform(size=(300, 3)) ** 3
    boxes, scores = boxes.astype("float32"), scores.astype("float32")
    for score_threshold, iou_threshold, most in ((0.05, 0.45, 200), (0.3, 0.2, 7), (0, 0, 50)):
        expected = suppress(boxes[None], scores[None], iou_threshold, score_threshold, most)
        count = int(expected["num_detections"][0])
        found = select_boxes(boxes, scores, score_threshold, iou_threshold, most)
        assert len(found["scores"]) == count
        for name in ("scores", "classes"):
            np.testing.assert_array_equal(found[name], expected[name][0, :count])
        clipped = np.clip(expected["boxes"][0, :count], 0, 1)
        np.testing.assert_allclose(found["boxes"], clipped, atol=1e-6)


def test_no_box_is_selected_of_scores_below_the_threshold():
    found = select_boxes(np.zeros((4, 4), "float32"), np.zeros((4, 2), "float32"))
    shapes = {name: (values.shape, str(values.dtype)) for name, values in found.items()}
    assert shapes == {
        "boxes": ((0, 4), "float32"),
        "scores": ((0,), "float32"),
        "classes": ((0,), "int32"),
    }


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ((1.5, 0.5, 9), r"`score_threshold` must be a number from 0 to 1. Received.*=1\.5"),
        ((0.5, "x", 9), "`iou_threshold` must be a number from 0 to 1. Received.*='x'"),
        ((0.5, 0.5, 0), "`max_detections` must be an int of at least 1. Received.*=0"),
    ],
)
def test_wrong_limits_of_detections_are_refused(limits, message):
    with pytest.raises(ValueError, match=message):
        select_boxes(np.zeros((4, 4), "float32"), np.zeros((4, 2), "float32"), *limits)


def test_a_file_of_a_detector_has_no_single_output(gated):
    interpreter = DynamicInterpreter(gated[1])
    with pytest.raises(ValueError, match=r"`detect` is for files of detectors.*of a detector"):
        interpreter.run(IMAGES[0])
    with pytest.raises(ValueError, match="set `thresholds` of a detector's file yourself"):
        interpreter.calibrate_confidence(IMAGES, [0] * len(IMAGES), max_drop=0.1)
    latency = interpreter.calibrate_latency(rounds=1, runs=1)
    assert list(latency) == list(ROUTES)
    assert interpreter.detect(IMAGES[0], budget_ms=1e4)["path"] in {(width,) for width in ROUTES}


def test_an_option_that_does_not_fit_is_refused_before_the_work(tmp_path):
    detector = detector_of()
    for options, message in (
        ({"path": 1, "routes": (0, 1)}, "`routes` is for a file with all routes.*with path=1"),
        ({"path": 9}, "9"),
        ({"input_shape": (32, 32, 3)}, "`input_shape` must be the network's"),
        ({"layout": "slow"}, "`layout` must be"),
    ):
        with pytest.raises(ValueError, match=message):
            export(detector, tmp_path, **options)
    with pytest.raises(ValueError, match=r"`quantize_aware` trains classifiers.*a FSSD"):
        quantize_aware(detector, 0, IMAGES)
    with pytest.raises(ValueError, match="`path` is for format='litert'"):
        detector.export(tmp_path / "saved", path=1)
    assert not list(tmp_path.iterdir())


def test_the_kotlin_names_the_tensors_of_a_file(gated):
    page = pathlib.Path(__file__).parents[2] / "docs" / "detector_on_android.md"
    text = page.read_text("utf-8")
    signatures = Interpreter(str(gated[1])).get_signature_list()
    maps = dict(re.findall(r"val (\w+) =\s+mapOf<String, Any>\((.*?)\)\n", text))
    names = {key: set(re.findall(r'"(\w+)" to', entries)) for key, entries in maps.items()}
    assert names["free"] == set(signatures["serving_default"]["inputs"])
    assert names["bounded"] == set(signatures["bounded"]["inputs"])
    for signature in signatures.values():
        assert names["results"] == set(signature["outputs"])
    asked = set(re.findall(r'get(?:In|Out)putTensorFromSignature\("(\w+)"', text))
    assert asked == {"image", "scores", "path"}


def test_the_table_of_boxes_and_scores_is_that_of_a_file(gated):
    page = pathlib.Path(__file__).parents[2] / "docs" / "detector_on_android.md"
    rows = re.findall(
        r"^\| `(\w+)` \| output \| (\w+) \| `\[1, anchors, (\w+)\]` \|$",
        page.read_text("utf-8"),
        re.MULTILINE,
    )
    assert [name for name, _, _ in rows] == ["boxes", "scores"]
    details = Interpreter(str(gated[1])).get_signature_runner("serving_default")
    details = details.get_output_details()
    assert set(details) == {"boxes", "scores", "path"}
    for name, kind, last in rows:
        anchors = details["boxes"]["shape"][1]
        size = gated[0].classes if last == "classes" else int(last)
        assert details[name]["dtype"].__name__ == kind
        assert details[name]["shape"].tolist() == [1, anchors, size]


def test_the_runtime_of_detections_needs_numpy_only():
    tree = ast.parse(pathlib.Path(detection_runtime.__file__).read_text("utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {getattr(node, "module", None) or node.names[0].name for node in nodes}
    assert names == {"numbers", "numpy"}


@pytest.mark.long
@pytest.mark.parametrize("layout", ["shared", "fast", "staged"])
@pytest.mark.parametrize("routing", ["gate", "confidence", "gate+confidence"])
def test_every_layout_routes_as_the_detector(layout, routing, tmp_path):
    _check_file(detector_of(), tmp_path, layout, routing)


@pytest.mark.long
@pytest.mark.parametrize("layout", ["shared", "fast", "staged"])
@pytest.mark.parametrize("confidence", ["clear_scores", "low_entropy"])
def test_every_confidence_is_the_same_in_a_file(layout, confidence, tmp_path):
    _check_file(detector_of(confidence=confidence), tmp_path, layout, "confidence")


@pytest.mark.long
@pytest.mark.parametrize("layout", ["shared", "fast", "staged"])
@pytest.mark.parametrize("family", ["resnet", "efficientnet"])
def test_other_families_are_exported_too(family, layout, tmp_path):
    detector = tiny_detector(family)
    detector.replace_routes((0, 2))
    _, report = export(detector, tmp_path, layout=layout)
    assert len(report["routes"]) == (2 if detector.num_gates == 1 else 3)


@pytest.mark.long
@pytest.mark.parametrize("layout", ["shared", "fast", "staged"])
def test_a_detector_of_several_gates_is_exported_in_int8(layout, tmp_path):
    detector = tiny_detector("resnet")
    detector.replace_routes((0, 2))
    images = list(detector_images(12))
    filename, _ = export(
        detector, tmp_path, layout=layout, quantize="int8", representative_data=images
    )
    interpreter = DynamicInterpreter(filename)
    found = interpreter._run_image(IMAGES[0], (0, 2, 0), (0, 2, 0))[0]
    expected = decoded(detector, IMAGES[:1], (0, 2, 0))
    assert np.abs(found["scores"] - expected["scores"]).mean() < 0.1


@pytest.mark.long
def test_a_detector_in_half_precision_is_exported_in_float32(tmp_path):
    detector = tiny_detector(dtype="mixed_bfloat16")
    detector.replace_routes(ROUTES)
    _, report = export(detector, tmp_path)
    assert all(row["difference"] <= 1e-4 for row in report["routes"])


def _check_file(detector, folder, layout, routing):
    detector.replace_routes(ROUTES)
    detector.confidence_steps = ROUTES
    detector.routing = routing
    if routing != "gate":
        expected = detector._confidence_of(detector(IMAGES, path=0)).numpy()
        values = np.unique(expected)
        detector.thresholds = (float(values[len(values) // 2 - 1 :][:2].mean()),)
    filename, _ = export(detector, folder, layout=layout)
    interpreter = DynamicInterpreter(filename)
    for image, own in zip(IMAGES, detector.detect(IMAGES, max_detections=MOST), strict=True):
        check_detections(interpreter.detect(image, max_detections=MOST), own)
    for width in ROUTES:
        found = interpreter.detect(IMAGES[0], max_detections=MOST, min_width=width, max_width=width)
        expected = detector.detect(IMAGES[:1], path=width, max_detections=MOST)
        check_detections(found, expected[0])


@pytest.fixture(scope="module", params=[(300, 6), (512, 7)], ids=["300", "512"])
def papers_detector(request):
    """The paper's head, on a backbone of half the channels."""
    size, levels = request.param
    backbone = DSMobileNet(
        include_top=False, input_shape=(size, size, 3), alpha=0.5, output_stride=32
    )
    detector = FSSD(backbone, classes=20)
    assert len(detector.pyramid) == levels
    detector.replace_routes((0, 13))
    for layer in detector.head_layers:
        if layer.name.startswith(("scores", "boxes")) and layer.name.endswith("conv"):
            layer.kernel.assign(0.2 * layer.kernel)
    return detector


@pytest.mark.long
@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("layout", ["shared", "fast", "staged"])
def test_the_papers_head_runs_on_both_engines(papers_detector, layout, quantize, tmp_path):
    detector = papers_detector
    image = detector_images(1, size=detector.input_shape[1])
    options = {"representative_data": [image]} if quantize else {}
    with pytest.warns(UserWarning, match="not trained"):
        filename, _ = export(detector, tmp_path, layout=layout, quantize=quantize, **options)
    for runtime in ("interpreter", "compiled"):
        interpreter = DynamicInterpreter(filename, runtime=runtime)
        for width in (0, 13):
            bounds = {"min_width": width, "max_width": width}
            results, _ = interpreter._run_image(image[0], **bounds)
            for name, values in decoded(detector, image, width).items():
                error = np.abs(results[name] - values).max() / np.abs(values).max()
                assert error < (0.02 if quantize else 1e-4)
