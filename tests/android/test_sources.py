"""The sources of the Android project against freshly exported files: names, types, metadata."""

import inspect
import itertools
import json
import math
import pathlib
import re
import string
import tomllib
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from crop_of_file import write_crop
from keras_dsnet.applications.ds_mobilenet import preprocess_input
from routed_networks import SHORT_SPEC, small_network
from runtimes.files import LAYOUTS, NETWORKS

from keras_dsnet.data import evaluation_pipeline
from keras_dsnet.export.dynamic_interpreter import FORMAT, METADATA_NAME, read_metadata

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PROJECT = REPOSITORY / "examples/android"
KOTLIN = PROJECT / "app/src/main/kotlin/com/example/routing"
SOURCES = {path.name: path.read_text(encoding="utf-8") for path in sorted(KOTLIN.glob("*.kt"))}
GRAPH, STAGED, FILE = (
    SOURCES[name] for name in ("RoutedModel.kt", "StagedModel.kt", "RoutedFile.kt")
)
README = (PROJECT / "README.md").read_text(encoding="utf-8")
# What arrays of Kotlin are in a file.
KINDS = {"IntArray": np.int32, "FloatArray": np.float32, "ints": np.int32, "floats": np.float32}
ROUTES = (0, 2)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Returns a dict from kind to `(metadata, interpreter)` of a file."""
    network = small_network(5, input_shape=(24, 16, 3), spec=SHORT_SPEC)
    network.class_names = [f"class {index}" for index in range(5)]
    gate = {"routes": ROUTES}
    # Three steps have two thresholds, where there is one gate.
    confidence = {"routing": "confidence", "steps": (0, 1, 2)}
    folder = tmp_path_factory.mktemp("android")
    kinds = {
        "gate": gate,
        "confidence": confidence,
        "gate-staged": {**gate, "layout": "staged"},
        "confidence-staged": {**confidence, "layout": "staged"},
    }
    return {kind: exported(network, folder / f"{kind}.tflite", kinds[kind]) for kind in kinds}


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Returns `(metadata, interpreter)` of a staged file of several gates."""
    network = NETWORKS["three_gates"][0]()
    filename = tmp_path_factory.mktemp("several") / "m.tflite"
    return exported(network, filename, {"layout": "staged", "routes": ROUTES})


def exported(network, filename, options):
    network.export(filename, format="litert", verbose=False, **options)
    if "crop_fraction" not in read_metadata(filename.read_bytes())["preprocessing"]:
        write_crop(filename, 0.875)
    return read_metadata(filename.read_bytes(), filename), Interpreter(str(filename))


def calls():
    """Returns, for each signature that `GraphModel` runs, dicts of its inputs and its outputs.

    They map a name to the Kotlin that makes an input, or to the function that reads an output.
    """
    found = {}
    for function in re.findall(r"    private fun \w+\(image.*?\n    }\n", GRAPH, re.DOTALL):
        (key,) = re.findall(r'signatures\.run\("(\w+)"', function)
        (entries,) = re.findall(r"mapOf\(([^)]*)\)", function)
        values = dict(re.findall(r"(?:val )?(\w+)(?: =|:) (\w+Array)", function))
        inputs = {
            name: values.get(variable, variable)
            for name, variable in re.findall(r'"(\w+)" to (\w+)', entries)
        }
        reads = re.findall(r'(floats|ints)\(results, "(\w+)"\)', function)
        found[key] = inputs, {name: reader for reader, name in reads}
    return found


def test_the_app_runs_every_signature_of_a_file_with_its_names(files):
    assert set(calls()) == {"serving_default", "bounded", "tuned"}
    for kind in ("gate", "confidence"):
        _, interpreter = files[kind]
        signatures = interpreter.get_signature_list()
        assert set(signatures) == set(calls()) - ({"tuned"} if kind == "gate" else set())
        for key, names in signatures.items():
            inputs, outputs = calls()[key]
            assert set(inputs) == set(names["inputs"])
            # The app shows no confidence.
            assert set(outputs) == set(names["outputs"]) - {"confidence"}


