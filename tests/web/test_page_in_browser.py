"""Tests the page in a real browser: its paths and outputs are those of Python."""

import json
import pathlib
import shutil
import zlib

import numpy as np
import pytest
import tensorflow as tf
from crop_of_file import write_crop
from keras_dsnet.applications import DSMobileNet
from keras_dsnet.applications.ds_mobilenet import preprocess_input
from page_driver import PageDriver, reason_to_skip, served
from routed_networks import SHORT_SPEC, random_images, small_network
from tiny_families import TINY_RESNET, tiny_images, tiny_network

from keras_dsnet.data import evaluation_pipeline, load_source
from keras_dsnet.export import DynamicInterpreter, LatencyTable, best_path

reason = reason_to_skip()
pytestmark = [pytest.mark.long, pytest.mark.skipif(reason is not None, reason=str(reason))]
IMAGES = 50
STEPS, THRESHOLDS = (0, 1, 2), (0.27, 0.23)
TYPES = [None, "float16", "dynamic", "int8"]
LAYOUTS = ["shared", "fast", "staged"]
KINDS = [
    *(
        (layout, quantize, "gate", gates)
        for layout in LAYOUTS
        for quantize in TYPES
        for gates in [1]
    ),
    *((layout, quantize, "gate", 3) for layout in LAYOUTS for quantize in (None, "int8")),
    *(
        (layout, quantize, routing, 1)
        for layout in LAYOUTS
        for quantize in (None, "int8")
        for routing in ("confidence", "gate+confidence")
    ),
    ("staged", None, "confidence", 3),
    ("fast", "int8", "gate+confidence", 3),
]


@pytest.fixture(scope="module")
def browser():
    driver = PageDriver()
    yield driver
    driver.close()


@pytest.fixture(scope="module")
def networks():
    return {1: small_network(spec=SHORT_SPEC), 3: tiny_network(TINY_RESNET)}


@pytest.fixture(scope="module")
def photographs(networks, tmp_path_factory):
    """For each number of gates the pixels of images, and their files without loss."""
    folder, found = tmp_path_factory.mktemp("photographs"), {}
    inputs = {1: random_images(IMAGES), 3: tiny_images(IMAGES)}
    for gates, network in networks.items():
        normalization = network.normalization.get_config()
        scaled = inputs[gates] * normalization["std"] + normalization["mean"]
        pixels = np.clip(np.rint(255 * scaled), 0, 255).astype("uint8")
        files = []
        for index, image in enumerate(pixels):
            files.append(folder / f"{gates}_{index}.png")
            files[-1].write_bytes(tf.io.encode_png(image).numpy())
        found[gates] = pixels, [str(file) for file in files]
    return found


@pytest.fixture(scope="module")
def exported(networks, tmp_path_factory):
    """Returns a function that exports a file of a kind once."""
    made = {}

    def export(layout, quantize, routing, gates):
        kind = layout, quantize, routing, gates
        if kind not in made:
            options = {"layout": layout, "quantize": quantize, "routing": routing}
            if quantize == "int8":
                images = tiny_images() if gates == 3 else random_images(32, seed=3)
                options["representative_data"] = images
            if routing != "gate":
                options |= {"steps": STEPS, "thresholds": THRESHOLDS}
            filename = tmp_path_factory.mktemp("exported") / "m.tflite"
            networks[gates].export(filename, format="litert", verbose=False, **options)
            made[kind] = filename
        return made[kind]

    return export


def rounds_norms(interpreter):
    """Returns whether the outputs of a file may differ by a few steps with the processor.

    Norms of groups, those of the network of three gates, stay in float between int8 convolutions.
    Kernels of other processors add in other orders, so now and then a number is rounded to the
    next integer.
    """
    return interpreter.metadata["quantize"] == "int8" and interpreter.num_gates == 3


