"""Tests staged files: their signatures, paths and outputs, in one file or split into several."""

import dataclasses
import functools
import itertools
import subprocess
import sys
import weakref

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.options import CpuOptions
from exported import kind_of, largest_difference
from gpu_rules import violations
from routed_networks import SHORT_SPEC, random_images, small_network
from tiny_families import TINY_EFFICIENTNET, TINY_RESNET, tiny_images, tiny_network

import keras_dsnet
from keras_dsnet.export import DynamicInterpreter, compiled_signatures
from keras_dsnet.export.assembly import force_route
from keras_dsnet.export.confidence import ConfidencePlan
from keras_dsnet.export.staged_runtime import StagedRuntime
from keras_dsnet.export.tflite_model import parse
from keras_dsnet.utils.atomic_file import atomic_file

ROUTES = (0, 2)
STEPS, THRESHOLDS = (0, 1, 2), (0.27, 0.23)
ENTRIES = [
    f"segment_{segment}_{before}_to_{width}"
    for segment in (2, 3)
    for width in ROUTES
    for before in ROUTES
]
SEGMENTS = [f"segment_{segment}_to_{width}" for segment in (1, 2, 3) for width in ROUTES]
RUNTIMES = ["interpreter", "compiled"]


def export(network, filename, **options):
    report = network.export(filename, format="litert", verbose=False, **options)
    return report, filename


def export_both(network, folder, **options):
    """Exports a network in the layouts "staged" and "fast"; returns their reports and names."""
    return [
        export(network, folder / f"{x}.tflite", layout=x, **options) for x in ("staged", "fast")
    ]


def signatures(filename):
    return Interpreter(str(filename)).get_signature_list()


def assert_smaller(staged, fast):
    """Asserts that a staged file is at most as large as the other one, and has builtins only."""
    assert staged["bytes"] <= fast["bytes"]
    assert not {"IF", "SELECT_V2", "GATHER"} & set(staged["operators"])


def assert_same_runs(filename, other, images, **options):
    """Asserts that two files take the same paths and give nearly the same outputs."""
    interpreters = [DynamicInterpreter(filename, runtime=x) for x in RUNTIMES]
    expected = DynamicInterpreter(other)
    bounds = ({}, {"min_width": 1}, {"max_width": 1}, {"min_width": 1, "max_width": 1})
    for image, limits in itertools.product(images, bounds):
        output, path = expected.run(image, **limits, **options)
        for interpreter in interpreters:
            result, taken = interpreter.run(image, **limits, **options)
            assert taken == path
            np.testing.assert_allclose(result, output, atol=1e-6)


@pytest.fixture(scope="module")
def network():
    return with_routes(small_network(spec=SHORT_SPEC))


@pytest.fixture(scope="module")
def several_gates():
    return with_routes(tiny_network(TINY_RESNET))


def with_routes(network):
    network.gates_trained = False
    network.routes = ROUTES
    network.gates_trained = True
    return network


