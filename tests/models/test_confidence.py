"""Routing by confidence: which images go on, in what order, at what cost."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from routed_networks import SHORT_SPEC, random_images, small_network
from tiny_families import TINY_EFFICIENTNET, TINY_RESNET, tiny_images, tiny_network

from keras_dsnet.models import with_dtype
from keras_dsnet.models.costs import dynamic_madds, section_costs, worst_case_madds

IMAGES = random_images(24)
STEPS = (0, 2, 3)


def confident_network(**options):
    """Returns a network in which images stop at every one of three steps."""
    network = small_network(spec=SHORT_SPEC, **options)
    network.routing, network.confidence_steps = "confidence", STEPS
    network.thresholds = thresholds_between(network, IMAGES)
    return network


def thresholds_between(network, images):
    """Returns thresholds that about half of the images that run each step fail."""
    thresholds = []
    for step in network.confidence_steps[:-1]:
        sure = confidence(logits_of(network, images, step))
        thresholds.append(float(np.median(sure)))
        images = images[sure <= thresholds[-1]]
    return thresholds


def logits_of(network, images, path):
    network.classifier_activation, activation = "linear", network.classifier_activation
    logits = network(images, path=path).numpy()
    network.classifier_activation = activation
    return logits


def confidence(logits):
    logits = np.float64(logits)
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return (exponentials / exponentials.sum(1, keepdims=True)).max(1)


def expected_paths(network, images, starts=None):
    """Returns for each image the path that the rule gives, one image and step at a time."""
    steps, thresholds, known, paths = network.confidence_steps, network.thresholds, {}, []
    for index in range(len(images)):
        path = (steps[0],) * network.num_gates if starts is None else tuple(starts[index].tolist())
        while True:
            if path not in known:
                known[path] = confidence(logits_of(network, images, path))
            narrower = [i for i, step in enumerate(steps) if step <= max(path)]
            wider = [step for step in steps if step > max(path)]
            if not wider or not thresholds:
                break
            if known[path][index] > thresholds[narrower[-1] if narrower else 0]:
                break
            path = (wider[0],) * network.num_gates
        paths.append(path)
    return np.array(paths)


@pytest.fixture(scope="module")
def network():
    return confident_network()


def assert_outputs_are_those_of(network, images, paths):
    expected = outputs_of(network, images, paths)
    tolerance = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(network(images), expected, atol=tolerance)
    np.testing.assert_allclose(network.predict(images, 7, verbose=0), expected, atol=tolerance)


def outputs_of(network, images, paths):
    known = {tuple(path): network(images, path=tuple(path)) for path in paths.tolist()}
    return np.array([known[tuple(path)][index] for index, path in enumerate(paths.tolist())])


def test_an_image_goes_on_until_it_is_sure(network):
    paths = expected_paths(network, IMAGES)
    assert set(paths[:, 0]) == set(STEPS)
    np.testing.assert_array_equal(network.route(IMAGES), paths)
    assert_outputs_are_those_of(network, IMAGES, paths)
    logits, ran = network.run_dynamic(IMAGES)
    np.testing.assert_array_equal(ran, paths)
    np.testing.assert_allclose(tf.nn.softmax(logits), network(IMAGES), atol=1e-6)


def test_graphs_and_functional_models_route_by_confidence(network):
    paths = network.route(IMAGES).numpy()
    outputs, traced = tf.function(lambda x: (network(x), network.route(x)))(IMAGES)
    np.testing.assert_array_equal(traced, paths)
    np.testing.assert_allclose(outputs, network(IMAGES), atol=1e-5)
    model = keras.Sequential([network])
    np.testing.assert_allclose(model.predict(IMAGES, verbose=0), network(IMAGES), atol=1e-5)


@pytest.mark.parametrize("steps", [(0, 3), (1, 2), (2,), STEPS])
def test_the_gate_chooses_where_an_image_starts(steps):
    mixed = small_network(spec=SHORT_SPEC)
    starts = mixed.route(IMAGES).numpy()
    mixed.routing, mixed.confidence_steps = "gate+confidence", steps
    mixed.thresholds = thresholds_between(mixed, IMAGES)
    paths = expected_paths(mixed, IMAGES, starts)
    assert np.any(paths != starts) or steps == (2,)
    np.testing.assert_array_equal(mixed.route(IMAGES), paths)
    assert_outputs_are_those_of(mixed, IMAGES, paths)
    np.testing.assert_array_equal(mixed.run_routed(tf.constant(IMAGES))[2], starts)


@pytest.mark.parametrize("routing", ["confidence", "gate+confidence"])
@pytest.mark.parametrize("spec", [TINY_RESNET, TINY_EFFICIENTNET], ids=["resnet", "efficientnet"])
def test_several_gates_go_along_paths_of_one_width(spec, routing):
    network, images = tiny_network(spec, routes=(0, 2)), tiny_images()
    starts = network.route(images).numpy() if routing != "confidence" else None
    network.routing, network.confidence_steps = routing, (0, 1, 2)
    network.thresholds = thresholds_between(network, images)
    paths = expected_paths(network, images, starts)
    assert len(np.unique(paths, axis=0)) > 1
    np.testing.assert_array_equal(network.route(images), paths)
    assert_outputs_are_those_of(network, images, paths)


def test_threshold_0_never_goes_on_and_threshold_1_always_does():
    network = confident_network(classifier_activation="sigmoid")
    # Logits so large that the softmax is exactly 1.
    kernel = network.supernet_layers[-1].kernel
    kernel.assign(kernel * 1e4)
    assert np.all(confidence(network.run_dynamic(IMAGES)[0])[:1] == 1)
    for thresholds, width in [((0, 0), 0), ((1, 0), 2), ((1, 1), 3), ((0, 1), 0)]:
        network.thresholds = thresholds
        assert set(network.route(IMAGES).numpy()[:, 0]) == {width}


def test_an_image_without_a_confidence_goes_on(network):
    images = IMAGES.copy()
    images[3] = np.nan
    widths = network.route(images).numpy()[:, 0]
    np.testing.assert_array_equal(np.delete(widths, 3), np.delete(network.route(IMAGES)[:, 0], 3))
    assert widths[3] == 3
    assert network.run_routed(tf.constant(images), thresholds=(0, 0))[1].numpy()[3] == 0


def test_confidence_does_not_depend_on_the_activation_of_the_classifier(network):
    for activation in (None, "sigmoid"):
        other = confident_network(classifier_activation=activation)
        np.testing.assert_array_equal(other.route(IMAGES), network.route(IMAGES))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_decides_in_float32(network, policy):
    mixed = with_dtype(network, policy)
    assert mixed.thresholds == network.thresholds
    logits, paths = mixed.run_dynamic(IMAGES)
    assert logits.dtype == mixed.compute_dtype
    assert mixed(IMAGES).dtype == "float32"
    assert np.mean(paths == network.route(IMAGES)) > 0.8
    sure = confidence(logits_of(mixed, IMAGES, STEPS[0]))
    clear = np.abs(sure - mixed.thresholds[0]) > 0.01
    stops = sure > mixed.thresholds[0]
    np.testing.assert_array_equal((paths[:, 0] == 0)[clear], stops[clear])


def test_confidence_adds_no_trace_to_those_of_its_steps():
    network = confident_network()
    for step in STEPS:
        network(IMAGES, path=step)
    traces = network.trace_count
    for count in (1, 5, 24):
        network(IMAGES[:count])
        network.predict(IMAGES[:count], verbose=0)
    assert network.trace_count == traces


def test_untrained_gates_are_not_asked_for_confidence():
    network = confident_network()
    network.gates_trained = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network(IMAGES)
        network.routing = "gate+confidence"
        with pytest.raises(UserWarning, match="not trained"):
            network(IMAGES)


def test_madds_count_all_that_ran(network):
    paths = network.route(IMAGES).numpy()
    starts = np.zeros_like(paths)
    trunk, (table,) = section_costs(network, range(4))
    wanted = {0: table[0][0], 2: table[0][0] + table[0][2], 3: table[0][[0, 2, 3]].sum()}
    madds = dynamic_madds(network, starts, paths, STEPS, gates=False)
    assert madds.dtype == "int64"
    np.testing.assert_array_equal(madds, [trunk + wanted[w] for w in paths[:, 0]])
    assert worst_case_madds(network, "confidence", STEPS) == trunk + wanted[3]
    # A start at width 1 that goes on to the last two steps, with the gate.
    one = dynamic_madds(network, np.array([[1]]), np.array([[3]]), STEPS)
    assert one == trunk + table[0][[1, 2, 3]].sum() + network.costs(1).slimming
    assert worst_case_madds(network, "gate+confidence", STEPS) == max(
        trunk + wanted[3] + network.costs(0).slimming, one[0]
    )
    assert worst_case_madds(network, "gate") == network.madds(3) + network.costs(3).slimming


def test_madds_of_several_gates_are_those_of_each_image():
    network = tiny_network(TINY_RESNET)
    starts, paths = np.array([[0, 2, 1], [0, 1, 0]]), np.array([[0, 2, 1], [2, 2, 2]])
    trunk = section_costs(network, (0,))[0]
    expected = [
        network.madds((0, 2, 1)) + network.costs((0, 2, 1)).slimming,
        network.madds((0, 1, 0)) + network.madds(2) - trunk + network.costs((0, 1, 0)).slimming,
    ]
    np.testing.assert_array_equal(dynamic_madds(network, starts, paths, (1, 2)), expected)
