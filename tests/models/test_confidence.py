"""Routing by confidence: which images go on, in what order, at what cost."""

import dataclasses
import pathlib
import resource
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from routed_networks import SHORT_SPEC, random_images, small_network
from tiny_families import TINY_EFFICIENTNET, TINY_RESNET, tiny_images, tiny_network
from tiny_mobilenet import TINY_SPEC

from keras_dsnet.models import DynamicSlimmableNetwork, serialization, with_dtype
from keras_dsnet.models.costs import dynamic_madds, section_costs, worst_case_madds
from keras_dsnet.models.routing import confidence_of

IMAGES = random_images(24)
STEPS = (0, 2, 3)


def confident_network(**options):
    """Returns a network in which images stop at every one of three steps."""
    network = small_network(**{"spec": SHORT_SPEC, **options})
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


@pytest.mark.slow
def test_graphs_and_functional_models_route_by_confidence(network):
    paths = network.route(IMAGES).numpy()
    outputs, traced = tf.function(lambda x: (network(x), network.route(x)))(IMAGES)
    np.testing.assert_array_equal(traced, paths)
    np.testing.assert_allclose(outputs, network(IMAGES), atol=1e-5)
    model = keras.Sequential([network])
    np.testing.assert_allclose(model.predict(IMAGES, verbose=0), network(IMAGES), atol=1e-5)


def test_data_pipelines_and_models_that_train_route_by_confidence(network):
    mapped = tf.data.Dataset.from_tensor_slices(IMAGES).batch(7).map(network)
    np.testing.assert_allclose(np.concatenate(list(mapped)), network(IMAGES), atol=1e-5)
    copy = keras.models.clone_model(network)
    copy.set_weights(network.get_weights())
    copy.trainable = False
    inputs = keras.Input(IMAGES.shape[1:])
    outer = keras.Model(inputs, keras.layers.Dense(2)(copy(inputs)))
    outer.compile("sgd", "mse")
    outer.fit(IMAGES, np.zeros((len(IMAGES), 2)), batch_size=7, verbose=0)
    np.testing.assert_array_equal(copy.route(IMAGES), network.route(IMAGES))
    for variable, expected in zip(copy.variables, network.variables, strict=True):
        np.testing.assert_array_equal(variable, expected)


@pytest.mark.slow
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


@pytest.mark.slow
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
    # A softmax in half precision gives 0.73047.
    half = tf.constant([[0.0, 1.0]], mixed.compute_dtype)
    np.testing.assert_allclose(confidence_of(half), [1 / (1 + np.exp(-1))], rtol=1e-6)


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


@pytest.mark.parametrize("share_encoder", [True, False])
def test_a_slimming_head_runs_only_where_its_gate_chooses(share_encoder):
    spec = dataclasses.replace(SHORT_SPEC, share_encoder=share_encoder)
    network = confident_network(spec=spec)
    (gate,), functions = network.slimming_gates, network._runner._functions
    functions.clear()
    network(IMAGES)
    network(IMAGES, path=1)
    network.route(IMAGES)
    head = {id(variable.value) for variable in gate.slimming_variables}
    assert functions
    assert not [f for f in functions.values() if head & {id(v) for v in f.variables}]
    network.routing = "gate+confidence"
    network(IMAGES)
    assert [f for f in functions.values() if head <= {id(v) for v in f.variables}]


def test_madds_are_those_of_a_count_by_hand(network):
    # Stem 16x16 to 8x8; block 1 to 4x4 with pool, attention and pointwise; block 2 to 2x2.
    trunk = 8 * 8 * 9 * 3 * 4
    trunk += 4 * 4 * 9 * 4 + 4 * 4 * 4 + 2 * 4 * 3 + 4 * 4 * 4 * 8
    trunk += 2 * 2 * 9 * 8 + 2 * 2 * 8 + 2 * 8 * 6
    # Pointwise, pool and classifier of each width.
    rest = {w: 2 * 2 * 8 * c + 2 * 2 * c + 5 * c for w, c in enumerate((8, 16, 24, 32))}
    _, paths, starts = network.run_routed(tf.constant(IMAGES))
    expected = [
        trunk + sum(rest[step] for step in STEPS if step <= width) for width in paths[:, 0].numpy()
    ]
    found = dynamic_madds(network, starts.numpy(), paths.numpy(), STEPS, gates=False)
    np.testing.assert_array_equal(found, expected)
    asked = dynamic_madds(network, starts.numpy(), paths.numpy(), STEPS)
    np.testing.assert_array_equal(asked, np.add(expected, 6 * 4))


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


def resident_bytes():
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


@pytest.mark.long
@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="Linux only")
def test_memory_stays_flat_over_a_thousand_calls():
    network, images = small_network(spec=SHORT_SPEC), random_images(64)
    network.routing = "confidence"
    sure, generator = network(images, path=0).numpy().max(1), np.random.default_rng(0)
    for call in range(1, 1001):
        network.thresholds = float(np.quantile(sure, generator.random()))
        network(images[: generator.integers(1, 65)])
        if call == 300:
            before = resident_bytes()
    assert resident_bytes() < before + 20 * 2**20