@pytest.fixture(scope="module")
def one(network, tmp_path_factory):
    return export_both(network, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def several(several_gates, tmp_path_factory):
    return export(several_gates, tmp_path_factory.mktemp("several") / "m.tflite", layout="staged")


@pytest.fixture(scope="module")
def confident(network, tmp_path_factory):
    options = {"routing": "gate+confidence", "steps": STEPS, "thresholds": THRESHOLDS}
    return export_both(network, tmp_path_factory.mktemp("confident"), **options)


@pytest.fixture(scope="module")
def int8(network, tmp_path_factory):
    options = {"quantize": "int8", "representative_data": random_images(32, seed=3)}
    return export_both(network, tmp_path_factory.mktemp("int8"), **options)


@pytest.mark.slow
def test_one_gate_has_a_trunk_and_a_signature_for_each_route(one):
    (_, staged), _ = one
    assert signatures(staged) == {
        "trunk": {"inputs": ["image"], "outputs": ["features_0", "scores"]},
        "route_0": {"inputs": ["features_0"], "outputs": ["output"]},
        "route_2": {"inputs": ["features_0"], "outputs": ["output"]},
    }
    (shape,) = {
        tuple(details["shape"])
        for name in ("route_0", "route_2")
        for details in Interpreter(str(staged))
        .get_signature_runner(name)
        .get_input_details()
        .values()
    }
    assert shape[0] == 1


@pytest.mark.slow
def test_several_gates_have_signatures_for_each_segment_and_pair_of_widths(several):
    _, staged = several
    found = signatures(staged)
    assert sorted(found) == sorted(["trunk", *ENTRIES, *SEGMENTS])
    assert found["segment_3_to_2"]["outputs"] == ["output"]
    assert "scores" in found["segment_2_to_2"]["outputs"]
    # The narrowest path needs one call for each segment.
    assert found["segment_3_0_to_0"]["outputs"] == ["output"]
    # Packed weights cost memory, so no other pair has a copy of the rest of its segment.
    assert "output" not in found["segment_3_0_to_2"]["outputs"]


def test_without_a_signature_the_file_is_the_trunk(one):
    (_, staged), _ = one
    names = {details["name"] for details in Interpreter(str(staged)).get_output_details()}
    assert names == {"features_0", "scores"}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_images_take_the_paths_of_the_network(network, one, runtime):
    (_, staged), _ = one
    interpreter, images = DynamicInterpreter(staged, runtime=runtime), random_images(24)
    results = [interpreter.run(image) for image in images]
    paths = [path for _, path in results]
    assert paths == [tuple(path) for path in network.route(images).numpy().tolist()]
    assert len(set(paths)) == 2
    outputs = np.stack([output for output, _ in results])
    assert largest_difference(outputs, network(images)) <= 1e-4


def test_every_path_of_several_gates_gives_the_outputs_of_the_network(several_gates, several):
    _, staged = several
    interpreter, images = DynamicInterpreter(staged), tiny_images()[:2]
    for path in itertools.product(ROUTES, repeat=3):
        results = [interpreter.run(image, path, path) for image in images]
        assert {taken for _, taken in results} == {path}
        outputs = np.stack([output for output, _ in results])
        assert largest_difference(outputs, several_gates(images, path=path)) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["one", "confident", "int8"])
def test_runs_are_those_of_the_fast_layout(kind, request):
    (_, staged), (_, fast) = request.getfixturevalue(kind)
    assert_same_runs(staged, fast, random_images(12))


def test_images_take_the_paths_of_the_network_at_several_gates(several_gates, several):
    _, staged = several
    interpreter, images = DynamicInterpreter(staged, runtime="compiled"), tiny_images()
    results = [interpreter.run(image) for image in images]
    paths = [path for _, path in results]
    assert paths == [tuple(path) for path in several_gates.route(images).numpy().tolist()]
    assert len(set(paths)) > 2
    outputs = np.stack([output for output, _ in results])
    assert largest_difference(outputs, several_gates(images)) <= 1e-4


@pytest.mark.parametrize("kind", ["one", "confident", "int8"])
def test_a_file_is_at_most_as_large_as_that_of_the_fast_layout(kind, request):
    (staged, _), (fast, _) = request.getfixturevalue(kind)
    assert_smaller(staged, fast)


@pytest.mark.parametrize("kind", ["one", "confident", "several"])
def test_every_float_signature_is_compatible_with_gpu_delegates(kind, request, capfd):
    files = request.getfixturevalue(kind)
    (_, staged), *others = [files] if kind == "several" else files
    tf.lite.experimental.Analyzer.analyze(model_path=str(staged), gpu_compatibility=True)
    text = capfd.readouterr().out
    assert text.count("Subgraph#") >= len(signatures(staged))
    assert "Your model looks compatible with GPU delegate" in text
    # The analyzer of TensorFlow 2.21 finds no fault with any file.
    assert violations(parse(staged.read_bytes())) == []
    for _, fast in others:
        faults = violations(parse(fast.read_bytes()))
        assert "serving_default: IF is not supported" in faults


SCALAR = {"slimming_head": "scalar", "attention": "sigmoid", "share_encoder": False}
GPU_NETWORKS = {
    "mobilenet": lambda: small_network(spec=SHORT_SPEC),
    "mobilenet, scalar head": lambda: small_network(spec=dataclasses.replace(SHORT_SPEC, **SCALAR)),
    "resnet": lambda: tiny_network(TINY_RESNET),
    "efficientnet": lambda: tiny_network(TINY_EFFICIENTNET),
}


def assert_signatures_suit_gpu_delegates(filename):
    assert violations(parse(filename.read_bytes())) == []
    assert all(not name.startswith("serving") for name in signatures(filename))


