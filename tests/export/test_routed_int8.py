"""Tests a routed int8 file: its operators are int8, its weights shared, its outputs close."""

import itertools

import numpy as np
import pytest
from exported import Exported, assert_nearly_the_same_choices, kind_of
from keras_dsnet.applications.ds_mobilenet import preprocess_input
from routed_networks import SIZE, odd_gammas, random_images, small_network
from weight_cache import assert_same_with_cache

from keras_dsnet.export.partition import stored_weights

ROUTES = (0, 2, 3)
IMAGES = random_images(24)
CALIBRATION = random_images(32, seed=3)
PIXELS = np.random.default_rng(0).integers(0, 256, (24, SIZE, SIZE, 3), "uint8")
CHOICE = {"DEQUANTIZE", "GATHER", "SELECT_V2", "CONCATENATION"}
INT8 = {"quantize": "int8", "routes": ROUTES, "verbose": False}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A file whose branches share channels with gammas of zero and below."""
    # Batches may have labels, which are ignored.
    batches = [(CALIBRATION[:20], np.zeros(20)), (CALIBRATION[20:], np.zeros(12))]
    network = odd_gammas(small_network())
    folder = tmp_path_factory.mktemp("int8")
    return Exported(network, folder, representative_data=batches, **INT8)


@pytest.fixture(scope="module")
def fast(tmp_path_factory):
    options = {**INT8, "routes": (0, 2), "layout": "fast", "representative_data": CALIBRATION}
    return Exported(small_network(), tmp_path_factory.mktemp("fast"), **options)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A file that takes raw pixels."""
    options = {**INT8, "routes": (1,), "input_type": "uint8", "representative_data": PIXELS}
    return Exported(small_network(), tmp_path_factory.mktemp("raw"), **options)


@pytest.fixture(params=["shared", pytest.param("fast", marks=pytest.mark.slow)])
def exported(request):
    return request.getfixturevalue(request.param)


def assert_near(exported, images, inputs=None):
    """Asserts that every route is close to the same path of the network and to no other."""
    for route in exported.routes:
        outputs, widths = exported.bounded(images if inputs is None else inputs, route, route)
        assert set(widths) == {route}
        difference = [
            np.abs(outputs - exported.network(images, path=path).numpy()).mean()
            for path in range(exported.network.num_widths)
        ]
        own = difference.pop(route)
        assert own < 0.03
        assert own < 0.3 * min(difference)


def float_outputs(exported, graph):
    """Returns the names of the operators that have float outputs."""
    return [
        name
        for operator, name in exported.operators(graph)
        if any(kind_of(graph.tensors[index]) == "FLOAT32" for index in operator.outputs)
    ]


@pytest.mark.slow
def test_outputs_of_every_route_are_near_the_networks(exported):
    assert_near(exported, IMAGES)
    assert all(row["difference"] < 0.2 for row in exported.report["routes"])


def test_it_chooses_mostly_what_the_network_chooses(exported):
    exported.network.routes = exported.routes
    _, paths = exported.choose_paths(CALIBRATION)
    assert set(paths[:, 0]) == set(exported.routes)
    assert_nearly_the_same_choices(exported.network, CALIBRATION, paths)


def test_bounds_hold_for_images_whose_scores_int8_cannot_tell_apart(exported):
    # Some of these images have the lowest score that int8 can hold, or lower ones.
    images = np.concatenate([CALIBRATION, 5 * IMAGES, 20 * CALIBRATION])
    for route in exported.routes:
        _, widths = exported.bounded(images, route, route)
        assert set(widths) == {route}
    _, widths = exported.bounded(images, 1, 3)
    assert set(widths) <= {2, 3}


def test_everything_but_inputs_and_outputs_is_int8(exported):
    main = exported.main("serving_default")
    # Gates choose by float scores, and every graph has a float output.
    assert set(float_outputs(exported, main)) <= CHOICE | {"IF"}
    for route in exported.routes:
        graph = exported.branch(route)
        assert kind_of(graph.tensors[graph.inputs[0]]) == "INT8"
        assert float_outputs(exported, graph) == ["DEQUANTIZE"]
        for operator, name in exported.operators(graph):
            if name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
                assert {kind_of(graph.tensors[index]) for index in operator.inputs[:2]} == {"INT8"}


def test_ratios_of_batch_norm_are_in_the_scales_and_no_operators(exported):
    graphs = [exported.branch(route) for route in exported.routes]
    assert [exported.multiplications_by_constants(graph) for graph in graphs] == [0] * len(graphs)
    names = [[name for _, name in exported.operators(graph)] for graph in graphs]
    # The slimmest route is not cut, so each of its kernels is one convolution.
    blocks = len(exported.cuts[ROUTES[0]])
    assert blocks == 1
    for route, own in zip(exported.routes, names):
        assert own.count("DEPTHWISE_CONV_2D") == 2 * len(exported.cuts[route])
        assert own.count("MUL") == names[0].count("MUL") * len(exported.cuts[route])


def test_branches_use_the_same_int8_weights(exported):
    branches = [exported.branch(route) for route in exported.routes]
    own = [exported.kernels(branch, pooled=False) for branch in branches]
    weights = [sum(kernels.values()) for kernels in own]
    stored = sum({k: size for kernels in own for k, size in kernels.items()}.values())
    assert stored == stored_weights(dict(zip(exported.routes, weights)), exported.cuts)
    if exported.cuts[exported.routes[-1]] != (exported.routes[-1],):
        assert stored <= 1.2 * weights[-1]
        assert any(set(one) & set(other) for one, other in itertools.combinations(own, 2))


@pytest.mark.slow
def test_pixels_go_in_as_they_are(raw):
    (image,) = raw.interpreter.get_input_details()
    assert image["dtype"] == np.uint8
    main = raw.main("serving_default")
    # A cast and one quantisation make pixels int8, so the normalisation runs in int8.
    assert [name for _, name in raw.operators(main)][:3] == [
        "CAST",
        "QUANTIZE",
        "DEPTHWISE_CONV_2D",
    ]
    assert set(float_outputs(raw, main)) <= CHOICE | {"CAST", "IF"}
    assert_near(raw, preprocess_input(PIXELS), PIXELS)


def test_xnnpacks_weight_cache_changes_nothing(exported, tmp_path):
    paths = [[route] for route in exported.routes]
    assert_same_with_cache(exported.filename, IMAGES[:8], tmp_path, paths)