def assert_same(browser, interpreter, pixels, **options):
    """Asserts that the page shows what Python computes, and returns the paths."""
    results, paths, others = browser.results(), [], 0
    has_float_norms = rounds_norms(interpreter)
    assert browser.error == ""
    assert len(results) == len(pixels)
    for image, result in zip(pixels, results):
        output, path = interpreter.run(image, **options)
        assert tuple(result["path"]) == path
        if has_float_norms and not np.allclose(result["output"], output, atol=2e-5, rtol=1e-4):
            others += 1
            np.testing.assert_allclose(result["output"], output, atol=0.05 * np.ptp(output))
        else:
            np.testing.assert_allclose(result["output"], output, atol=2e-5, rtol=1e-4)
        paths.append(path)
    assert others <= len(pixels) // 10
    return paths


@pytest.mark.parametrize(("layout", "quantize", "routing", "gates"), KINDS)
def test_images_take_the_paths_of_python(
    browser, exported, photographs, layout, quantize, routing, gates
):
    filename = exported(layout, quantize, routing, gates)
    interpreter = DynamicInterpreter(filename)
    pixels, files = photographs[gates]
    with served(filename) as url:
        browser.open(url)
        browser.files("#image-input", files)
        paths = assert_same(browser, interpreter, pixels)
        assert len(set(paths)) > 1
        # The positions of the slider are the routes.
        for position, width in enumerate(interpreter.routes[:-1]):
            browser.slide(0, position)
            bounded = assert_same(browser, interpreter, pixels, max_width=width)
            assert max(map(max, bounded)) <= width
            assert position or set(bounded) == {(width,) * gates}
        browser.click("#reset")
        assert assert_same(browser, interpreter, pixels) == paths


@pytest.mark.parametrize(
    ("layout", "quantize", "routing", "gates"), [kind for kind in KINDS if kind[2] != "gate"]
)
def test_sliders_are_the_thresholds_of_python(
    browser, exported, photographs, layout, quantize, routing, gates
):
    filename = exported(layout, quantize, routing, gates)
    interpreter, (pixels, files) = DynamicInterpreter(filename), photographs[gates]
    with served(filename) as url:
        browser.open(url)
        browser.files("#image-input", files)
        confidences = [each["confidence"] for each in browser.results()]
        expected = [interpreter.run_steps(image, THRESHOLDS)[2] for image in pixels]
        near = 0.9 if rounds_norms(interpreter) else 1.0
        assert np.isclose(confidences, expected, rtol=0, atol=2e-5).mean() >= near
        np.testing.assert_allclose(confidences, expected, atol=0.02)
        for thresholds in ((0.5, 0.23), (0.5, 0.35), (0, 0.35), (1, 1)):
            for index, threshold in enumerate(thresholds):
                browser.slide(1 + index, threshold)
            assert_same(browser, interpreter, pixels, thresholds=thresholds)
        if routing != "confidence":
            return
        browser.slide(0, 1)
        paths = assert_same(browser, interpreter, pixels, thresholds=(1, 1), max_width=1)
        assert set(paths) == {(1,) * gates}