def test_types_and_sizes_are_those_of_the_file(files):
    metadata, interpreter = files["confidence"]
    sizes = {"file.numGates": len(metadata["routes"][0]["path"])}
    sizes["file.steps.size - 1"] = len(metadata["steps"]) - 1
    assert sizes["file.numGates"] != sizes["file.steps.size - 1"]
    for key, (inputs, outputs) in calls().items():
        runner = interpreter.get_signature_runner(key)
        for name, kind in inputs.items():
            details = runner.get_input_details()[name]
            if name == "image":
                assert kind == "image"
                assert details["shape"].tolist() == [1, *metadata["input_shape"]]
            else:
                assert details["dtype"] == KINDS[kind]
                (size,) = details["shape"]
                assert size in [
                    sizes[text] for text in re.findall(rf"{kind}\((file\.[^)]+)\)", GRAPH)
                ]
        for name, reader in outputs.items():
            assert runner.get_output_details()[name]["dtype"] == KINDS[reader]


def signatures_of(segments, gates, before, width, narrowest):
    """Returns what `StagedModel.signaturesOf` returns, put together from its strings."""
    body = re.search(r"private fun signaturesOf\(.*?\n    }\n", STAGED, re.DOTALL)[0]
    route, first, entry, rest = (
        string.Template(re.sub(r"\$(\w+)", r"${\1}", text))
        for text in re.findall(r'"(\w[^"]*\$[^"]*)"', body)
    )
    names = {"width": width, "segment": gates, "before": before}
    if segments == 1:
        return [route.substitute(names)]
    if gates == 1:
        return [first.substitute(names)]
    both = [entry.substitute(names), rest.substitute(names)]
    return both[:1] if before == width == narrowest else both


def test_the_app_runs_every_signature_of_a_staged_file(files, several):
    (trunk,) = re.findall(r'signatures\.run\("(\w+)", mapOf\("image" to image\)\)', STAGED)
    for kind, widths in {"gate-staged": ROUTES, "confidence-staged": (0, 1, 2)}.items():
        _, interpreter = files[kind]
        routes = {name for width in widths for name in signatures_of(1, 1, None, width, 0)}
        assert {trunk, *routes} == set(interpreter.get_signature_list())
    _, interpreter = several
    names = {trunk}
    for segment in (1, 2, 3):
        for before in ROUTES:
            for width in ROUTES:
                names.update(signatures_of(3, segment, before, width, 0))
    assert names == set(interpreter.get_signature_list())


def test_staged_outputs_have_the_names_that_the_app_reads(files, several):
    read = set(re.findall(r'"(scores|logits|output)"', STAGED))
    assert read == {"scores", "logits", "output"}
    prefixes = set(re.findall(r'startsWith\("(\w+)"\)', "".join(SOURCES.values())))
    assert prefixes == {"features"}
    found = set()
    for metadata, interpreter in (files["gate-staged"], files["confidence-staged"], several):
        signatures = interpreter.get_signature_list()
        assert signatures["trunk"]["inputs"] == ["image"]
        for names in signatures.values():
            found.update(name for name in names["outputs"] if not name.startswith("features"))
        gates = len(metadata["staged"]["choice_ratios"])
        assert not metadata["staged"]["gate_routes"] or "scores" in signatures["trunk"]["outputs"]
        # What one signature returns is what the next one takes.
        for path in itertools.product(ROUTES, repeat=gates):
            run = ["trunk"]
            for gate, width in enumerate(path):
                before = path[gate - 1] if gate else None
                run += signatures_of(gates, gate + 1, before, width, 0)
            for first, second in itertools.pairwise(run):
                handed = {n for n in signatures[first]["outputs"] if n.startswith("features")}
                assert handed == set(signatures[second]["inputs"])
    assert found == read


def test_metadata_have_the_keys_and_types_that_the_app_reads(files):
    kinds = {"Int": int, "Double": float, "String": str, "JSONArray": list, "JSONObject": dict}
    kinds["Boolean"] = bool
    reads = re.findall(rf'(get|opt)({"|".join(kinds)})\("(\w+)"', FILE)
    assert len(reads) > 15
    for metadata, _ in files.values():
        places = (metadata, metadata["preprocessing"], metadata["routes"][0])
        for way, kind, name in reads:
            values = [p[name] for p in (*places, metadata.get("staged", {})) if name in p]
            staged = name in ("gate_routes", "choice_ratios", "files")
            assert len(values) == 1 or way == "opt" or staged, name
            assert all(isinstance(value, kinds[kind]) for value in values), name
    everything = [
        name for metadata, _ in files.values() for name in json.dumps(metadata).split('"')
    ]
    # Only files of features have the other name.
    assert {name for _, _, name in reads} <= {*everything, "include_top"}
    assert '"staged" -> StagedModel' in SOURCES["OpenedModel.kt"]
    # Only files of detectors name their outputs, and the app refuses those.
    assert not any("outputs" in metadata for metadata, _ in files.values())
    assert 'require(!metadata.has("outputs"))' in FILE
    layouts = {metadata["layout"] for metadata, _ in files.values()}
    assert layouts <= set(LAYOUTS)
    assert "staged" in layouts


