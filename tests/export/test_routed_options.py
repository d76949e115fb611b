"""Tests routed files of other networks, number formats and inputs, and Keras's formats."""

import dataclasses
import sys

import numpy as np
import pytest
import tensorflow as tf
from exported import Exported, kind_of, largest_difference
from keras_dsnet.applications.ds_mobilenet import preprocess_input
from routed_networks import SHORT_SPEC, SIZE, odd_gammas, random_images, small_network

from keras_dsnet.models import with_dtype

IMAGES = random_images(24)


def assert_routes_agree(exported, network, images):
    for route in exported.routes:
        outputs, widths = exported.bounded(images, route, route)
        assert set(widths) == {route}
        assert largest_difference(outputs, network(images, path=route)) <= 1e-4


@pytest.mark.slow
def test_a_scalar_head_a_sigmoid_and_encoders_apart(tmp_path):
    spec = dataclasses.replace(
        SHORT_SPEC, slimming_head="scalar", attention="sigmoid", share_encoder=False
    )
    network = small_network(spec=spec, classifier_activation=None, input_shape=(None, None, 3))
    network.routes = (0, 1, 3)
    exported = Exported(network, tmp_path, input_shape=(24, SIZE, 3), verbose=False)
    (image,) = exported.interpreter.get_input_details()
    assert image["shape"].tolist() == [1, 24, SIZE, 3]
    images = np.concatenate([IMAGES, IMAGES[:, :8]], axis=1)
    assert_routes_agree(exported, network, images[:4])
    outputs, widths = exported.choose(images)
    np.testing.assert_array_equal(widths, network.route(images)[:, 0])
    assert set(widths) == {0, 1, 3}
    # These are logits, not probabilities.
    assert (outputs < 0).any()


@pytest.mark.slow
def test_low_precision_and_gammas_of_zero_and_below(tmp_path):
    network = odd_gammas(small_network(spec=SHORT_SPEC, dtype="mixed_bfloat16"))
    exported = Exported(network, tmp_path, routes=(0, 3), verbose=False)
    assert len(exported.cuts[3]) == 2
    assert_routes_agree(exported, with_dtype(network, "float32"), IMAGES[:4])


@pytest.mark.slow
def test_features_are_padded_to_the_widest_route(tmp_path):
    network = small_network(include_top=False)
    network.routes = (0, 2)
    exported = Exported(network, tmp_path, verbose=False)
    for route, channels in ((0, 16), (2, 32)):
        outputs, _ = exported.bounded(IMAGES[:2], route, route)
        expected = network(IMAGES[:2], path=route)
        assert largest_difference(outputs[..., :channels], expected) <= 1e-4
        assert outputs.shape == (2, 2, 2, 32)
        assert not outputs[..., channels:].any()
    assert set(network.route(IMAGES[:8]).numpy()[:, 0]) == {0, 2}
    assert largest_difference(exported.choose(IMAGES[:8])[0], network(IMAGES[:8])) <= 1e-4


def test_raw_pixels_equal_preprocessing_outside(tmp_path):
    network = small_network(spec=SHORT_SPEC)
    exported = Exported(network, tmp_path, routes=(1,), input_type="uint8", verbose=False)
    (image,) = exported.interpreter.get_input_details()
    assert image["dtype"] == np.uint8
    pixels = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), "uint8")
    outputs, widths = exported.choose(pixels)
    # Every image takes the only route.
    assert set(widths) == {1}
    assert largest_difference(outputs, network(preprocess_input(pixels), path=1)) <= 1e-4


@pytest.mark.long
@pytest.mark.parametrize(("quantize", "kind"), [("float16", "FLOAT16"), ("dynamic", "INT8")])
def test_weights_in_float16_or_int8_give_nearly_the_networks_outputs(tmp_path, quantize, kind):
    network = small_network()
    exported = Exported(network, tmp_path, routes=(3,), quantize=quantize, verbose=False)
    outputs, _ = exported.choose(IMAGES)
    assert largest_difference(outputs, network(IMAGES, path=3)) < 0.02
    graph = exported.branch(3)
    # With "dynamic" the converter keeps kernels with fewer than 1024 weights in float.
    assert kind in {kind_of(t) for t in graph.tensors if np.prod(t.shape) == 48 * 32}
    (image,) = exported.interpreter.get_input_details()
    assert image["dtype"] == np.float32


@pytest.mark.long
def test_ratios_in_float16_are_multiplications_that_xnnpack_takes(tmp_path):
    exported = Exported(
        small_network(), tmp_path, routes=(1, 2, 3), quantize="float16", verbose=False
    )
    for route in exported.routes:
        graph = exported.branch(route)
        operators = exported.operators(graph)
        assert exported.partitions(graph) == [set(graph.outputs)]
        # Each depthwise convolution of the network is one operator per channel group.
        depthwise = [name for _, name in operators].count("DEPTHWISE_CONV_2D")
        assert depthwise == 2 * len(exported.cuts[route])
        factors = {index for op, name in operators if name == "DEQUANTIZE" for index in op.outputs}
        multiplied = [set(op.inputs) & factors for op, name in operators if name == "MUL"]
        assert any(multiplied) == (route != 2)


@pytest.mark.slow
def test_a_saved_model_routes_too(tmp_path):
    network = small_network(spec=SHORT_SPEC)
    network.routes = (0, 3)
    # The network was not called before, but the shape of its images is known.
    network.export(tmp_path / "saved", format="tf_saved_model", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_allclose(loaded.serve(IMAGES), network(IMAGES), atol=1e-5)
    assert set(network.route(IMAGES).numpy()[:, 0]) == {0, 3}


def test_an_unknown_format_is_one_line_that_lists_the_known(tmp_path):
    with pytest.raises(ValueError, match=r"'litert' or one of 'tf_saved_model'.*'core'") as caught:
        small_network().export(tmp_path / "m", format="core")
    assert "\n" not in str(caught.value)


def test_a_format_whose_package_is_not_installed_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match="format='openvino' needs a package"):
        small_network(routes=(0,)).export(tmp_path / "m.xml", format="openvino", verbose=False)