@pytest.mark.parametrize(("layout", "quantize"), [("shared", None), ("staged", "int8")])
def test_photographs_of_a_test_set_are_classified_as_by_python(
    browser, shared_dir, tmp_path, layout, quantize
):
    splits = {"train_split": "train[:32]", "eval_split": f"test[:{IMAGES}]"}
    pixels, labels, ranges = None, None, None
    for split in ("train", "eval"):
        source = load_source("cifar10", str(shared_dir / "tfds"), split, **splits)
        options = {"image_size": 32, "batch_size": IMAGES, "preprocess": lambda images: images}
        images, labels = next(iter(evaluation_pipeline(source, **options)))
        pixels = np.rint(images).astype("uint8")
        ranges = pixels if ranges is None else ranges
    network = DSMobileNet(weights="cifar10")
    options = {"layout": layout, "quantize": quantize, "routing": "confidence"}
    options |= {"steps": (0, 6, 13), "thresholds": (0.97, 0.97)}
    if quantize:
        options["representative_data"] = preprocess_input(ranges)
    filename = tmp_path / "m.tflite"
    network.export(filename, format="litert", verbose=False, **options)
    files = [tmp_path / f"{index}.png" for index in range(IMAGES)]
    for file, image in zip(files, pixels):
        file.write_bytes(tf.io.encode_png(image).numpy())
    with served(filename) as url:
        browser.open(url)
        browser.files("#image-input", [str(file) for file in files])
        interpreter = DynamicInterpreter(filename)
        paths = assert_same(browser, interpreter, pixels)
        assert len(set(paths)) > 1
        right = [np.argmax(each["output"]) for each in browser.results()] == labels.numpy()
        assert right.mean() > 0.8
        first = "document.querySelector('.photograph .labels span').textContent"
        expected = np.argmax(browser.results()[0]["output"])
        assert browser.evaluate(first) == interpreter.metadata["class_names"][expected]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("routing", "sliders", "note"),
    [
        ("gate", 1, "This file routes only by its gates, so it has no thresholds."),
        ("confidence", 3, ""),
        ("gate+confidence", 3, "A largest width needs the thresholds of the file, since its "),
    ],
)
def test_a_line_says_which_sliders_are_missing(browser, exported, layout, routing, sliders, note):
    with served(exported(layout, None, routing, 1)) as url:
        browser.open(url)
        assert browser.evaluate("document.querySelectorAll('#sliders input').length") == sliders
        text = browser.evaluate("document.getElementById('routing-note').textContent")
    assert text.startswith(note) if note else text == ""


def test_a_measured_table_loads_in_python(browser, exported, networks, tmp_path):
    filename = exported("shared", None, "gate", 1)
    with served(filename) as url:
        browser.open(url)
        browser.measure(str(tmp_path / "table.json"))
        assert browser.error == ""
    table = LatencyTable.load(tmp_path / "table.json")
    table.check(networks[1])
    assert table.runtime == "LiteRT.js"
    limits = {"max_latency_ms": 1e6, "latency_table": table}
    with pytest.raises(ValueError, match=r"measured on LiteRT\.js"):
        best_path(networks[1], **limits)
    assert best_path(networks[1], runtime="LiteRT.js", **limits) == networks[1].routes[-1]
    interpreter = DynamicInterpreter(filename)
    table.give_to(interpreter, runtime="LiteRT.js")
    assert interpreter.widest_within(1e6) == networks[1].routes[-1]


@pytest.mark.parametrize(
    ("fraction", "side", "shown"), [(None, 42, "87.5 %"), (0.875, 42, "87.5 %"), (1.0, 48, "100 %")]
)
def test_a_photograph_of_another_size_is_prepared_as_in_python(
    browser, exported, tmp_path, fraction, side, shown
):
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (48, 80, 3), dtype=np.uint8)
    (tmp_path / "large.png").write_bytes(tf.io.encode_png(image).numpy())
    # 0.875 of 48 pixels is a centre of 42 x 42.
    top, left = (48 - side) // 2, (80 - side) // 2
    centre = tf.cast(image[top : top + side, left : left + side], tf.float32)
    resized = tf.image.resize(centre, (16, 16), method="bicubic", antialias=True)
    pixels = np.clip(resized, 0, 255) / 255
    filename = tmp_path / "m.tflite"
    shutil.copy(exported("shared", None, "gate", 1), filename)
    write_crop(filename, fraction)
    interpreter = DynamicInterpreter(filename)
    preprocessing = interpreter.metadata["preprocessing"]
    expected, path = interpreter.run((pixels - preprocessing["mean"]) / preprocessing["std"])
    with served(filename) as url:
        browser.open(url)
        browser.files("#image-input", [str(tmp_path / "large.png")])
        (result,) = browser.results()
        facts = browser.evaluate("document.getElementById('facts').textContent")
    assert f"central {shown} of the shorter side" in facts
    assert tuple(result["path"]) == path
    np.testing.assert_allclose(result["output"], expected, atol=1e-4)


