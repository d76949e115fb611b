"""The network along every path, routed, saved, and written out as stock layers."""

import pathlib
import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from programs import run_program

from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, MobileNetStage
from keras_dsnet.models.costs import section_costs
from keras_dsnet.models.executors import MaskedExecutor

WIDTHS = range(4)
SPEC = MobileNetSpec(
    stem=(4, 6),
    stages=(
        MobileNetStage(1, 2, (6, 8)),
        MobileNetStage(1, 2, (8, 12, 16, 24), gated=True),
        MobileNetStage(1, 1, (12, 16, 24, 32)),
    ),
)
IMAGES = np.random.default_rng(1).normal(size=(24, 16, 16, 3)).astype("float32")


def make_network(**options):
    keras.utils.set_random_seed(0)
    options = {"input_shape": (16, 16, 3), "classes": 5, "classifier_activation": None, **options}
    network = DynamicSlimmableNetwork(SPEC, **options)
    generator = np.random.default_rng(0)
    # Fresh statistics are equal at every width and fresh attention is one: both hide mistakes.
    for variable in network.variables:
        noise = generator.normal(scale=0.3, size=variable.shape)
        variable.assign_add(np.abs(noise) if "variance" in variable.name else noise)
    network.gates_trained = True
    return network


@pytest.fixture(scope="module")
def network():
    return make_network()


@pytest.fixture(scope="module")
def logits(network):
    return np.stack([network(IMAGES, path=width) for width in WIDTHS])


@pytest.fixture(scope="module")
def widths(network):
    chosen = network.route(IMAGES).numpy()[:, 0]
    assert len(set(chosen)) >= 3, "a gate that picks one width would test nothing"
    return chosen


def chosen_logits(logits, widths):
    return logits[widths, np.arange(len(widths))]


def test_routed_images_have_the_outputs_of_their_path(network, logits, widths):
    expected = chosen_logits(logits, widths)
    np.testing.assert_allclose(network(IMAGES), expected, atol=1e-4)
    predicted = network.predict(IMAGES, batch_size=7, verbose=0)
    np.testing.assert_allclose(predicted, expected, atol=1e-4)
    np.testing.assert_allclose(tf.function(network)(IMAGES), expected, atol=1e-4)


def test_every_width_gives_other_outputs(logits):
    for one in WIDTHS:
        for other in range(one):
            assert np.abs(logits[one] - logits[other]).max() > 0.01


def test_probabilities_of_routed_images(network, logits, widths):
    softmax = make_network(classifier_activation="softmax")
    softmax.set_weights(network.get_weights())
    expected = tf.nn.softmax(chosen_logits(logits, widths))
    np.testing.assert_allclose(softmax(IMAGES), expected, atol=1e-5)


def test_calls_of_every_size_trace_nothing_new(network):
    generator = np.random.default_rng(3)
    for width in WIDTHS:
        network(IMAGES, path=width)
    network(IMAGES)
    traces = network.trace_count
    # The front has two traces, one of them with the slimming head.
    assert traces <= 2 + len(WIDTHS)
    for size in [1, 2, 3, *generator.integers(1, 65, 60)]:
        images = generator.normal(size=(size, 16, 16, 3)).astype("float32")
        assert network(images).shape == (size, 5)
        network(images, path=2)
    assert network.trace_count == traces


@pytest.mark.long
def test_a_thousand_routed_calls_take_no_memory(network):
    def resident():
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096

    generator = np.random.default_rng(4)
    batches = [generator.normal(size=(n, 16, 16, 3)).astype("float32") for n in range(1, 65)]
    for batch in batches * 4:
        network(batch)
    before = resident()
    for call in range(1000):
        network(batches[call % 64])
    assert resident() - before < 16e6


