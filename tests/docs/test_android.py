"""docs/android.md and its Kotlin against freshly exported files: names, types, shapes, pixels."""

import ast
import inspect
import itertools
import pathlib
import re
import types
import warnings

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras_dsnet.applications.ds_mobilenet import preprocess_input
from routed_networks import SHORT_SPEC, small_network

from keras_dsnet.export import DynamicInterpreter, export_routed, export_subnetwork
from keras_dsnet.export.metadata import OLDEST_RUNTIMES

REPOSITORY = pathlib.Path(__file__).parents[2]
TEXT = (REPOSITORY / "docs/android.md").read_text(encoding="utf-8")
# The page links to the class.
(LINK,) = re.findall(r"^\[RoutedClassifier\.kt\]\((.+?)\)", TEXT, re.MULTILINE)
KOTLIN = (REPOSITORY / "docs" / LINK).read_text(encoding="utf-8")
# What each value of the class is made of, as it stands there.
VALUES = dict(re.findall(r"\bval (\w+) =\s+(.+)", KOTLIN))
# Height and width differ, so that they cannot be taken for one another.
SHAPE, CLASSES, ROUTES = (24, 16, 3), 5, (0, 2)


@pytest.fixture(scope="module", params=["float32", "uint8", "by confidence"])
def exported(request, tmp_path_factory):
    """The input type of a file, and its interpreter."""
    filename = tmp_path_factory.mktemp("android") / f"{request.param}.tflite"
    network = small_network(CLASSES, input_shape=SHAPE, spec=SHORT_SPEC)
    options = {"routes": ROUTES, "input_type": request.param}
    if request.param == "by confidence":
        # Three steps have two thresholds, where there is one gate.
        options = {"routing": "confidence", "steps": (0, 1, 2)}
    network.export(filename, format="litert", verbose=False, **options)
    return options.get("input_type", "float32"), Interpreter(model_path=str(filename))


def calls(interpreter):
    """For each of a file's signature keys the inputs and outputs of the Kotlin that runs it.

    They are dicts from name to variable.
    """
    found = re.findall(r'runSignature\((\w+), (\w+), "(\w+)"\)', KOTLIN)
    assert len(found) == 3
    keys = interpreter.get_signature_list()
    return {key: (named(inputs), named(outputs)) for inputs, outputs, key in found if key in keys}


def named(variable):
    """The entries of a Kotlin map: from the tensor's name to the variable that holds it."""
    entries = re.search(rf"val {variable} =\s+mapOf<String, Any>\((.*)\)", KOTLIN)[1]
    return dict(re.findall(r'"(\w+)" to (\w+)', entries))


def tensor_of(interpreter, variable):
    """What `getInputTensorFromSignature` or its sister gives for a variable of the Kotlin."""
    pattern = r'interpreter\.get(Input|Output)TensorFromSignature\("(\w+)", "(\w+)"\)'
    side, name, key = re.fullmatch(pattern, VALUES[variable]).groups()
    runner = interpreter.get_signature_runner(key)
    details = runner.get_input_details() if side == "Input" else runner.get_output_details()
    return details[name]


def size_of(interpreter, variable):
    """A size that the Kotlin reads from the file."""
    if variable == "numThresholds":
        details = interpreter.get_signature_runner("tuned").get_input_details()
        return int(details["thresholds"]["shape"][0])
    tensor, axis = re.fullmatch(r"(\w+)\.shape\(\)\[(\d)\]", VALUES[variable]).groups()
    return int(tensor_of(interpreter, tensor)["shape"][int(axis)])


def array_of(interpreter, variable, raw):
    """The array that a Kotlin variable stands for; for a buffer, bytes as the file takes them."""
    value = VALUES[variable]
    if match := re.fullmatch(r"IntArray\((\w+)\)", value):
        return np.zeros(size_of(interpreter, match[1]), "int32")
    if match := re.fullmatch(r"FloatArray\((\w+)\)", value):
        size = int(match[1]) if match[1].isdigit() else size_of(interpreter, match[1])
        return np.zeros((size,), "float32")
    if match := re.fullmatch(r"Array\((\d)\) \{ FloatArray\((\w+)\) \}", value):
        return np.zeros((int(match[1]), size_of(interpreter, match[2])), "float32")
    match = re.fullmatch(r"newBuffer\(numValues \* \(if \(raw\) (\d) else (\d)\)\)", value)
    height, width, channels = re.fullmatch(r"(\w+) \* (\w+) \* (\d)", VALUES["numValues"]).groups()
    shape = (1, size_of(interpreter, height), size_of(interpreter, width), int(channels))
    kind = np.dtype("uint8" if raw else "float32")
    assert kind.itemsize == int(match[1] if raw else match[2])
    return np.zeros(shape, kind)


