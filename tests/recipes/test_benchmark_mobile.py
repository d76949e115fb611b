"""The mobile benchmark: what it compares, writes and refuses."""

import functools
import itertools
import json
import pathlib
import platform
import types

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from keras_dsnet_recipes.benchmarks import timed_file
from keras_dsnet_recipes.benchmarks.mobile_files import MobileFiles, randomise
from keras_dsnet_recipes.benchmarks.timing import TimedProcess, loading_cost, time_in_turns
from programs import import_program, run_program
from routed_networks import random_images, small_network
from tiny_families import TINY_RESNET, tiny_network

from keras_dsnet.export import LatencyTable, best_path, export_subnetwork
from keras_dsnet.export.assembly import force_route
from keras_dsnet.export.conversion import convert
from keras_dsnet.models import DynamicSlimmableNetwork

PROGRAM = pathlib.Path(__file__).resolve().parents[2] / "recipes/benchmarks/benchmark_mobile.py"
ROUTES = (0, 3)
_HUGE_PAGES = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
_LIBRARY, _VERSION = platform.libc_ver()
HAS_HUGE_PAGES = (
    _HUGE_PAGES.is_file()
    and "[never]" not in _HUGE_PAGES.read_text()
    and _LIBRARY == "glibc"
    and tuple(map(int, _VERSION.split("."))) >= (2, 35)
)


@pytest.fixture(scope="module")
def network():
    network = small_network()
    network.routes = ROUTES
    return network


@pytest.fixture(scope="module")
def routed(network, tmp_path_factory):
    filename = tmp_path_factory.mktemp("routed") / "m.tflite"
    network.export(filename, format="litert", verbose=False)
    return filename


@pytest.mark.slow
@pytest.mark.parametrize("width", ROUTES)
def test_a_forced_file_takes_one_route_for_every_image(network, routed, width):
    runner = Interpreter(
        model_content=force_route(routed.read_bytes(), width)
    ).get_signature_runner("serving_default")
    images = random_images(4)
    expected = network(images, path=width).numpy()
    for image, row in zip(images, expected):
        result = runner(image=image[None])
        assert result["path"].tolist() == [width]
        np.testing.assert_allclose(result["output"][0], row, atol=1e-4 * expected.max())