@pytest.mark.slow
def test_a_network_of_another_family_suits_gpu_delegates(tmp_path):
    _, filename = export(
        with_routes(GPU_NETWORKS["efficientnet"]()), tmp_path / "m.tflite", layout="staged"
    )
    assert_signatures_suit_gpu_delegates(filename)


@pytest.mark.long
@pytest.mark.parametrize("family", GPU_NETWORKS)
@pytest.mark.parametrize("routing", ["gate", "confidence", "gate+confidence"])
def test_every_family_and_routing_suits_gpu_delegates(tmp_path, family, routing):
    network = with_routes(GPU_NETWORKS[family]())
    options = {} if routing == "gate" else {"steps": STEPS, "thresholds": THRESHOLDS}
    for split in (False, True):
        filename = tmp_path / f"{split}.tflite"
        export(network, filename, layout="staged", routing=routing, split=split, **options)
    for filename in tmp_path.iterdir():
        assert_signatures_suit_gpu_delegates(filename)


@pytest.mark.long
@pytest.mark.parametrize("application", ["DSMobileNet", "DSResNet50", "DSEfficientNetB0"])
def test_the_networks_of_the_package_suit_gpu_delegates(tmp_path, application):
    network = getattr(keras_dsnet.applications, application)(input_shape=(64, 64, 3))
    network.gates_trained = True
    _, filename = export(network, tmp_path / "m.tflite", layout="staged", routes=ROUTES)
    assert_signatures_suit_gpu_delegates(filename)


def test_thresholds_and_budgets_are_those_of_the_fast_layout(confident):
    staged, fast = (DynamicInterpreter(filename) for _, filename in confident)
    assert (staged.steps, staged.thresholds) == (STEPS, THRESHOLDS)
    images = random_images(12)
    assert len({staged.run(image)[1] for image in images}) > 1
    for image, limits in itertools.product(images, ((0, 0), (1, 1), (0.3, 0.5), (1, 0))):
        expected, found = (each.run_steps(image, limits) for each in (fast, staged))
        assert found[1] == expected[1]
        np.testing.assert_allclose(found[2], expected[2], atol=1e-6)
    assert set(staged.calibrate_latency(1, 1)) == {0, 1, 2}
    assert staged.run(images[0], budget_ms=1e6)[1] == fast.run(images[0])[1]
    labels = np.arange(12) % 5
    rows = [each.calibrate_confidence(images, labels, max_drop=0.2) for each in (staged, fast)]
    assert [row["madds"] for row in rows[0]] == [row["madds"] for row in rows[1]]


def constant_runner(results, name):
    """Returns a runner with the same results for all inputs."""
    return lambda **inputs: results


@pytest.mark.parametrize("gate_routes", [(), (0, 3), (1, 2, 5)])
def test_bounds_allow_what_the_graph_of_other_layouts_allows(gate_routes):
    steps = (1, 3, 5)
    widths = tuple(sorted({*gate_routes, *steps}))
    plan = ConfidencePlan(widths, steps, (0.0, 0.0), gate_routes)
    scores = np.random.default_rng(0).normal(size=(1, 6)).astype("float32")
    metadata = {
        "routes": [{"path": [width]} for width in widths],
        "steps": steps,
        "thresholds": plan.thresholds,
        "staged": {"gate_routes": gate_routes, "choice_ratios": [None]},
    }
    results = {"scores": scores, "output": np.ones((1, 5), "float32")}
    runtime = StagedRuntime(metadata, functools.partial(constant_runner, results))
    for bounds in itertools.product(range(6), repeat=2):
        low, high = (np.array([bound], "int32") for bound in bounds)
        controls = plan.bound(tf.constant(low), tf.constant(high))
        if gate_routes:
            allowed = np.array(widths)[controls["allowed"][0].numpy()]
            expected = max(allowed, key=lambda width: scores[0, width])
        else:
            expected = widths[int(controls["start"][0].numpy()[0])]
        (path,) = runtime.run_bounded(None, low, high)["path"]
        assert path == expected, bounds


