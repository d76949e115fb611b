"""A network of another precision is the same network."""

import keras
import numpy as np
import pytest
from tiny_families import TINY_RESNET, tiny_images, tiny_network

from keras_dsnet.models import with_dtype


@pytest.mark.long
@pytest.mark.parametrize("given", ["mixed_bfloat16", keras.DTypePolicy("mixed_bfloat16")])
def test_weights_routes_and_trained_gates_stay(given):
    network = tiny_network(TINY_RESNET, routes=(0, 2))
    low = with_dtype(network, given)
    assert low.dtype_policy.name == "mixed_bfloat16"
    assert {layer.compute_dtype for layer in low.supernet_layers} == {"bfloat16"}
    assert network.dtype_policy.name == "float32"
    assert low.routes == (0, 2)
    assert low.gates_trained
    images = tiny_images()
    again = with_dtype(low, "float32")
    np.testing.assert_array_equal(again(images), network(images))
    assert np.any(np.asarray(low(images)) != np.asarray(network(images)))


def test_the_same_precision_is_the_same_network():
    network = tiny_network(TINY_RESNET)
    assert with_dtype(network, "float32") is network


def test_an_unknown_precision_is_named():
    with pytest.raises(ValueError, match="float12"):
        with_dtype(tiny_network(TINY_RESNET), "float12")