@pytest.mark.parametrize("path", [0, 3, "widest", "largest"])
@pytest.mark.parametrize("fold", [False, True])
def test_a_subnetwork_of_stock_layers_has_the_outputs_of_its_path(network, path, fold):
    plain = network.subnetwork(path, fold_batch_norm=fold)
    expected = network(IMAGES, path=path)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(plain(IMAGES), expected, atol=1e-4 * scale)
    assert all(type(layer).__module__.startswith("keras.src") for layer in plain.layers)
    norms = [layer for layer in plain.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert bool(norms) != fold


@pytest.mark.slow
def test_a_subnetwork_loads_where_this_package_is_not(network, tmp_path):
    network.subnetwork(1).save(tmp_path / "plain.keras")
    np.save(tmp_path / "images.npy", IMAGES)
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys; sys.modules['keras_dsnet'] = None; os.chdir(sys.argv[1])\n"
        "import keras, numpy as np\n"
        "model = keras.models.load_model('plain.keras')\n"
        "np.save('outputs.npy', model.predict(np.load('images.npy'), verbose=0))"
    )
    done = run_program(program, tmp_path)
    assert done.returncode == 0, done.stderr
    outputs = np.load(tmp_path / "outputs.npy")
    np.testing.assert_allclose(outputs, network(IMAGES, path=1), atol=1e-4)


def test_saving_brings_back_outputs_routes_and_gates(network, tmp_path):
    network = make_network(routes=(0, 1, 3))
    network.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    network.save_weights(tmp_path / "m.weights.h5")
    filled = DynamicSlimmableNetwork(
        SPEC, input_shape=(16, 16, 3), classes=5, classifier_activation=None
    )
    filled.load_weights(tmp_path / "m.weights.h5")
    for copy in (loaded, filled):
        assert copy.routes == (0, 1, 3)
        assert copy.gates_trained
        np.testing.assert_array_equal(copy(IMAGES), network(IMAGES))
        np.testing.assert_array_equal(copy.route(IMAGES), network.route(IMAGES))


@pytest.mark.parametrize("width", WIDTHS)
def test_masked_channels_equal_the_slice(network, logits, width):
    executor = MaskedExecutor(network, (0, 1, 2, 3), lambda *_: tf.one_hot([width] * 24, 4))
    outputs = network.run_sections(tf.constant(IMAGES), None, executor=executor)
    np.testing.assert_allclose(outputs, logits[width], atol=1e-4 * np.abs(logits).max())


def test_mixed_choices_in_one_masked_batch(network, logits, widths):
    routes = (0, 1, 2, 3)
    executor = MaskedExecutor(network, routes, lambda gate, s, _: gate.sample(s, routes))
    outputs = network.run_sections(tf.constant(IMAGES), None, executor=executor)
    expected = chosen_logits(logits, widths)
    np.testing.assert_allclose(outputs, expected, atol=1e-4 * np.abs(logits).max())