def test_values_of_metadata_are_those_that_the_app_compares_with():
    assert re.search(r'const val NAME = "(\w+)"', FILE)[1].encode() == METADATA_NAME
    assert int(re.search(r"const val FORMAT = (\d+)", FILE)[1]) == FORMAT
    assert 'getString("input_type") == "uint8"' in FILE
    assert 'file.routing == "gate+confidence"' in GRAPH


def test_the_app_reads_the_fields_of_tflites_schema():
    places = {
        "BUFFERS": schema.ModelAddBuffers,
        "METADATA": schema.ModelAddMetadata,
        "SIGNATURES": schema.ModelAddSignatureDefs,
        "BUFFER_DATA": schema.BufferAddData,
        "ENTRY_NAME": schema.MetadataAddName,
        "ENTRY_BUFFER": schema.MetadataAddBuffer,
        "SIGNATURE_INPUTS": schema.SignatureDefAddInputs,
        "SIGNATURE_OUTPUTS": schema.SignatureDefAddOutputs,
        "SIGNATURE_KEY": schema.SignatureDefAddSignatureKey,
        "TENSOR_NAME": schema.TensorMapAddName,
    }
    found = {
        name: int(slot)
        for name, slot in re.findall(r"^private const val (\w+) = (\d+)$", FILE, re.MULTILINE)
    }
    slot = r"Prepend\w+Slot\(\s*(\d+)"
    assert found == {
        name: int(re.search(slot, inspect.getsource(function))[1])
        for name, function in places.items()
    }


def test_colours_come_in_order_and_are_normalised_as_in_training(files):
    text = SOURCES["ImageTensor.kt"]
    shift = re.search(r"fun valueOf\(.*\) = (.+)", SOURCES["Pixels.kt"])[1]
    shift = shift.replace("shr", ">>").replace("and", "&")
    assert [eval(shift, {"pixel": 0xFF123456, "channel": c}) for c in range(3)] == [18, 52, 86]
    formula = re.search(r"FloatArray\(256\) \{ (.+?) \}", text)[1].replace("file.", "")
    preprocessing = files["gate"][0]["preprocessing"]
    values = [
        [eval(formula, {**preprocessing, "c": c, "it": value}) for c in range(3)]
        for value in range(256)
    ]
    pixels = np.tile(np.arange(256, dtype="uint8")[:, None, None], 3)
    np.testing.assert_allclose(values, preprocess_input(pixels)[:, 0], atol=1e-6)


def test_the_crop_is_that_of_evaluation():
    text = SOURCES["CentreCrop.kt"]
    opened = SOURCES["OpenedModel.kt"]
    assert "CentreCrop(file.width, file.height, file.cropFraction)" in opened
    # That of files without one.
    fraction = float(re.search(r"const val OLD_CROP_FRACTION = ([\d.]+)f", FILE)[1])
    assert fraction == inspect.signature(evaluation_pipeline).parameters["crop_fraction"].default
    scale = re.search(r"fun scaleOf\(.*\): Float =\s+(.+)", text)[1].replace("source.", "source_")
    names = {"fraction": fraction, "max": max, "width": 224, "height": 224}
    for size in ((640, 480), (300, 900)):
        names |= {"source_width": size[0], "source_height": size[1]}
        assert math.isclose(eval(scale, names) * min(size), 256)
        assert math.isclose(eval(scale, {**names, "fraction": 1.0}) * min(size), 224)
    assert "val fits = bitmap.width == width && bitmap.height == height" in text
    assert "val scale = if (fits) 1f else scaleOf(source)" in text


