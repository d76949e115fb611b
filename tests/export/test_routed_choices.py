"""Tests the choices of the gates of a routed file within bounds."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from exported import Exported
from tiny_families import TINY_RESNET, tiny_images, tiny_network

from keras_dsnet.export.assembly import force_route
from keras_dsnet.export.dynamic_interpreter import routes_of
from keras_dsnet.export.graphs import RoutedParts
from keras_dsnet.models import ResNetSpec, ResNetStage

ROUTES = (0, 2)
BOUND = tf.TensorSpec((3,), tf.int32)


@pytest.fixture(scope="module")
def network():
    network = tiny_network(TINY_RESNET)
    network.routes = ROUTES
    return network


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    return Exported(network, tmp_path_factory.mktemp("choices"))


def expected(low, high, routes):
    """Returns for each route whether the bounds allow it."""
    within = [low <= route <= high for route in routes]
    if not any(within):
        above = [place for place, route in enumerate(routes) if route >= low]
        within[above[0] if above else -1] = True
    return within


@pytest.mark.parametrize("routes", [(0, 2), (1,), (0, 1, 2)])
def test_bounds_allow_what_lies_within_or_the_nearest_above(network, routes):
    allow = tf.function(RoutedParts(network, routes).allow, [BOUND, BOUND])
    for low, high in itertools.product(range(-1, 4), repeat=2):
        # Every gate has different bounds.
        bounds = [(low, high), (0, 2), (high, low)]
        results = allow(*(tf.constant(side) for side in zip(*bounds)))
        assert list(results) == ["allowed"]
        assert len(results["allowed"]) == 3
        for own, result in zip(bounds, results["allowed"]):
            assert result.numpy().tolist() == expected(*own, routes), own


@pytest.mark.parametrize("routes", [(0, 2), (0, 1, 2)])
def test_the_best_score_of_those_allowed_is_chosen(network, routes):
    generator, parts = np.random.default_rng(0), RoutedParts(network, routes)
    for allowed in itertools.product((True, False), repeat=len(routes)):
        if not any(allowed):
            continue
        scores = generator.normal(size=(1, 3)).astype("float32")
        position = parts.choose(0, tf.constant(scores), allowed)["position"]
        own = np.where(allowed, scores[0, list(routes)], -np.inf)
        assert position.numpy().tolist() == [own.argmax()]


@pytest.mark.slow
def test_a_gate_that_is_free_chooses_in_few_operators(exported):
    """LiteRT runs these outside of XNNPACK, so bounds become masks once, and only in "bounded"."""
    serving, bounded = (exported.main(key) for key in ("serving_default", "bounded"))
    kinds = [name for _, name in exported.operators(serving)]
    first = kinds.index("IF")
    front = kinds.index("SELECT_V2")
    # The scores of two routes of three are gathered.
    assert kinds[front - 1 : first] == ["GATHER", "SELECT_V2", "ARG_MAX", "EQUAL"]
    assert kinds.count("SELECT_V2") == kinds.count("ARG_MAX") == 3
    others = [name for _, name in exported.operators(bounded)]
    assert others[-len(kinds) :] == kinds
    assert others[: -len(kinds)].count("UNPACK") == 1


def test_a_file_is_forced_to_routes_alone(exported):
    assert routes_of({"routes": [{"path": [3, 0]}, {"path": [1, 3]}]}) == (0, 1, 3)
    wanted = r"The routes of the file are \[0, 2\]\. Received: "
    for path in (1, (0, 1, 2), -1):
        with pytest.raises(ValueError, match=wanted):
            force_route(exported.content, path)
    with pytest.raises(ValueError, match=r"^The file has 3 gates\. Received: \(0, 2\)$"):
        force_route(exported.content, (0, 2))


def test_a_file_without_masks_is_of_an_earlier_version(exported):
    content = exported.content.replace(b"allowed_", b"earlier_")
    with pytest.raises(ValueError, match="of an earlier version of keras_dsnet; export it again"):
        force_route(content, 0)


@pytest.mark.long
def test_each_of_ten_gates_has_its_own_bounds(tmp_path):
    """In the alphabetical order of names, the tenth comes before the second."""
    stages = (ResNetStage(1, 1, (8, 16)),) * 10
    exported = Exported(tiny_network(ResNetSpec(stem=(8,), stages=stages)), tmp_path, verbose=False)
    path, image = (0, 1, 1, 0, 1, 0, 0, 1, 0, 0), tiny_images(1)
    bounds = dict.fromkeys(("min_width", "max_width"), np.array(path, "int32"))
    bounded = exported.interpreter.get_signature_runner("bounded")(image=image, **bounds)
    forced = Interpreter(model_content=force_route(exported.content, path))
    serving = forced.get_signature_runner("serving_default")(image=image)
    assert tuple(bounded["path"]) == tuple(serving["path"]) == path
    expected = exported.network(image, path=path)
    np.testing.assert_allclose(bounded["output"], expected, atol=1e-4)
    np.testing.assert_allclose(serving["output"], expected, atol=1e-4)
