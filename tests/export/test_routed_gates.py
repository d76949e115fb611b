"""Tests the routed file of several gates: its paths, bounds, graphs, constants, and int8."""

import itertools

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from exported import Exported, kind_of, largest_difference
from tiny_families import TINY_EFFICIENTNET, TINY_RESNET, tiny_images, tiny_network
from weight_cache import assert_same_with_cache

from keras_dsnet.export import DynamicInterpreter, export_subnetwork
from keras_dsnet.export.assembly import force_route

ROUTES = (0, 2)
IMAGES = tiny_images()
PATHS = list(itertools.product(ROUTES, repeat=3))


@pytest.fixture(scope="module")
def network():
    network = tiny_network(TINY_RESNET)
    network.routes = ROUTES
    return network


@pytest.fixture(scope="module", params=["shared", "fast"])
def exported(request, network, tmp_path_factory):
    return Exported(network, tmp_path_factory.mktemp(request.param), layout=request.param)


@pytest.fixture(scope="module")
def int8(network, tmp_path_factory):
    options = {"quantize": "int8", "representative_data": IMAGES, "verbose": False}
    return Exported(network, tmp_path_factory.mktemp("int8"), **options)


def run_path(exported, images, path):
    """Runs "bounded" with bounds that leave one path; returns outputs and paths."""
    runner = exported.interpreter.get_signature_runner("bounded")
    bound = np.array(path, "int32")
    results = [runner(image=i[None], min_width=bound, max_width=bound) for i in images]
    taken = {tuple(map(int, result["path"])) for result in results}
    return np.concatenate([result["output"] for result in results]), taken


@pytest.mark.slow
def test_every_path_can_be_forced_and_gives_the_outputs_of_the_network(exported):
    for path in PATHS:
        outputs, taken = run_path(exported, IMAGES[::8], path)
        assert taken == {path}
        assert largest_difference(outputs, exported.network(IMAGES[::8], path=path)) <= 1e-4


@pytest.mark.parametrize("routes", [(1,), pytest.param((0, 1, 2), marks=pytest.mark.long)])
def test_every_path_of_one_and_of_three_routes(routes, tmp_path):
    network = tiny_network(TINY_RESNET)
    network.routes = routes
    exported = Exported(network, tmp_path, layout="fast")
    for path in itertools.product(routes, repeat=3):
        outputs, taken = run_path(exported, IMAGES[:2], path)
        assert taken == {path}
        assert largest_difference(outputs, network(IMAGES[:2], path=path)) <= 1e-4


def test_the_file_chooses_what_the_network_chooses(exported):
    outputs, paths = exported.choose_paths(IMAGES)
    np.testing.assert_array_equal(paths, exported.network.route(IMAGES).numpy())
    assert len(set(map(tuple, paths))) > 2
    assert largest_difference(outputs, exported.network(IMAGES)) <= 1e-4


def test_each_gate_chooses_within_bounds_of_its_own(exported):
    interpreter = DynamicInterpreter(exported.filename)
    assert (interpreter.num_gates, interpreter.routes) == (3, ROUTES)
    free = {interpreter.run(image, (2, 0, 0), (2, 2, 0))[1] for image in IMAGES}
    assert {(first, last) for first, _, last in free} == {(2, 0)}
    assert interpreter.run(IMAGES[0], 1, 1)[1] == (2, 2, 2)
    assert set(interpreter.calibrate_latency(rounds=1, runs=1)) == set(ROUTES)
    interpreter.latency_ms = {0: 1.0, 2: 4.0}
    assert interpreter.run(IMAGES[0], budget_ms=2.0)[1] == (0, 0, 0)


@pytest.mark.parametrize("bound", [(0, 2), (0, 0, 0, 0), (0, 0, 3), (0, -1, 0), 3, (0, 0, 1.5)])
def test_bounds_that_do_not_fit_are_one_clear_line(exported, bound):
    wanted = r"must be a width, 0 to 2, or one for each of 3 gates\. Received: min_width="
    with pytest.raises(ValueError, match=wanted) as caught:
        DynamicInterpreter(exported.filename).run(IMAGES[0], min_width=bound)
    assert "\n" not in str(caught.value)


def test_a_forced_file_takes_one_path(exported):
    content = force_route(exported.content, (2, 0, 2))
    runner = Interpreter(model_content=content).get_signature_runner("serving_default")
    assert {tuple(runner(image=image[None])["path"]) for image in IMAGES[:4]} == {(2, 0, 2)}