def test_a_head_of_ratios_chooses_the_nearest_width():
    metadata = {
        "routes": [{"path": [width]} for width in (0, 2, 3)],
        "staged": {"gate_routes": (0, 2, 3), "choice_ratios": [(0.2, 0.3, 0.5, 1.0)]},
    }
    for score, expected in ((-9.0, 0), (0.0, 2), (9.0, 3)):
        results = {"scores": np.array([[score]], "float32"), "output": np.ones((1, 5), "float32")}
        runtime = StagedRuntime(metadata, functools.partial(constant_runner, results))
        assert runtime.run(None)["path"].tolist() == [expected]


def test_int8_features_are_handed_over_as_int8(int8):
    (report, staged), _ = int8
    model = parse(staged.read_bytes())
    for graph in model.subgraphs:
        for index in [*graph.inputs, *graph.outputs]:
            if graph.tensors[index].name.startswith(b"features"):
                assert kind_of(graph.tensors[index]) == "INT8"
    # Only the image is quantised, and only scores and outputs are dequantised.
    assert report["operators"]["QUANTIZE"] == 1
    assert report["operators"]["DEQUANTIZE"] == 1 + len(ROUTES)


def test_the_weight_cache_changes_no_output(int8, tmp_path, monkeypatch):
    (_, staged), _ = int8
    images = random_images(6)
    expected = [DynamicInterpreter(staged, runtime="compiled").run(image) for image in images]
    cached = functools.partial(CpuOptions, xnnpack_weight_cache_path=str(tmp_path / "cache"))
    monkeypatch.setattr(compiled_signatures, "CpuOptions", cached)
    # The first turn writes the cache, the second reads it.
    for _ in range(2):
        interpreter = DynamicInterpreter(staged, runtime="compiled")
        for image, (output, path) in zip(images, expected):
            found, taken = interpreter.run(image)
            assert taken == path
            np.testing.assert_array_equal(found, output)