def test_a_split_file_is_opened_with_its_parts(browser, networks, photographs, tmp_path):
    networks[1].export(
        tmp_path / "m.tflite", format="litert", layout="staged", split=True, verbose=False
    )
    pixels, files = photographs[1]
    with served(tmp_path / "m.tflite") as url:
        browser.open(url)
        browser.files("#image-input", files[:10])
        assert_same(browser, DynamicInterpreter(tmp_path / "m.tflite"), pixels[:10])
        browser.files("#file-input", [str(tmp_path / "m.tflite")])
        assert browser.error.startswith("m.tflite is split; open it together with ")


def dropped(path, kind):
    return {"name": path.name, "type": kind, "bytes": list(path.read_bytes())}


def test_photographs_and_files_can_be_dropped(browser, exported, photographs):
    filename = exported("shared", None, "gate", 1)
    other = exported("shared", "int8", "gate", 1)
    pixels, files = photographs[1]
    with served(filename) as url:
        browser.open(url)
        browser.drop([dropped(pathlib.Path(file), "image/png") for file in files[:3]])
        assert_same(browser, DynamicInterpreter(filename), pixels[:3])
        browser.drop([dropped(other, "")])
        assert_same(browser, DynamicInterpreter(other), pixels[:3])
        browser.click("#clear")
        assert browser.results() == []


def test_a_photograph_that_is_gone_does_not_keep_the_others_from_another_file(
    browser, exported, photographs, tmp_path
):
    pixels, files = photographs[1]
    copies = [shutil.copy(file, tmp_path) for file in files[:3]]
    other = exported("shared", "int8", "gate", 1)
    with served(exported("shared", None, "gate", 1)) as url:
        browser.open(url)
        browser.files("#image-input", copies)
        assert None not in browser.results()
        pathlib.Path(copies[1]).unlink()
        browser.files("#file-input", [str(other)])
        first, gone, last = browser.results()
        shown = browser.evaluate("document.querySelectorAll('.photograph')[1].textContent")
        line = f"{pathlib.Path(copies[1]).name} can no longer be read, since it was moved"
        assert gone is None
        assert line in shown
        assert "confidence" not in shown
        assert browser.error.startswith(line)
        interpreter = DynamicInterpreter(other)
        for image, result in ((pixels[0], first), (pixels[2], last)):
            output, path = interpreter.run(image)
            assert tuple(result["path"]) == path
            np.testing.assert_allclose(result["output"], output, atol=2e-5, rtol=1e-4)


def test_a_photograph_can_be_pasted(browser, exported, photographs):
    filename = exported("shared", None, "gate", 1)
    pixels, files = photographs[1]
    # What browsers make of a copied image.
    image = dropped(pathlib.Path(files[0]), "image/png") | {"name": "image.png"}
    with served(filename) as url:
        browser.open(url)
        browser.paste([image])
        assert_same(browser, DynamicInterpreter(filename), pixels[:1])
        # A paste of text changes nothing.
        browser.paste([])
        assert_same(browser, DynamicInterpreter(filename), pixels[:1])
        browser.paste([image | {"name": "", "bytes": [1, 2, 3]}])
        assert browser.error.startswith("pasted image is not an image that this browser can decode")