@pytest.mark.long
def test_a_named_file_is_compared_with_each_of_its_widths_alone(network, routed, tmp_path):
    # What stage I saves.
    network.save(tmp_path / "supernet.keras")
    workdir = tmp_path / "benchmark"
    options = ("--baseline=none", "--rounds=2", "--loads=2", f"--model={tmp_path}")
    result = run_program(PROGRAM, routed, *options, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    assert {path.name for path in workdir.iterdir() if path.is_dir()} == {"files"}
    rows = json.loads((workdir / "mobile.json").read_text())
    assert {(row["file"], row["path"]) for row in rows} == {
        (name, width) for name in ("m", "static") for width in ROUTES
    }
    for row in rows:
        assert 0 < row["min_ms"] <= row["median_ms"]
        assert row["madds"] == network.madds(row["path"])
        assert row["init_ms"] > 0
        assert ("to_static_min" in row) == (row["file"] == "m")
    sizes = {row["file"]: row["mb"] for row in rows if row["path"] == 3}
    export_subnetwork(network, 3, tmp_path / "alone.tflite")
    assert sizes["static"] == (tmp_path / "alone.tflite").stat().st_size / 1e6
    assert "recipes/benchmarks/benchmark_mobile.py" in (workdir / "table.md").read_text()
    assert (workdir / "latency.png").stat().st_size > 1000
    table = LatencyTable.load(workdir / "latency_float32_static.json")
    slow = max(row["median_ms"] for row in table.rows)
    assert best_path(network, max_latency_ms=slow, latency_table=table) == 3


@pytest.mark.long
def test_files_of_one_type_and_name_share_the_static_files_and_have_a_table_each(
    network, routed, tmp_path
):
    network.save(tmp_path / "model.keras")
    network.export(tmp_path / "m.tflite", format="litert", layout="fast", verbose=False)
    files, workdir = (routed, tmp_path / "m.tflite"), tmp_path / "benchmark"
    options = ("--baseline=none", "--rounds=1", "--loads=1", f"--workdir={workdir}")
    result = run_program(PROGRAM, *files, *options, f"--model={tmp_path}", "--all_widths")
    assert result.returncode == 0, result.stderr
    for name, layout, widths in (("m", "shared", ROUTES), ("m_2", "fast", ROUTES)):
        table = LatencyTable.load(workdir / f"latency_float32_{name}.json")
        assert table.layout == layout
        assert [row["path"] for row in table.rows] == [(width,) for width in widths]
    table = LatencyTable.load(workdir / "latency_float32_static.json")
    assert table.layout is None
    assert sorted(row["path"][0] for row in table.rows) == list(range(network.num_widths))


@pytest.mark.long
def test_files_of_one_type_with_images_of_two_shapes_are_refused(network, routed, tmp_path):
    config = {**network.get_config(), "input_shape": (None, None, 3)}
    larger = DynamicSlimmableNetwork.from_config(config)
    larger.save(tmp_path / "model.keras")
    options = {"input_shape": (32, 32, 3), "verbose": False}
    larger.export(tmp_path / "large.tflite", format="litert", **options)
    files = routed, tmp_path / "large.tflite"
    options = f"--workdir={tmp_path / 'benchmark'}", f"--model={tmp_path}"
    result = run_program(PROGRAM, *files, *options)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: Files of one type must take images of one shape: ")


def test_paths_need_a_network(routed, tmp_path):
    result = run_program(PROGRAM, routed, "--paths=0", f"--workdir={tmp_path / 'benchmark'}")
    line = "error: --paths makes files of the paths of --model: give --model\n"
    assert (result.returncode, result.stderr) == (1, line)


@pytest.mark.long
def test_only_the_named_paths_are_timed(network, routed, tmp_path):
    network.save(tmp_path / "model.keras")
    options = ("--baseline=none", "--rounds=1", "--loads=1", f"--workdir={tmp_path / 'benchmark'}")
    result = run_program(PROGRAM, routed, *options, f"--model={tmp_path}", "--paths=3")
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "benchmark/mobile.json").read_text())
    assert [(row["file"], row["path"]) for row in rows] == [("m", 3), ("static", 3)]
    result = run_program(PROGRAM, routed, *options, f"--model={tmp_path}", "--paths=1")
    assert result.returncode == 1
    line = "error: --paths must have widths of the routes (0, 3). Received: --paths=1\n"
    assert result.stderr.endswith(line)


@pytest.mark.long
def test_a_named_file_is_timed_without_its_network(routed, tmp_path):
    options = ("--baseline=none", "--rounds=1", "--loads=1", f"--workdir={tmp_path}")
    result = run_program(PROGRAM, routed, *options)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "mobile.json").read_text())
    assert [(row["file"], row["path"]) for row in rows] == [("m", width) for width in ROUTES]


@pytest.mark.long
def test_staged_files_are_compared_with_static_files_on_both_runtimes(network, tmp_path):
    network.save(tmp_path / "model.keras")
    for name, split in (("m", False), ("split", True)):
        filename, options = tmp_path / f"{name}.tflite", {"layout": "staged", "split": split}
        network.export(filename, format="litert", verbose=False, **options)
    files = tmp_path / "m.tflite", tmp_path / "split.tflite"
    for runtime in ("interpreter", "compiled"):
        workdir = tmp_path / runtime
        options = ("--baseline=none", "--rounds=1", "--loads=1", f"--workdir={workdir}")
        result = run_program(
            PROGRAM, *files, *options, f"--model={tmp_path}", f"--runtime={runtime}"
        )
        assert result.returncode == 0, result.stderr
        rows = json.loads((workdir / "mobile.json").read_text())
        assert [(row["file"], row["path"]) for row in rows] == [
            (name, width) for name in ("m", "split", "static") for width in ROUTES
        ]
        assert all(row["runtime"] == runtime for row in rows)
        assert all("to_static_min" in row for row in rows if row["file"] != "static")
        sizes = {row["file"]: row["mb"] for row in rows}
        assert sizes["m"] == files[0].stat().st_size / 1e6
        assert sizes["split"] == sum(x.stat().st_size for x in tmp_path.glob("split*")) / 1e6
        text = (workdir / "table.md").read_text()
        assert "every run copies the image in and the outputs out" in text
        assert ("CompiledModel" in text) == (runtime == "compiled")
        table = LatencyTable.load(workdir / "latency_float32_split.json")
        assert (table.layout, table.runtime) == ("staged", "LiteRT")
    options = ("--baseline=none", "--rounds=1", "--loads=1", f"--workdir={tmp_path / 'alone'}")
    result = run_program(PROGRAM, *files, *options)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "alone/mobile.json").read_text())
    assert [row["file"] for row in rows] == ["m", "m", "split", "split"]