def test_there_is_no_graph_per_path_and_no_padding(exported):
    names = {graph.name.decode() for graph in exported.model.subgraphs}
    rest = {f"gate_{gate}_route_{place}" for gate in (1, 2, 3) for place in (0, 1)}
    rest |= {"gate_2_route_0_narrow", "gate_3_route_0_narrow"}
    entries = {f"gate_{gate}_route_{a}_to_{b}" for gate in (2, 3) for a in (0, 1) for b in (0, 1)}
    # After the first gate, all images with the narrowest width are narrow images.
    entries = entries - {"gate_2_route_0_to_0"} | {"gate_3_route_0_to_1_narrow"}
    trees = {"gate_3_route_1_from_0_2"}
    idle = {f"{name}_noop" for name in rest}
    assert names == {"serving_default", "bounded"} | rest | entries | trees | idle
    for graph in exported.model.subgraphs:
        kinds = [name for _, name in exported.operators(graph)]
        if graph.name.decode() in entries:
            assert set(kinds) <= {"CONV_2D", "ADD"}
        if graph.name.decode() in idle:
            assert kinds == []


def test_an_image_that_stays_narrow_meets_no_graph_within_a_graph(exported):
    for gate in (2, 3):
        apart, usual = (
            exported.operators(exported.graph(f"gate_{gate}_route_0{end}"))
            for end in ("_narrow", "")
        )
        assert "IF" in [name for _, name in usual]
        # The tree calls the first convolution and that of the shortcut.
        entry = exported.operators(exported.graph("gate_3_route_0_to_0"))
        expected = [name for _, name in usual if name not in ("IF", "EQUAL", "LESS")]
        assert sorted(name for _, name in apart) == sorted(expected + [name for _, name in entry])


def test_constants_are_stored_once(exported):
    buffers = [bytes(b.data) for b in exported.model.buffers if b.data is not None]
    assert len(buffers) == len(set(buffers))
    widest = sum(variable.shape.num_elements() * 4 for variable in exported.network.variables)
    stored = sum(len(b) for b in buffers if len(b) >= 256)
    layout = DynamicInterpreter(exported.filename).metadata["layout"]
    assert stored < {"shared": 1.15, "fast": 2.0}[layout] * widest


def test_norms_are_operators_that_xnnpack_takes(exported):
    # It does not support tensors of five axes.
    for graph in exported.model.subgraphs:
        for operator, name in exported.operators(graph):
            shapes = [graph.tensors[index].shape for index in (*operator.inputs,) if index >= 0]
            assert all(shape is None or len(shape) <= 4 for shape in shapes), name
    assert "BATCH_MATMUL" not in exported.report["operators"]


def test_the_report_has_a_row_for_every_checked_path(exported):
    paths = [row["path"] for row in exported.report["routes"]]
    assert paths == [(0, 0, 0), (2, 2, 2), (0, 2, 0)]
    for row in exported.report["routes"]:
        assert row["madds"] == exported.network.madds(row["path"])
        assert row["difference"] <= 1e-4
        assert [cuts[-1] for cuts in row["cuts"]] == list(row["path"])


@pytest.mark.long
def test_int8_of_every_path_is_as_near_as_its_file_alone(int8, tmp_path):
    for path in ((0, 0, 0), (2, 0, 2)):
        outputs, taken = run_path(int8, IMAGES, path)
        assert taken == {path}
        filename = tmp_path / "static.tflite"
        options = {"quantize": "int8", "representative_data": IMAGES}
        export_subnetwork(int8.network, path, filename, **options)
        runner = Interpreter(str(filename)).get_signature_runner("serving_default")
        static = np.concatenate([runner(image=image[None])["output"] for image in IMAGES])
        expected = int8.network(IMAGES, path=path).numpy()
        own, alone = (np.abs(found - expected).mean() for found in (outputs, static))
        assert own < max(2 * alone, 0.05 * np.abs(expected).mean())


def test_int8_keeps_norms_in_float_and_convolutions_in_int8(int8):
    for graph in int8.model.subgraphs:
        for operator, name in int8.operators(graph):
            kinds = {kind_of(graph.tensors[index]) for index in operator.outputs}
            if name in ("SQUARED_DIFFERENCE", "RSQRT"):
                assert kinds == {"FLOAT32"}
            if name in ("MAX_POOL_2D", "TANH", "FULLY_CONNECTED"):
                assert kinds == {"INT8"}
    _, paths = int8.choose_paths(IMAGES)
    assert np.mean(paths == int8.network.route(IMAGES).numpy()) > 0.8


@pytest.mark.long
def test_the_files_of_an_efficientnet_give_its_outputs_and_choices(tmp_path):
    network = tiny_network(TINY_EFFICIENTNET)
    exported = Exported(network, tmp_path)
    for route in network.routes:
        outputs, widths = exported.bounded(IMAGES[::6], route, route)
        assert set(widths) == {route}
        assert largest_difference(outputs, network(IMAGES[::6], path=route)) <= 1e-4
    _, widths = exported.choose(IMAGES)
    np.testing.assert_array_equal(widths, network.route(IMAGES).numpy()[:, 0])


def test_xnnpacks_weight_cache_changes_nothing_on_any_path(int8, tmp_path):
    paths = [[0, 0, 0], [2, 2, 2], [0, 2, 0], [2, 0, 2]]
    assert_same_with_cache(int8.filename, IMAGES[:8], tmp_path, paths)