def test_gradle_uses_what_its_catalogue_defines():
    catalogue = tomllib.loads((PROJECT / "gradle/libs.versions.toml").read_text(encoding="utf-8"))
    scripts = [PROJECT / name for name in ("build.gradle.kts", "app/build.gradle.kts")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in scripts)
    used = set(re.findall(r"libs\.([\w.]+)", text))
    plugins = {f"plugins.{name.replace('-', '.')}" for name in catalogue["plugins"]}
    libraries = {name.replace("-", ".") for name in catalogue["libraries"]}
    assert used == plugins | libraries
    entries = [*catalogue["plugins"].values(), *catalogue["libraries"].values()]
    assert {entry["version"]["ref"] for entry in entries} == set(catalogue["versions"])
    page = (REPOSITORY / "docs/android.md").read_text(encoding="utf-8")
    assert f"com.google.ai.edge.litert:litert:{catalogue['versions']['litert']}" in page
    wrapper = (PROJECT / "gradle/wrapper/gradle-wrapper.properties").read_text(encoding="utf-8")
    version = re.search(
        r"^distributionUrl=https\\://.*/gradle-([\d.]+)-bin\.zip$", wrapper, re.MULTILINE
    )[1]
    assert f"gradle wrapper --gradle-version {version}\n" in README


def test_any_jdk_that_gradle_runs_on_builds_the_app():
    script = (PROJECT / "app/build.gradle.kts").read_text(encoding="utf-8")
    # Without a resolver, a toolchain is the JDK of that version or an error.
    assert "jvmToolchain" not in script
    assert "import org.jetbrains.kotlin.gradle.dsl.JvmTarget\n" in script
    assert "kotlin { compilerOptions { jvmTarget = JvmTarget.JVM_17 } }" in script
    for side in ("source", "target"):
        assert f"{side}Compatibility = JavaVersion.VERSION_17" in script


def test_the_manifest_starts_the_activity_and_asks_for_the_camera():
    name = "{http://schemas.android.com/apk/res/android}name"
    root = ElementTree.parse(PROJECT / "app/src/main/AndroidManifest.xml").getroot()
    assert [use.get(name) for use in root.iter("uses-permission")] == ["android.permission.CAMERA"]
    (activity,) = root.iter("activity")
    assert f"class {activity.get(name)[1:]} :" in SOURCES["MainActivity.kt"]


def test_frames_follow_the_phone_when_it_is_turned():
    feed, activity = SOURCES["CameraFeed.kt"], SOURCES["MainActivity.kt"]
    # A phone that is turned clockwise is upright after turns to the other side.
    formula = re.search(r"fun rotationOf\(degrees: Int\) = (.+)", feed)[1].replace("/", "//")
    turns = {0: 0, 44: 0, 45: 3, 90: 3, 134: 3, 135: 2, 180: 2, 225: 1, 270: 1, 315: 0, 359: 0}
    assert {degrees: eval(formula, {"degrees": degrees}) for degrees in turns} == turns
    assert "analysis.targetRotation = rotationOf(orientation)" in feed
    # The frames that are analysed are those of the one object that follows.
    assert feed.count("ImageAnalysis.Builder()") == 1
    assert "bindToLifecycle(activity, camera, preview, analysis)" in feed
    for method, follow in (("onStart", "true"), ("onStop", "false")):
        body = re.search(rf"override fun {method}\(\) {{\n(.*?)    }}\n", activity, re.DOTALL)[1]
        assert f"feed.followTurns({follow})" in body


def test_the_readme_names_the_model_and_every_file():
    (asset,) = re.findall(r'const val MODEL = "(.+)"', SOURCES["OpenedModel.kt"])
    assert f"--output=examples/android/app/src/main/assets/{asset}" in README
    assert (PROJECT / "app/src/main/assets").is_dir()
    assert set(re.findall(r"^\| `(\w+\.kt)` \|", README, re.MULTILINE)) == set(SOURCES)
    program = (REPOSITORY / "recipes/export_mobile.py").read_text(encoding="utf-8")
    shared = (REPOSITORY / "recipes/lib/flags.py").read_text(encoding="utf-8")
    for flag in re.findall(r"--(\w+)=", README):
        assert f'"{flag}"' in program + shared, flag


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_sources_are_short(name):
    lines = SOURCES[name].splitlines()
    assert len(lines) < 200
    assert max(map(len, lines)) <= 100
