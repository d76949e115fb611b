"""The app's Kotlin: it compiles, and routes as Python does."""

import itertools
import re

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from android.kotlin import (
    APP,
    HERE,
    PLAIN,
    REPOSITORY,
    App,
    compile_kotlin,
    missing,
    write_java_stubs,
)
from crop_of_file import write_crop
from routed_networks import SHORT_SPEC, small_network
from tiny_families import TINY_RESNET, tiny_network

from keras_dsnet.export import DynamicInterpreter

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
PAGE = REPOSITORY / "docs/android.md"
STEPS = (0, 1, 2)
CONFIDENCE = {"routing": "confidence", "steps": STEPS, "thresholds": (0.4, 0.7)}
BOTH = {**CONFIDENCE, "routing": "gate+confidence", "routes": STEPS}
STAGED = {"layout": "staged"}
KINDS = {
    "gate": (1, {"routes": STEPS}),
    "gate, raw": (1, {"routes": STEPS, "input_type": "uint8"}),
    "gate, staged": (1, {"routes": STEPS, **STAGED}),
    "gates": (3, {"routes": STEPS}),
    "gates, staged": (3, {"routes": STEPS, **STAGED}),
    "confidence": (1, CONFIDENCE),
    "confidence, staged": (1, {**CONFIDENCE, **STAGED}),
    "gate and confidence": (1, BOTH),
    "gate and confidence, staged, int8": (1, {**BOTH, **STAGED, "quantize": "int8"}),
}


@pytest.fixture(scope="module")
def jar(tmp_path_factory):
    """The files of the app that need nothing of Android, and a program around them."""
    output = tmp_path_factory.mktemp("kotlin") / "app.jar"
    sources = [APP / f"com/example/routing/{name}.kt" for name in PLAIN]
    printed = compile_kotlin(output, *sources, HERE / "harness", HERE / "stubs/Json.kt")
    assert output.exists(), printed
    return output


def kotlin_of_the_page():
    """Returns the code of docs/android.md, which uses a class of the app, in functions."""
    blocks = re.findall(r"```kotlin\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (use,) = (block for block in blocks if block.startswith("// Off the main thread"))
    (functions,) = (block for block in blocks if block.startswith("fun best"))
    imports = "import android.content.Context\nimport android.graphics.Bitmap\n"
    header = f"package com.example.routing\n{imports}import android.util.Log\n"
    return f"{header}{functions}\nfun use(context: Context, bitmap: Bitmap) {{\n{use}}}\n"


def test_the_app_and_the_code_of_the_page_compile_against_declarations(tmp_path):
    write_java_stubs(tmp_path / "java")
    (tmp_path / "Page.kt").write_text(kotlin_of_the_page(), encoding="utf-8")
    output = tmp_path / "app.jar"
    printed = compile_kotlin(output, APP, HERE / "stubs", *tmp_path.glob("*.kt"), tmp_path / "java")
    assert output.exists(), printed
    # The class of the page is used without its results.
    assert not re.findall(r"examples/android\S*: warning: .*", printed)


def images(count, shape):
    """Returns raw images of many contrasts."""
    generator = np.random.default_rng(0)
    contrasts = np.geomspace(4, 128, count)[:, None, None, None]
    return np.clip(128 + contrasts * generator.normal(size=(count, *shape)), 0, 255).astype("uint8")


@pytest.mark.parametrize("kind", KINDS)
def test_the_app_routes_as_python_does(jar, tmp_path, kind):
    gates, options = KINDS[kind]
    network = small_network(spec=SHORT_SPEC) if gates == 1 else tiny_network(TINY_RESNET)
    network.class_names = [f"c{index}" for index in range(5)]
    pixels = images(6, network.input_shape[1:])
    if "quantize" in options:
        samples = images(128, network.input_shape[1:])
        options = {**options, "representative_data": network.preprocess_input(samples)}
    filename = tmp_path / "m.tflite"
    network.export(filename, format="litert", verbose=False, **options)
    write_crop(filename, 1.0 if kind == "gate" else None)
    interpreter = DynamicInterpreter(filename)
    app = App(jar, filename, Interpreter(str(filename)))
    crop = 1.0 if kind == "gate" else 0.875
    assert app.greeting == f"opened 16 16 [0, 1, 2] [c0, c1, c2, c3, c4] false {crop}"
    thresholds = (None, 0.0, 0.5, 1.0) if interpreter.steps else (None,)
    paths = set()
    for image, width, threshold in itertools.product(pixels, STEPS, thresholds):
        output, path, used = app.classify(image, width, threshold)
        given = None if threshold is None else (threshold,) * 2
        bounds = {} if width == STEPS[-1] else {"max_width": width}
        try:
            expected = interpreter.run(image, thresholds=given if used else None, **bounds)
        except ValueError:
            # Python refuses what only a staged file can do.
            assert "gate and" in kind
            continue
        assert path == expected[1]
        np.testing.assert_allclose(output, expected[0], atol=1e-4)
        assert used <= (threshold is not None)
        paths.add(path)
    app.close()
    assert len(paths) > 1


def test_a_wrong_crop_is_refused_in_a_line(jar, tmp_path):
    filename = tmp_path / "m.tflite"
    small_network(spec=SHORT_SPEC).export(filename, format="litert", verbose=False)
    for fraction in (0.0, 1.5):
        write_crop(filename, fraction)
        app = App(jar, filename, None)
        rule = "crop_fraction must be above 0 and at most 1"
        assert app.greeting == f"refused The model's {rule}. Received: {fraction}"
        app.close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no file", "refused The model is not a TFLite file"),
        (b"\x10\0\0\0TFL3" + bytes(8), "refused The model is damaged: it ends too early"),
    ],
    ids=["another file", "damaged"],
)
def test_other_files_are_refused_in_a_line(jar, tmp_path, content, message):
    filename = tmp_path / "m.tflite"
    filename.write_bytes(content)
    app = App(jar, filename, None)
    assert app.greeting == message
    app.close()
