"""A frozen network inside of a model in training, and features that are pooled."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from routed_networks import SHORT_SPEC, random_images, small_network

IMAGES = random_images(16)
LABELS = np.arange(16) % 5


def backbone(**options):
    return small_network(spec=SHORT_SPEC, include_top=False, **options)


@pytest.fixture(scope="module")
def features():
    return backbone()


@pytest.fixture(scope="module")
def pooled():
    return {pooling: backbone(pooling=pooling) for pooling in ("avg", "max")}


def around(network, **call):
    images = keras.Input((16, 16, 3))
    model = keras.Model(
        images, keras.layers.Dense(5, activation="softmax")(network(images, **call))
    )
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


@pytest.mark.slow
@pytest.mark.parametrize("call", [{}, {"training": False}], ids=["plain", "training=False"])
def test_a_frozen_network_routes_in_fit_and_only_the_head_learns(call):
    network = backbone(pooling="avg")
    network.trainable = False
    model = around(network, **call)
    values = network.get_weights()
    kernel, bias = (np.array(v) for v in model.layers[-1].weights)
    model.fit(IMAGES, LABELS, batch_size=16, shuffle=False, verbose=0)
    for value, expected in zip(network.get_weights(), values, strict=True):
        np.testing.assert_array_equal(value, expected)
    # One step of SGD on routed features, by hand.
    inputs = network(IMAGES).numpy()
    assert len(np.unique(network.route(IMAGES))) > 1
    wrong = tf.nn.softmax(inputs @ kernel + bias).numpy() - np.eye(5)[LABELS]
    expected = kernel - 0.01 * inputs.T @ wrong / 16
    np.testing.assert_allclose(model.layers[-1].kernel, expected, atol=1e-5)


def thaw_one(network):
    network.trainable = False
    network.supernet_layers[3].trainable = True


@pytest.mark.parametrize("change", [lambda network: None, thaw_one], ids=["none", "thaw_one"])
def test_a_network_that_would_learn_is_refused_in_training(change):
    network = backbone(pooling="avg")
    change(network)
    model = around(network, training=False)
    assert model(IMAGES).shape == (16, 5)
    with pytest.raises(ValueError, match="Training needs a path"):
        model(IMAGES, training=True)


def test_training_that_is_asked_for_is_refused_of_a_frozen_network_too():
    network = backbone(trainable=False)
    for images in (IMAGES, keras.Input((16, 16, 3))):
        with pytest.raises(ValueError, match=r"^Training needs a path"):
            network(images, training=True)


@pytest.mark.slow
@pytest.mark.parametrize("path", [None, 0, 3])
@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_pooled_features(features, pooled, pooling, path):
    network = pooled[pooling]
    reduce = {"avg": np.mean, "max": np.max}[pooling]
    expected = reduce(features(IMAGES, path=path), (1, 2))
    if path is None:
        # The channels that a narrow path does not have are zeros, pooled or not.
        widths = network.route(IMAGES).numpy()[:, 0]
        for row, width in zip(expected, widths):
            row[SHORT_SPEC.stages[-1].channels[width] :] = 0
        np.testing.assert_allclose(network.predict(IMAGES, 5, verbose=0), expected, atol=1e-5)
        assert network.output_shape == (None, expected.shape[1])
    np.testing.assert_allclose(network(IMAGES, path=path), expected, atol=1e-5)
    np.testing.assert_allclose(tf.function(network)(IMAGES, path=path), expected, atol=1e-5)
    if path is not None:
        plain = network.subnetwork(path)
        assert plain.output_shape == (None, expected.shape[1])
        np.testing.assert_allclose(plain(IMAGES), expected, atol=1e-4)


def test_average_pools_cost_what_a_classifiers_pool_costs(features, pooled):
    elements = np.prod(features(IMAGES[:1], path=2).shape)
    assert pooled["avg"].madds(2) == features.madds(2) + elements
    assert pooled["avg"].madds(2, include_pooling=False) == features.madds(2, include_pooling=False)
    assert pooled["max"].madds(2) == features.madds(2)


def test_pooling_is_saved(pooled, tmp_path):
    for pooling, network in pooled.items():
        network.save(tmp_path / "net.keras")
        loaded = keras.models.load_model(tmp_path / "net.keras")
        assert loaded.pooling == pooling
        np.testing.assert_array_equal(loaded(IMAGES), network(IMAGES))


@pytest.mark.slow
@pytest.mark.parametrize("frames", [4, None])
def test_a_network_takes_the_frames_of_a_video(pooled, frames):
    network = pooled["avg"]
    images = keras.Input((frames, 16, 16, 3))
    model = keras.Model(images, keras.layers.TimeDistributed(network)(images))
    found = model.predict(IMAGES.reshape(4, 4, 16, 16, 3), verbose=0)
    assert model.output_shape == (None, frames, *found.shape[2:])
    expected = network.predict(IMAGES, verbose=0).reshape(found.shape)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_output_shapes_are_known_without_a_run(features, pooled):
    for path in (None, 0, "widest"):
        found = features.compute_output_spec(keras.Input((32, 48, 3)), path=path)
        assert features.compute_output_shape((None, 32, 48, 3), path) == tuple(found.shape)
    assert features.compute_output_shape((None, None, 16, 3))[:2] == (None, None)
    half = small_network(spec=SHORT_SPEC, dtype="mixed_bfloat16")
    assert half(keras.Input((16, 16, 3))).dtype == "float32"
    assert half.compute_output_shape((None, 16, 16, 3)) == half.output_shape == (None, half.classes)