def test_untrained_gates_warn_once_and_take_the_widest_route(network):
    untrained = make_network(routes=(0, 2))
    untrained.gates_trained = False
    with pytest.warns(UserWarning, match="not trained"):
        outputs = untrained(IMAGES)
    np.testing.assert_allclose(outputs, untrained(IMAGES, path=2), atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        untrained(IMAGES)
        assert set(untrained.route(IMAGES).numpy()[:, 0]) == {2}


@pytest.mark.parametrize("path", [4, -1, "slim", (0, 1), 1.5, True])
def test_a_path_out_of_range_is_named(network, path):
    with pytest.raises(ValueError, match="int from 0 to 3"):
        network(IMAGES, path=path)


@pytest.mark.parametrize("routes", [(), (1, 0), (0, 0), (0, 4), (0.5,), 3])
def test_bad_routes_are_named(network, routes):
    with pytest.raises(ValueError, match="ascending widths from 0 to 3"):
        network.routes = routes


def test_paths_may_be_numpy_integers_and_tuples(network, logits):
    for path in (np.int64(2), (2,), [2]):
        np.testing.assert_array_equal(network(IMAGES, path=path), logits[2])


def test_training_without_a_path_is_refused(network):
    with pytest.raises(ValueError, match=r"^Training needs a path.*SupernetTrainer"):
        network(IMAGES, training=True)


def test_a_layer_around_the_network_that_is_in_training_needs_a_path_too(network):
    class Around(keras.layers.Layer):
        def call(self, images, training=False):
            return network(images)

    assert Around()(IMAGES).shape == (24, 5)
    with pytest.raises(ValueError, match="Training needs a path"):
        Around()(IMAGES, training=True)


def test_open_image_size(network):
    open_size = make_network(input_shape=(None, None, 3))
    open_size.set_weights(network.get_weights())
    np.testing.assert_allclose(open_size(IMAGES), network(IMAGES), atol=1e-5)
    larger = np.random.default_rng(5).normal(size=(3, 32, 24, 3)).astype("float32")
    assert open_size(larger).shape == (3, 5)
    assert tf.function(open_size)(larger).shape == (3, 5)
    with pytest.raises(ValueError, match="input_shape"):
        open_size.madds(0)
    assert open_size.madds(0, (16, 16, 3)) == network.madds(0)


@pytest.fixture(scope="module")
def features():
    return make_network(include_top=False)


def test_features_without_the_top(features):
    assert features(IMAGES, path=1).shape == (24, 2, 2, 16)
    routed = features(IMAGES).numpy()
    assert features.output_shape == (None, 2, 2, 32)
    assert routed.shape == (24, 2, 2, 32)
    for image, width in zip(range(24), features.route(IMAGES).numpy()[:, 0]):
        expected = features(IMAGES[image : image + 1], path=int(width))[0]
        channels = expected.shape[-1]
        np.testing.assert_allclose(routed[image, ..., :channels], expected, atol=1e-4)
        assert not routed[image, ..., channels:].any()


def test_features_of_any_batch_have_the_channels_of_the_widest_route(features):
    widths = features.route(IMAGES).numpy()[:, 0]
    slim = IMAGES[widths < 3]
    assert features(slim).shape == (len(slim), 2, 2, 32)
    together = features(IMAGES)
    np.testing.assert_allclose(features.predict(IMAGES, 1, verbose=0), together, atol=1e-4)
    features.replace_routes((0, 2))
    try:
        assert features(slim).shape == (len(slim), 2, 2, 24)
    finally:
        features.replace_routes(WIDTHS)


@pytest.mark.slow
@pytest.mark.parametrize("path", [None, "slimmest", np.int64(2)], ids=repr)
def test_a_model_around_the_network_is_saved_and_loaded(features, path, tmp_path):
    images = keras.Input((16, 16, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(features(images, path=path))
    model = keras.Model(images, keras.layers.Dense(2)(pooled))
    expected = model(IMAGES)
    own = keras.ops.mean(features(IMAGES, path=path), (1, 2)) @ model.layers[-1].kernel
    np.testing.assert_allclose(expected, own, atol=1e-4)
    model.save(tmp_path / "around.keras")
    loaded = keras.models.load_model(tmp_path / "around.keras")
    np.testing.assert_allclose(loaded(IMAGES), expected, atol=1e-5)
    np.testing.assert_allclose(model.predict(IMAGES, 5, verbose=0), expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 24, 16, 3), (2, 16, 16, 1), (16, 16, 3)])
def test_other_images_are_refused(network, shape):
    images = np.zeros(shape, "float32")
    for run in (network, network.route, network.run_dynamic, lambda x: network(x, path=0)):
        with pytest.raises(ValueError, match=rf"^Images .*\(16, 16, 3\)`.*\({shape[0]}, "):
            run(images)
    with pytest.raises(ValueError, match=r"^Images "):
        network.run_sections(images, network.resolve_path(0))
    assert network(IMAGES[:2], path=0).shape == (2, 5)


def test_a_batch_without_images_is_refused(network):
    empty = np.zeros((0, *network.input_shape[1:]), "float32")
    message = re.escape(f"an image or more. Received: images of shape {empty.shape}")
    for call in (network, network.route, network.run_dynamic, lambda x: network(x, path=0)):
        with pytest.raises(ValueError, match=message):
            call(empty)


def test_raw_images_are_refused(network):
    raw = np.zeros((2, 16, 16, 3), "uint8")
    for run in (network, network.route, network.run_dynamic, lambda x: network(x, path=0)):
        with pytest.raises(ValueError, match=r"^Images must be floats.*preprocess_input.*uint8$"):
            run(raw)


@pytest.mark.parametrize("shape", [(16, 16), 16, (None, 16, 3)])
def test_madds_of_no_image_size_are_refused(network, shape):
    with pytest.raises(ValueError, match=r"input_shape.*Received: input_shape="):
        network.madds(0, shape)


def test_mixed_bfloat16_is_near_float32(network):
    low = make_network(dtype="mixed_bfloat16")
    low.set_weights(network.get_weights())
    expected = network(IMAGES, path=2).numpy()
    outputs = low(IMAGES, path=2)
    assert outputs.dtype == "float32"
    assert np.abs(outputs - expected).max() < 0.1 * np.abs(expected).max()
    assert low(IMAGES).shape == (24, 5)


def test_pooled_features_of_float16_may_add_up_to_more_than_it_holds():
    full, low = make_network(), make_network(dtype="mixed_float16")
    for network in (full, low):
        last = [step.layer for step in network.sections[-1] if step.kind == "norm"][-1]
        last.beta.assign(tf.fill(last.beta.shape, 3e4))
    expected = full(IMAGES, path=0).numpy()
    np.testing.assert_allclose(low(IMAGES, path=0), expected, atol=0.01 * np.abs(expected).max())


def test_summary_and_width_table(network, capsys):
    network.summary()
    assert "block_1_pointwise" in capsys.readouterr().out
    table = network.width_table()
    assert [row["channels"] for row in table] == [8, 12, 16, 24]
    assert [row["madds"] for row in table] == [network.madds(width) for width in WIDTHS]
    for row in table:
        assert row["parameters"] == sum(
            np.prod(v.shape) for v in network.subnetwork(row["path"]).trainable_variables
        )


def test_section_costs_add_up_to_the_madds(network):
    front, tables = section_costs(network, (0, 2, 3))
    assert [front + int(cost) for cost in tables[0][0]] == [network.madds(w) for w in (0, 2, 3)]


def test_largest_is_a_path_only_of_a_wide_front(network):
    assert network.resolve_path("largest").widths[0] == 1
    gated = MobileNetStage(1, 2, (8, 12, 16), gated=True)
    for stem, front in (((8,), (8,)), ((8, 12), (8,)), ((8,), (8, 12))):
        spec = MobileNetSpec(stem=stem, stages=(MobileNetStage(1, 2, front), gated))
        assert spec.has_wide_front == (len(stem) + len(front) > 2)
    narrow = MobileNetSpec(stem=(8,), stages=(MobileNetStage(1, 2, (8,)), gated))
    model = DynamicSlimmableNetwork(narrow, input_shape=(32, 32, 3), classes=4)
    with pytest.raises(ValueError, match=r"'slimmest' or 'widest'\. Received: path='largest'"):
        model(np.zeros((1, 32, 32, 3), "float32"), path="largest")
    assert not MobileNetSpec.paper().has_wide_front


def test_weights_that_do_not_fit_change_no_setting(network, tmp_path):
    stages = MobileNetStage(1, 2, (8, 12)), MobileNetStage(1, 2, (8, 12, 16), gated=True)
    networks = [
        DynamicSlimmableNetwork(MobileNetSpec(stem=(stem,), stages=stages), (32, 32, 3), classes=4)
        for stem in (8, 16)
    ]
    first, other = networks
    first.class_names = ("a", "b", "c", "d")
    first.routes, first.gates_trained, first.routing = (0, 1), True, "confidence"
    first.thresholds = (0.9,)
    first.save_weights(tmp_path / "first.weights.h5")
    before = other.routing_config(), other.class_names
    with pytest.raises(ValueError, match=r"with stem=\(8,\)\. Received: .* stem=\(16,\)$"):
        other.load_weights(tmp_path / "first.weights.h5")
    assert (other.routing_config(), other.class_names) == before
    assert (other.routes, other.gates_trained) == ((0, 1, 2), False)


def test_a_network_without_attention_pools_only_for_its_slimming_head():
    stages = MobileNetStage(1, 2, (8, 12)), MobileNetStage(1, 2, (8, 12, 16), gated=True)
    spec = MobileNetSpec(stem=(8, 12), stages=stages, attention=None)
    network = DynamicSlimmableNetwork(spec, input_shape=(32, 32, 3), classes=10)
    (gate,), costs = network.slimming_gates, network.costs(0)
    channels, side = 8, 4  # of the last features, and of those that the gate sees
    assert costs.pooling == side**2 * channels
    pools = [layer for layer in network.subnetwork(0).layers if "Pool" in type(layer).__name__]
    assert len(pools) == 1
    assert costs.slimming == (side**2 + gate.hidden_units) * channels + gate.hidden_units * 3


def test_a_subnetwork_is_float32_whatever_the_policy(network):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        plain = network.subnetwork(0)
    finally:
        keras.config.set_dtype_policy("float32")
    assert {layer.compute_dtype for layer in plain.layers[1:]} == {"float32"}
    np.testing.assert_allclose(plain(IMAGES), network(IMAGES, path=0), atol=1e-4)