def test_split_files_are_found_from_another_working_directory(network, tmp_path, monkeypatch):
    export(network, tmp_path / "m.tflite", layout="staged", split=True)
    monkeypatch.chdir(tmp_path)
    interpreter = DynamicInterpreter("m.tflite")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert interpreter.run(random_images(1)[0], 2, 2)[1] == (2,)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_split_files_are_opened_when_they_are_first_needed(network, one, tmp_path, runtime):
    report, filename = export(network, tmp_path / "m.tflite", layout="staged", split=True)
    names = ["m.route_0.tflite", "m.route_2.tflite", "m.tflite"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert report["bytes"] == sum(path.stat().st_size for path in tmp_path.iterdir())
    image, (_, whole) = random_images(1)[0], one[0]
    interpreter = DynamicInterpreter(filename, runtime=runtime)
    (tmp_path / names[1]).unlink()
    for width in (0, 0):
        output, path = interpreter.run(image, width, width)
        assert path == (width,)
        np.testing.assert_array_equal(output, DynamicInterpreter(whole).run(image, 0, 0)[0])
    with pytest.raises(FileNotFoundError, match=r"m\.route_2\.tflite"):
        interpreter.run(image, 2, 2)
    with pytest.raises(FileNotFoundError, match=r"m\.route_2\.tflite"):
        DynamicInterpreter(filename, runtime=runtime)
    (tmp_path / names[1]).write_bytes((tmp_path / names[0]).read_bytes())
    with pytest.raises(ValueError, match=r"m\.route_2\.tflite was not written by the export that"):
        DynamicInterpreter(filename, runtime=runtime).run(image, 2, 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The gate of this network was trained")
def test_a_new_export_leaves_no_parts_of_the_last_one_beside_it(network, tmp_path):
    filename = tmp_path / "m.tflite"
    options = {"layout": "staged", "split": True}
    export(network, filename, routes=(0, 2), **options)
    changed, stale = tmp_path / "m.route_1.tflite", tmp_path / "m.route_2.tflite"
    export(network, filename, routes=(0, 1), **options)
    assert not stale.exists()
    changed.write_bytes(b"the user's own")
    export(network, filename, layout="staged")
    assert sorted(path.name for path in tmp_path.iterdir()) == [changed.name, filename.name]


def test_parts_lie_beside_the_name_that_is_opened(network, tmp_path, monkeypatch):
    image = np.zeros((1, *network.input_shape[1:]), "float32")
    _, filename = export(network, tmp_path / "m.tflite", layout="staged", split=True)
    # The trunk alone, and every file, as caches link them.
    for folder, linked in (("trunk", filename.name), ("all", "")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "store").mkdir()
        for number, path in enumerate(sorted(tmp_path.glob("*.tflite"))):
            new = tmp_path / folder / path.name
            stored = new.parent / "store" / f"{number}.bin"
            new.write_bytes(path.read_bytes())
            if linked in ("", path.name):
                new.rename(stored)
                new.symlink_to(stored)
        monkeypatch.chdir(tmp_path / folder)
        interpreter = DynamicInterpreter("m.tflite")
        monkeypatch.chdir(tmp_path)
        for route in interpreter.routes:
            assert interpreter.run(image, min_width=route, max_width=route)[1][0] == route


@pytest.mark.slow
def test_a_split_export_that_fails_leaves_the_files_of_the_last_one(network, tmp_path, monkeypatch):
    _, filename = export(network, tmp_path / "m.tflite", layout="staged", split=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    opened = []

    def full_disk(path, mode):
        opened.append(path)
        if len(opened) == 3:
            raise OSError(28, "No space left on device", str(path))
        return atomic_file(path, mode)

    module = sys.modules[type(network.export(tmp_path / "other.tflite", "litert")).__module__]
    (tmp_path / "other.tflite").unlink()
    monkeypatch.setattr(module, "atomic_file", full_disk)
    options = {"layout": "staged", "split": True, "input_type": "uint8"}
    with pytest.raises(OSError, match="No space left"):
        export(network, filename, **options)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_interpreter_that_is_no_longer_used_frees_its_memory(one):
    (_, staged), _ = one
    interpreter = DynamicInterpreter(staged)
    interpreter.run(random_images(1)[0])
    reference = weakref.ref(interpreter)
    del interpreter
    assert reference() is None


def test_only_three_files_are_needed_on_a_device(one, tmp_path):
    (_, staged), _ = one
    folder = tmp_path / "device"
    folder.mkdir()
    source = sys.modules[DynamicInterpreter.__module__].__file__
    for name in ("dynamic_interpreter", "staged_runtime", "compiled_signatures"):
        text = (tmp_path.__class__(source).parent / f"{name}.py").read_text(encoding="utf-8")
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    program = (
        "import sys, numpy as np; from dynamic_interpreter import DynamicInterpreter\n"
        "for runtime in ('interpreter', 'compiled'):\n"
        "    run = DynamicInterpreter(sys.argv[1], runtime=runtime).run\n"
        "    print(run(np.zeros((16, 16, 3), 'uint8'), 2, 2)[1])\n"
        "assert not {'tensorflow', 'keras', 'keras_dsnet'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", program, str(staged)]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[:2] == ["(2,)", "(2,)"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "stage"}, "must be 'shared', 'fast' or 'staged'. Received: layout='stage'"),
        ({"layout": "fast", "split": True}, "True only for layout='staged'"),
        ({"layout": "staged", "split": "yes"}, "must be a bool.*Received: split='yes'"),
    ],
)
def test_wrong_options_are_refused(network, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export(network, tmp_path / "m.tflite", **options)


def test_wrong_uses_are_refused(one):
    (_, staged), _ = one
    with pytest.raises(ValueError, match="Received: runtime='gpu'"):
        DynamicInterpreter(staged, runtime="gpu")
    with pytest.raises(ValueError, match="A staged file has no signature"):
        force_route(staged.read_bytes(), 0)


@pytest.mark.long
@pytest.mark.parametrize("quantize", [None, "float16", "dynamic", "int8"])
def test_runs_of_several_gates_are_those_of_the_fast_layout(several_gates, tmp_path, quantize):
    images = tiny_images()
    options = {"representative_data": images} if quantize == "int8" else {}
    both = export_both(several_gates, tmp_path, quantize=quantize, **options)
    (staged, filename), (fast, other) = both
    assert_smaller(staged, fast)
    assert_same_runs(filename, other, images[:4])


@pytest.mark.long
@pytest.mark.parametrize("routing", ["confidence", "gate+confidence"])
def test_confident_runs_of_several_gates_are_those_of_the_fast_layout(
    several_gates, tmp_path, routing
):
    options = {"routing": routing, "steps": STEPS, "thresholds": (0.33, 0.84)}
    (staged, filename), (fast, other) = export_both(several_gates, tmp_path, **options)
    assert_smaller(staged, fast)
    assert_same_runs(filename, other, tiny_images()[:6])