def test_the_kotlin_runs_every_signature_of_the_file(exported):
    _, interpreter = exported
    signatures = interpreter.get_signature_list()
    assert set(calls(interpreter)) == set(signatures) >= {"serving_default", "bounded"}
    for key, (inputs, outputs) in calls(interpreter).items():
        assert set(inputs) == set(signatures[key]["inputs"])
        assert set(outputs) == set(signatures[key]["outputs"])


def test_types_and_shapes_are_those_of_the_file_before_anything_ran(exported):
    kind, interpreter = exported
    for key, (inputs, outputs) in calls(interpreter).items():
        runner = interpreter.get_signature_runner(key)
        sides = ((inputs, runner.get_input_details()), (outputs, runner.get_output_details()))
        for variables, details in sides:
            for name, variable in variables.items():
                array = array_of(interpreter, variable, raw=kind == "uint8")
                assert (array.dtype, array.shape) == (
                    details[name]["dtype"],
                    tuple(details[name]["shape"]),
                ), f"{key}: {name}"


def test_the_kotlin_tells_raw_files_from_others(exported):
    kind, interpreter = exported
    tensor = re.fullmatch(r"(\w+)\.dataType\(\) == DataType\.UINT8", VALUES["raw"])[1]
    assert (tensor_of(interpreter, tensor)["dtype"] == np.uint8) == (kind == "uint8")


def test_what_the_kotlin_hands_over_runs_and_equal_bounds_force_a_width(exported):
    kind, interpreter = exported
    for key, (inputs, outputs) in calls(interpreter).items():
        arrays = {name: array_of(interpreter, v, kind == "uint8") for name, v in inputs.items()}
        for route in ROUTES:
            # Thresholds of 0 and 1 force the first and the last step.
            value = min(route, 1) if key == "tuned" else route
            bounds = {name: np.full_like(arrays[name], value) for name in arrays if name != "image"}
            results = interpreter.get_signature_runner(key)(**{**arrays, **bounds})
            assert set(results) == set(outputs)
            assert results["path"].tolist() == [route] or key == "serving_default"


def test_the_table_of_tensors_is_that_of_the_file(exported):
    _, interpreter = exported
    sizes = {"1": 1, "height": SHAPE[0], "width": SHAPE[1], "3": 3, "classes": CLASSES}
    sizes["num_gates"], sizes["num_thresholds"] = 1, 2
    pattern = r"^\| `(\w+)` \| `(\w+)` \| (input|output) \| ([\w ]+) \| `\[(.+)\]` \|$"
    rows = re.findall(pattern, TEXT, re.MULTILINE)
    rows = [row for row in rows if row[0] in interpreter.get_signature_list()]
    assert len(rows) == sum(len(i) + len(o) for i, o in calls(interpreter).values())
    for key, name, side, kinds, shape in rows:
        runner = interpreter.get_signature_runner(key)
        inputs = side == "input"
        details = (runner.get_input_details() if inputs else runner.get_output_details())[name]
        assert details["dtype"].__name__ in kinds.split(" or ")
        expected = tuple(sizes[axis] for axis in shape.split(", "))
        assert tuple(details["shape"]) == expected, (key, name)


