"""Arguments that no network has, or that contradict this one, are refused before any work."""

import dataclasses
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from routed_networks import SHORT_SPEC

from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetStage, with_slimming_head
from keras_dsnet.models.costs import section_costs

FIXED, OPEN, SQUARE = (16, 16, 3), (None, None, 3), (None, 16, 3)


def make_network(**options):
    return DynamicSlimmableNetwork(**{"spec": SHORT_SPEC, "input_shape": FIXED, **options})


@pytest.fixture(scope="module")
def networks():
    return {shape: make_network(input_shape=shape) for shape in (FIXED, OPEN, SQUARE)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spec": None}, "`spec` must be a NetworkSpec.*None"),
        ({"spec": "mobilenet"}, "spec='mobilenet'"),
        ({"input_shape": (16, 16)}, r"input_shape=\(16, 16\)"),
        ({"input_shape": (None, 16, 16, 3)}, r"\(None, 16, 16, 3\)"),
        ({"input_shape": 16}, "input_shape=16"),
        ({"input_shape": "16x16"}, "16x16"),
        ({"input_shape": (16, 16, None)}, "None"),
        ({"input_shape": (0, 16, 3)}, r"\(0, 16, 3\)"),
        ({"input_shape": (16.0, 16, 3)}, r"\(16.0, 16, 3\)"),
        ({"input_shape": (True, 16, 3)}, r"\(True, 16, 3\)"),
        ({"classes": 0}, "classes=0"),
        ({"classes": 2.5}, "classes=2.5"),
        ({"classes": "10"}, "classes='10'"),
        ({"classes": True}, "classes=True"),
        ({"classes": None}, "classes=None"),
        ({"include_top": "no"}, "include_top='no'"),
        ({"include_top": None}, "include_top=None"),
        ({"classifier_activation": "soft"}, "classifier_activation='soft'"),
        ({"classifier_activation": 3}, "classifier_activation=3"),
        ({"classifier_activation": np.tanh}, "classifier_activation=<"),
        ({"pooling": "mean", "include_top": False}, "pooling='mean'"),
        ({"pooling": "avg"}, "include_top=False.*pooling='avg'"),
        ({"gates_trained": "yes"}, "gates_trained='yes'"),
        ({"gates_trained": 1}, "gates_trained=1"),
        ({"routes": (0, 9)}, r"routes=\(0, 9\)"),
        ({"routes": "01"}, "routes='01'"),
        ({"normalization": "imagenet"}, "normalization='imagenet'"),
        ({"normalization": {"scale": 1}}, "scale"),
        ({"dtype": "float16"}, "dtype='float16'"),
        ({"dtype": "int32"}, "dtype='int32'"),
    ],
)
def test_arguments_of_a_network(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        make_network(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "swosh"}, "activation='swosh'"),
        ({"activation": None}, "activation=None"),
        ({"attention": "relu"}, "attention='relu'"),
        ({"attention": "none"}, "attention='none'"),
        ({"attention_ratio": 0}, "attention_ratio=0"),
        ({"attention_ratio": np.inf}, "attention_ratio=inf"),
        ({"slimming_head": "two"}, "slimming_head='two'"),
        ({"share_encoder": 2}, "share_encoder=2"),
        ({"synchronized": "yes"}, "synchronized='yes'"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"dropout": "0.1"}, "dropout='0.1'"),
        ({"stem_strides": 0}, "stem_strides=0"),
        ({"stem": 16}, "stem=16"),
        ({"stages": ()}, r"stages=\(\)"),
        ({"stages": ("a",)}, r"stages\[0\]='a'"),
        ({"stages": (MobileNetStage(0, 1, (8,)),)}, r"stages\[0\].blocks=0"),
        ({"stages": (MobileNetStage(1, 1.5, (8,)),)}, r"stages\[0\].strides=1.5"),
        ({"stages": (MobileNetStage(1, 1, (8, 8.5)),)}, r"stages\[0\].channels=\(8, 8.5\)"),
    ],
)
def test_fields_of_a_spec(changes, message):
    with pytest.raises(ValueError, match=message):
        make_network(spec=dataclasses.replace(SHORT_SPEC, **changes))


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"alpha": np.inf}, "alpha=inf"),
        ({"alpha": True}, "alpha=True"),
        ({"alpha": "1"}, "alpha='1'"),
        ({"front_alpha": np.nan}, "front_alpha=nan"),
        ({"output_stride": 8.5}, "output_stride=8.5"),
        ({"output_stride": "8"}, "output_stride='8'"),
        ({"strides": (1, 2.5, 1)}, "2.5"),
        ({"strides": "112"}, "strides="),
        ({"strides": (True, 2, 1)}, "True"),
    ],
)
def test_scaling_of_a_spec(scaling, message):
    with pytest.raises(ValueError, match=message):
        SHORT_SPEC.scaled(**scaling)