def test_the_memory_of_signatures_is_that_of_a_file_that_is_still_open(tmp_path):
    # 8 MiB, which XNNPACK packs again.
    kernel = np.ones((1024, 2048), "float32")
    content = convert(lambda x: {"y": x @ kernel}, {"x": tf.TensorSpec((1, 1024))}, None, None)
    (tmp_path / "m.tflite").write_bytes(content)
    cost = loading_cost(tmp_path / "m.tflite", signatures=["serving_default"])
    assert cost["rss_mib"] > 8
    assert loading_cost(tmp_path / "m.tflite")["rss_mib"] > 8


def test_a_staged_file_is_run_along_one_path(network, tmp_path):
    filename = tmp_path / "m.tflite"
    network.export(filename, format="litert", layout="staged", verbose=False)
    for runtime in ("interpreter", "compiled"):
        options = timed_file.RunOptions(runtime=runtime, path=(3,))
        inputs = timed_file.random_inputs(filename, options)
        result = timed_file.open_run(filename, options, inputs)()
        assert result["path"].tolist() == [3]
        expected = network(inputs["image"], path=3).numpy()
        np.testing.assert_allclose(result["output"], expected, atol=1e-4 * expected.max())


def test_a_file_is_timed_in_a_process_of_its_own(routed):
    with TimedProcess(routed, widths=ROUTES) as process:
        assert all(0 < process.milliseconds(2) < 1000 for _ in range(3))
        assert 0 <= process.huge_share <= 1


def test_every_graph_of_a_routed_file_has_run_before_it_is_timed():
    # At each gate the graph is one of the width there and the width before, or of narrow images.
    taken = set()

    def run(image, min_width, max_width):
        np.testing.assert_array_equal(min_width, max_width)
        for gate in range(1, 4):
            narrow = not min_width[:gate].any()
            taken.add((gate, narrow, int(min_width[gate - 1]), int(min_width[gate])))

    shapes = {"image": (1, 2, 2, 3), "min_width": (4,)}
    details = {name: {"shape": shape, "dtype": np.float32} for name, shape in shapes.items()}
    timed_file._run_pairs(run, details, (0, 1, 2))
    usual = {
        (gate, False, *pair) for gate in (1, 2, 3) for pair in itertools.product(range(3), range(3))
    }
    narrow = {(gate, True, 0, width) for gate in (1, 2, 3) for width in range(3)}
    assert taken == usual - {(1, False, 0, width) for width in range(3)} | narrow


@pytest.mark.slow
@pytest.mark.skipif(not HAS_HUGE_PAGES, reason="no huge pages for those who ask")
def test_huge_pages_hold_most_of_a_file(tmp_path):
    # Eight kernels of 1 MB: each alone is less than a huge page of 2 MiB.
    generator = np.random.default_rng(0)
    kernels = generator.normal(size=(8, 512, 512)).astype("float32")
    file = tmp_path / "kernels.tflite"
    run = functools.partial(functools.reduce, tf.matmul, kernels)
    content = convert(lambda x: {"y": run(x)}, {"x": tf.TensorSpec((1, 512))}, None, None)
    file.write_bytes(content)
    times, share = time_in_turns({"a": file, "b": file}, {}, 2, 3, huge_pages=True)
    assert share > 0.7
    assert {key: len(own) for key, own in times.items()} == {"a": 6, "b": 6}