def test_colours_come_in_order_and_are_normalised_as_the_file_says():
    # Tests of the example cover `valueOf`, which gives red, green and blue as channels 0, 1 and 2,
    # and what `RoutedFile` reads.
    assert "valueOf(pixels[i / 3], i % 3).toByte()" in KOTLIN
    assert "normalised[i % 3][valueOf(pixels[i / 3], i % 3)]" in KOTLIN
    formula = re.search(r"c ->\s+FloatArray\(256\) \{ ([^}]+) \}", KOTLIN)[1]
    values = {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    names = {"file": types.SimpleNamespace(**values)}
    normalised = [[eval(formula, {**names, "c": c, "it": v}) for c in range(3)] for v in range(256)]
    pixels = np.tile(np.arange(256, dtype="uint8")[:, None, None], 3)
    np.testing.assert_allclose(normalised, preprocess_input(pixels)[:, 0], atol=1e-6)


def test_the_class_crops_as_the_example_does():
    # tests/android compares `CentreCrop` with the evaluation.
    assert "cropFraction: Float? = null" in KOTLIN
    assert "val crop = CentreCrop(width, height, cropFraction ?: file.cropFraction)" in KOTLIN
    assert VALUES["file"] == "RoutedFile.read(content)"
    assert "val pixels = crop.pixelsOf(bitmap)" in KOTLIN


def test_the_page_names_the_files_that_the_class_needs():
    folder = (REPOSITORY / "docs" / LINK).parent
    named = re.findall(r"^\| `(\w+\.kt)` \|", TEXT, re.MULTILINE)
    sources = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.kt")}
    assert named[0] == "RoutedClassifier.kt"
    text = "".join(sources[name] for name in named)
    # Calls, and names of classes and constants.
    words = set(re.findall(r"\b(\w+)(?=\()|\b([A-Z]\w+)", text))
    words = {word for pair in words for word in pair}
    # A name that is private in one of the files is not that of another one.
    words -= set(re.findall(r"^private (?:fun|class|const val) (\w+)", text, re.MULTILINE))
    declared = r"^(?:internal )?(?:fun|class|const val|interface|object) (\w+)"
    for name, source in sources.items():
        used = set(re.findall(declared, source, re.MULTILINE)) & words
        assert name in named or not used, (name, used)


def test_the_export_has_arguments_that_exist():
    codes = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    functions = (export_routed, export_routed, None, export_subnetwork)
    for code, function in zip(codes, functions, strict=True):
        if function is None:
            continue
        (call,) = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call))
        given = {keyword.arg for keyword in call.keywords} - {"format"}
        assert given <= set(inspect.signature(function).parameters)


def test_one_version_of_the_runtime_is_named():
    versions = re.findall(r"com\.google\.ai\.edge\.litert:litert:([\w.]+)", TEXT)
    assert len(versions) == 2
    assert len(set(versions)) == 1


def bounds_within(budget_ms, medians):
    """What the Kotlin's function does with medians, put together from its expressions."""
    body = re.search(r"^fun routesWithin\(.*?^\}", TEXT, re.DOTALL | re.MULTILINE)[0]
    fits = re.search(
        r"routes\.sorted\(\)\.takeWhile \{ medians\.getValue\(it\) (\S+) budgetMs \}", body
    )
    cheapest = re.search(r"val fastest = medians\.(min|max)ByOrNull \{ it\.value \}!!", body)[1]
    empty = re.search(r"if \(fitting\.isEmpty\(\)\) \{(.*?)\n    \}", body, re.DOTALL)[1]
    warns = re.search(r"if \(fastest\.value (\S+) budgetMs\) \{\n\s+Log\.w\(", empty)[1]
    fitting = list(
        itertools.takewhile(
            lambda route: eval(f"{medians[route]} {fits[1]} {budget_ms}"), sorted(medians)
        )
    )
    if not fitting:
        assert "return fastest.key..fastest.key" in empty
        fastest = {"min": min, "max": max}[cheapest](medians, key=medians.get)
        return (fastest, fastest), eval(f"{medians[fastest]} {warns} {budget_ms}")
    first, last = re.search(r"return fitting\.(\w+)\(\)\.\.fitting\.(\w+)\(\)\n\}", body).groups()
    places = {"first": 0, "last": -1}
    return (fitting[places[first]], fitting[places[last]]), False


@pytest.mark.parametrize("budget_ms", [0.5, 1.5, 2.0, 2.5, 9.0])
def test_a_budget_in_the_kotlin_bounds_what_the_interpreter_bounds(budget_ms):
    # The narrowest route is not the fastest one here.
    medians = {0: 2.0, 1: 1.0, 2: 4.0}
    interpreter = object.__new__(DynamicInterpreter)
    interpreter.latency_ms, interpreter.steps = medians, ()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        widest = interpreter.widest_within(budget_ms)
    bounds, warned = bounds_within(budget_ms, medians)
    assert bounds[1] == widest
    assert warned == bool(caught) == (budget_ms < min(medians.values()))
    # No route within the bounds takes longer, where one fits at all.
    slowest = max(medians[route] for route in range(bounds[0], bounds[1] + 1))
    assert slowest <= budget_ms or warned


def test_the_table_of_runtimes_is_that_of_the_files():
    rows = re.findall(r"^\| (`\S+`(?:, `\S+`)*) \| ([\d.]+) \| ([\d.]+) \|$", TEXT, re.MULTILINE)
    found = {
        ast.literal_eval(kind.strip("` ")): (f"{tensorflow}.0", litert)
        for kinds, tensorflow, litert in rows
        for kind in kinds.split(", ")
    }
    assert found == OLDEST_RUNTIMES