def one_colour(width, height, rows=None):
    """Returns a PNG file of a black image. `rows` are those that the file holds, by default all."""

    def chunk(kind, data):
        check = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + check

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    packer = zlib.compressobj(1)
    row = bytes(width + 1)
    data = b"".join(packer.compress(row) for _ in range(rows or height)) + packer.flush()
    chunks = (chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_an_image_that_is_too_large_is_one_line(browser, exported, photographs, tmp_path):
    filename = exported("shared", None, "gate", 1)
    (tmp_path / "huge.png").write_bytes(one_colour(8200, 8200))
    (tmp_path / "vast.png").write_bytes(one_colour(60_000, 60_000, rows=1))
    files = photographs[1][1]
    size = "8200 x 8200 pixels, 67.2 million"
    lines = {
        "huge.png": f"huge.png has {size}; the page takes up to 67 million",
        "vast.png": "vast.png is not an image that this browser can decode, or it is too large",
    }
    with served(filename) as url:
        for name, line in lines.items():
            browser.open(url)
            browser.files("#image-input", [files[0], str(tmp_path / name), files[1]])
            assert browser.results()[0]["path"]
            assert browser.error == line
            assert len(browser.results()) == 2


def test_a_browser_without_simd_is_told_so(exported):
    filename = exported("shared", None, "gate", 1)
    browser = PageDriver("--js-flags=--no-enable-sse4-1 --no-enable-ssse3")
    try:
        with served(filename) as url:
            browser.open(url)
            line = browser.error
            status = browser.evaluate("document.getElementById('status').textContent")
    finally:
        browser.close()
    start = "LiteRT.js cannot start in this browser, which needs WebAssembly with SIMD: "
    assert line.startswith(start)
    assert "\n" not in line
    assert status == "No file is open."


def test_each_mistake_is_one_line(browser, exported, tmp_path):
    filename = exported("shared", None, "gate", 1)
    content = filename.read_bytes()
    plain = tf.keras.Sequential([tf.keras.layers.Input((4,)), tf.keras.layers.Dense(2)])
    bad = {
        "text.tflite": (b"no file of a network", "text.tflite is not a TFLite file"),
        "half.tflite": (content[: len(content) // 2], "half.tflite "),
        "plain.tflite": (
            tf.lite.TFLiteConverter.from_keras_model(plain).convert(),
            "plain.tflite is a TFLite file without routes",
        ),
        "bad.png": (content[:100], "bad.png is not an image that this browser can decode"),
    }
    with served(filename) as url:
        for name, (data, message) in bad.items():
            (tmp_path / name).write_bytes(data)
            browser.open(url)
            picker = "#file-input" if name.endswith(".tflite") else "#image-input"
            browser.files(picker, [str(tmp_path / name)])
            assert browser.error.startswith(message)
            assert "\n" not in browser.error
            # The file that was open before still runs.
            assert "m.tflite is open" in browser.evaluate("document.body.textContent")


def test_the_gate_needs_the_thresholds_of_the_file_under_a_largest_width(
    browser, exported, photographs
):
    with served(exported("shared", None, "gate+confidence", 1)) as url:
        browser.open(url)
        browser.files("#image-input", photographs[1][1][:1])
        browser.slide(1, 0.9)
        browser.slide(0, 2)
        assert browser.error.startswith("A largest width needs the thresholds of the file")


def test_nothing_is_fetched_from_elsewhere(browser, exported, photographs):
    with served(exported("shared", None, "gate", 1)) as url:
        browser.open(url)
        before = len(browser.requests())
        browser.files("#image-input", photographs[1][1][:3])
        assert all(address.startswith((url, "data:")) for address in browser.requests())
        # Photographs cause no request at all.
        assert len(browser.requests()) == before
        assert "Refused" not in json.dumps(browser.messages())
        with served(exported("shared", None, "gate", 1)) as other:
            send = f"fetch('{other}', {{mode: 'no-cors'}}).then(() => 'sent', () => 'refused')"
            assert browser.evaluate(send) == "refused"


def test_the_keyboard_reaches_every_control_in_order(browser, exported):
    with served(exported("shared", None, "confidence", 1)) as url:
        browser.open(url)
        reached = []
        for _ in range(9):
            browser.press("Tab")
            reached.append(
                browser.evaluate("document.activeElement.id || document.activeElement.type")
            )
    sliders = ["range"] * 3
    assert reached[:2] == ["file-input", "example"]
    assert reached[2:] == [*sliders, "reset", "image-input", "device", "start"]


@pytest.mark.parametrize("width", [320, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_screen_scrolls_sideways(browser, exported, photographs, tmp_path, width, scheme):
    with served(exported("shared", None, "confidence", 1)) as url:
        browser.open(url)
        browser.files("#image-input", photographs[1][1][:4])
        browser.screenshot(str(tmp_path / "page.png"), width, 800, scheme)
        shown = browser.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert shown[0] <= shown[1]
        colour = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, colour[4:-1].split(","))) < 3 * 64) == (scheme == "dark")