def test_a_callable_activation_is_known_by_its_name():
    network = make_network(classifier_activation=keras.activations.sigmoid)
    assert network.classifier_activation == "sigmoid"
    assert make_network(classifier_activation=None).classifier_activation == "linear"


@pytest.mark.parametrize(
    ("own", "shape"),
    [
        (FIXED, (32, 32, 3)),
        (FIXED, (16, 16, 1)),
        (FIXED, (None, None, 3)),
        (FIXED, "16"),
        (FIXED, ()),
        (FIXED, 0),
        (SQUARE, (16, 32, 3)),
        (SQUARE, (-16, 16, 3)),
        (OPEN, (16, 16.5, 3)),
        (OPEN, None),
        (OPEN, (16, None, 3)),
        (OPEN, (16, 16, 4)),
    ],
)
def test_costs_at_a_shape_that_the_network_does_not_have(networks, own, shape):
    network = networks[own]
    for count in (
        lambda: network.madds(0, shape),
        lambda: network.costs(0, shape),
        lambda: network.width_table(shape),
        lambda: section_costs(network, (0, 1), shape),
    ):
        with pytest.raises(ValueError, match=r"input_shape.*Received: input_shape="):
            count()


def test_costs_at_a_shape_that_agrees(networks):
    madds = networks[FIXED].madds(1)
    assert networks[FIXED].madds(1, [16, 16, 3]) == networks[OPEN].madds(1, FIXED) == madds
    assert networks[SQUARE].madds(1, (np.int64(16), 16, 3)) == madds


def test_images_at_the_door(networks):
    images = np.zeros((2, 16, 16, 3), "float32")
    assert networks[FIXED](list(images), path=0).shape == (2, 1000)
    for bad in (
        tf.RaggedTensor.from_tensor(images),
        tf.sparse.from_dense(images),
        keras.Input(FIXED, sparse=True),
        [images[0], images[1, :8]],
        images.astype(object),
        images.astype("complex64"),
        {"image": images},
        None,
        "image.jpg",
    ):
        with pytest.raises(ValueError, match=r"^Images must be .*Received: "):
            networks[OPEN](bad, path=0)


@pytest.mark.parametrize("path", [None, 2])
def test_a_symbolic_batch_of_known_size(networks, path):
    networks[FIXED].gates_trained = True
    images = keras.Input(FIXED, batch_size=4)
    model = keras.Model(images, networks[FIXED](images, path=path))
    batch = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype("float32")
    np.testing.assert_allclose(model(batch), networks[FIXED](batch, path=path), atol=1e-5)


def test_other_routes_of_trained_gates_warn_once():
    network = make_network(routes=(0, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network.routes = (0, 1, 2)
        network.gates_trained = True
        network.routes = [0, 1, 2]
        network.replace_routes((0, 2))
    with pytest.warns(UserWarning, match=r"among the routes \(0, 2\).*choose \[3\]") as caught:
        network.routes = (0, 3)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network.routes = (0, 1)
    assert network.routes == (0, 1)


def test_fewer_routes_of_trained_gates_mask_the_others():
    network = make_network(gates_trained=True)
    with pytest.warns(UserWarning, match="scores of all other widths are masked") as caught:
        network.routes = (1, 2)
    assert "untrained" not in str(caught[0].message)


def test_a_slimming_head_of_no_design_is_named():
    with pytest.raises(ValueError, match="slimming_head='two'"):
        with_slimming_head(make_network(), "two")
    with pytest.raises(ValueError, match="share_encoder=1"):
        with_slimming_head(make_network(), share_encoder=1)