def test_settings_are_checked():
    network = small_network(spec=SHORT_SPEC, routes=(0, 2))
    assert (network.routing, network.confidence_steps, network.thresholds) == (
        "gate",
        (0, 2),
        (0.7,),
    )
    for name, value, message in [
        ("routing", "cascade", r"one of \('gate', 'confidence', 'gate\+confidence'\). Received"),
        ("routing", None, "Received: routing=None"),
        ("confidence_steps", (2, 0), r"ascending widths from 0 to 3. Received: confidence_steps="),
        ("confidence_steps", (0, 4), "Received: confidence_steps="),
        ("confidence_steps", (), "Received: confidence_steps="),
        ("thresholds", (0.5, 0.5), r"a number .* \(0, 2\) except the last. Received: thresholds="),
        ("thresholds", 1.5, "Received: thresholds=1.5"),
        ("thresholds", float("nan"), "Received: thresholds=nan"),
        ("thresholds", "high", "Received: thresholds='high'"),
    ]:
        with pytest.raises(ValueError, match=message):
            setattr(network, name, value)
    network.confidence_steps = (2,)
    assert network.thresholds == ()
    with pytest.raises(ValueError, match=r"empty for the one step \(2,\). Received"):
        network.thresholds = 0.5
    features = small_network(spec=SHORT_SPEC, include_top=False)
    for routing in ("confidence", "gate+confidence"):
        with pytest.raises(ValueError, match="include_top=False"):
            features.routing = routing
        with pytest.raises(ValueError, match="include_top=False"):
            features.run_routed(IMAGES, routing)
        with pytest.raises(ValueError, match="include_top=False"):
            small_network(spec=SHORT_SPEC, include_top=False, routing=routing)
    for arguments, message in [
        (("any",), "Received: routing='any'"),
        (("confidence", (0, 4)), "from 0 to 3. Received: steps="),
        (("confidence", (0, 2), (0.5, 0.5)), r"steps \(0, 2\) .* Received: thresholds="),
    ]:
        with pytest.raises(ValueError, match=message):
            network.run_routed(IMAGES, *arguments)
    paths = network.run_routed(IMAGES, "confidence", np.array([0, 3]), np.array([1.0]))[1]
    assert set(paths.numpy()[:, 0]) == {3}


def test_steps_follow_the_routes_and_thresholds_their_steps():
    network = small_network(spec=SHORT_SPEC)
    network.thresholds = 0.4
    network.replace_routes((1, 2))
    assert (network.confidence_steps, network.thresholds) == ((1, 2), (0.7,))
    network.replace_routes((0, 1, 3))
    assert (network.confidence_steps, network.thresholds) == ((0, 3), (0.4,))
    network.confidence_steps = (0, 1, 2)
    network.replace_routes((1, 2))
    assert (network.confidence_steps, network.thresholds) == ((0, 1, 2), (0.7, 0.7))
    network.confidence_steps, network.thresholds = None, None
    assert (network.confidence_steps, network.thresholds) == ((1, 2), (0.7,))


def test_costly_steps_warn_once_with_the_worst_case():
    network = DynamicSlimmableNetwork(TINY_SPEC, (None, None, 3), classes=5)
    steps = (0, 6, 9, 13)
    most = worst_case_madds(network, "confidence", steps, input_shape=(224, 224, 3))
    times = most / network.madds("widest", (224, 224, 3))
    with pytest.warns(
        UserWarning, match=rf"costs {most / 1e6:.2f}M .* {times:.2f} times"
    ) as caught:
        network.confidence_steps = steps
    assert [warning.filename for warning in caught] == [__file__]
    mixed = DynamicSlimmableNetwork(TINY_SPEC, (None, None, 3), classes=5)
    mixed.confidence_steps = (11, 13)
    # Steps after the widest start below them cost more than twice the widest path.
    with pytest.warns(UserWarning, match=r"starts at a route of the gates .* \(11, 13\) costs"):
        mixed.routing = "gate+confidence"
    small = small_network(spec=SHORT_SPEC)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network.confidence_steps = steps
        small.confidence_steps = (0, 3)


@pytest.mark.parametrize("name", ["network.keras", "network.weights.h5"])
def test_files_keep_the_settings(network, name, tmp_path):
    network.save(tmp_path / name) if name.endswith(".keras") else network.save_weights(
        tmp_path / name
    )
    if name.endswith(".keras"):
        loaded = keras.models.load_model(tmp_path / name)
    else:
        loaded = small_network(spec=SHORT_SPEC, seed=1)
        loaded.load_weights(tmp_path / name)
    for setting in ("routing", "confidence_steps", "thresholds"):
        assert getattr(loaded, setting) == getattr(network, setting)
    np.testing.assert_array_equal(loaded.route(IMAGES), network.route(IMAGES))


def test_files_without_the_settings_load_as_routing_by_the_gate(network):
    config = network.get_config()
    for setting in ("routing", "confidence_steps", "thresholds"):
        del config[setting]
    assert type(network).from_config(config).routing == "gate"
    older = small_network(spec=SHORT_SPEC)
    older.routing, older.thresholds = "confidence", 0.2
    serialization._restore(older, config)
    assert (older.routing, older.confidence_steps, older.thresholds) == ("gate", (0, 3), (0.7,))


def test_other_classes_and_features_load_without_confidence(network, tmp_path):
    network.save_weights(tmp_path / "network.weights.h5")
    features = small_network(spec=SHORT_SPEC, include_top=False)
    features.load_weights(tmp_path / "network.weights.h5", skip_mismatch=True)
    assert features.routing == "gate"
    other = small_network(classes=3, spec=SHORT_SPEC)
    serialization._restore(other, network.get_config())
    assert (other.routing, other.confidence_steps) == ("gate", (0, 3))