def test_huge_pages_that_are_not_given_are_an_error(routed, monkeypatch):
    monkeypatch.setattr(TimedProcess, "huge_share", property(lambda _: 0.0, lambda *_: None), False)
    with pytest.raises(RuntimeError, match=r"no huge pages: they need the GNU C library 2\.35"):
        time_in_turns({"a": routed}, {}, 1, 1, huge_pages=True)
    times, share = time_in_turns({"a": routed}, {}, 1, 1)
    assert (len(times["a"]), share) == (1, 0)


def test_a_file_that_cannot_be_run_is_named(tmp_path):
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"no file of TFLite")
    with pytest.raises(RuntimeError, match=r"broken\.tflite could not be run: ValueError"):
        TimedProcess(broken)


@pytest.mark.slow
def test_naive_export_gives_the_outputs_of_the_route_that_the_gate_chooses(network, tmp_path):
    path = MobileFiles(network, ROUTES, None, tmp_path).naive()
    runner = Interpreter(str(path)).get_signature_runner("serving_default")
    images = random_images(6)
    expected = network(images).numpy()
    results = [runner(image=image[None]) for image in images]
    chosen = [int(result["path"][0]) for result in results]
    assert chosen == network.route(images).numpy()[:, 0].tolist()
    outputs = np.concatenate([result["output"] for result in results])
    np.testing.assert_allclose(outputs, expected, atol=1e-4 * expected.max())


def test_a_network_that_routes_by_confidence_has_no_path_of_several_widths(tmp_path):
    network = tiny_network(TINY_RESNET)
    paths = MobileFiles(network, (0, 2), None, tmp_path).paths
    assert paths == [(0, 0, 0), (2, 2, 2), (0, 2, 0)]
    network.routing = "confidence"
    assert MobileFiles(network, (0, 2), None, tmp_path).paths == paths[:2]


def test_random_statistics_differ_per_width():
    network = small_network()
    randomise(network)
    layer = next(one for one in network.supernet_layers if hasattr(one, "moving_variance"))
    variances = layer.moving_variance.numpy()
    assert len(np.unique(variances, axis=0)) == len(variances)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.tflite"], "There is no file missing.tflite"),
        ([PROGRAM, PROGRAM], f"{PROGRAM} is named twice: name each file once"),
        (
            ["--model=missing"],
            "--model=missing is no .keras file and no work directory with model.keras "
            "or supernet.keras or detector.keras, and none of ds_mobilenet, ds_resnet50, "
            "ds_efficientnet_b0",
        ),
        ([f"--model={PROGRAM}"], f"--model: {PROGRAM} is no .keras file, or is damaged"),
        (["--routes=0,b"], "flag --routes=0,b: must be ascending widths such as 0,4,8,13"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path):
    result = run_program(PROGRAM, *arguments, f"--workdir={tmp_path}")
    assert result.returncode == 1
    assert result.stderr == f"error: {message}\n"


def test_a_file_without_its_network_has_no_paths(tmp_path):
    like = types.SimpleNamespace(classes=10, input_shape=(None, 16, 16, 3), num_gates=1)
    files = MobileFiles(like, None, None, tmp_path, shape=(16, 16, 3))
    assert (files.paths, files.shape) == ([], (16, 16, 3))


@pytest.mark.slow
def test_a_network_of_any_image_size_is_counted_by_its_file(network, tmp_path):
    config = {**network.get_config(), "input_shape": (None, None, 3)}
    several = type(network).from_config(config)
    several.set_weights(network.get_weights())
    routes = several.routes[:2]
    path = tmp_path / "m.tflite"
    options = {"routes": routes, "routing": "gate", "input_shape": network.input_shape[1:]}
    several.export(path, format="litert", verbose=False, **options)
    static = {(width,): path for width in routes}
    program = import_program("keras_dsnet_recipes.benchmarks.benchmark_mobile")
    _, rows, _ = program.timed_files(several, {"m": path}, static, {}, tmp_path)
    for name in ("m", "static"):
        madds = [rows[name, (width,)]["madds"] for width in routes]
        assert madds == [network.madds(width) for width in routes]
