"""DS-MobileNet against the figures of the authors' network, and its arguments."""

import numpy as np
import pytest
import tensorflow as tf
from keras_dsnet.applications import DSMobileNet
from keras_dsnet.applications.ds_mobilenet import preprocess_input

# Multiply-adds of the released network at 224x224, counted by the authors' own code.
MADDS = (
    132890144, 152917184, 175151968, 199594496, 226244768, 255102784, 286168544,
    319442048, 354923296, 392612288, 432509024, 474613504, 518925728, 565445696,
)  # fmt: skip


def test_madds_and_parameters_are_the_authors():
    model = DSMobileNet()
    assert (model.num_gates, model.num_widths, model.routes) == (1, 14, tuple(range(14)))
    assert tuple(model.madds(width) for width in range(14)) == MADDS
    assert model.madds("largest") == 819883136
    assert model.madds("widest") == model.madds((13,)) == MADDS[-1]
    # Their slimming head has 4 rows of 66 weights where this one has 14.
    parameters = sum(np.prod(v.shape) for v in model.trainable_variables)
    assert parameters == 7676204 + 10 * 66


def test_convolutions_and_linear_layers_alone_cost_less():
    model = DSMobileNet()
    pools = MADDS[0] - model.madds(0, include_pooling=False)
    assert pools == model.costs(0).pooling > 0


def test_alpha_keeps_multiples_of_8_and_output_stride_the_early_size():
    model = DSMobileNet(input_shape=(32, 32, 3), classes=10, alpha=0.25, output_stride=8)
    channels = {c for stage in model.spec.stages for c in stage.channels} | set(model.spec.stem)
    assert all(c % 8 == 0 for c in channels)
    assert min(channels) == 8
    assert model.spec.gated_channels == tuple(range(56, 161, 8))
    features = DSMobileNet(input_shape=(32, 32, 3), alpha=0.25, output_stride=8, include_top=False)
    assert features(np.zeros((1, 32, 32, 3), "float32"), path=0).shape == (1, 4, 4, 184)


def test_front_alpha_scales_what_stands_before_the_gate_alone():
    small = {"input_shape": (32, 32, 3), "classes": 10, "alpha": 0.25}
    spec = DSMobileNet(**small, front_alpha=1.0).spec
    whole, narrow = DSMobileNet().spec, DSMobileNet(**small).spec
    assert spec.stem == whole.stem
    assert spec.stages[:3] == whole.stages[:3]
    assert spec.stages[3:] == narrow.stages[3:]
    assert DSMobileNet(**small, front_alpha=0.25).spec == narrow


def test_strides_one_by_one():
    small = {"input_shape": (32, 32, 3), "alpha": 0.25, "include_top": False}
    late = DSMobileNet(**small, strides=(1, 1, 2, 2, 1, 2))
    assert late(np.zeros((1, 32, 32, 3), "float32"), path=0).shape == (1, 4, 4, 184)
    early = DSMobileNet(**small, output_stride=8)
    assert DSMobileNet(**small, strides=(1, 1, 1, 2, 2, 2)).spec == early.spec
    assert late.spec != early.spec


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": (1, 2)}, r"strides=\(1, 2\)"),
        ({"strides": (1, 1, 3, 2, 2, 2)}, "3, 2, 2, 2"),
        ({"strides": (1, 1, 1, 2, 2, 2), "output_stride": 8}, "output_stride=8"),
        ({"front_alpha": 0}, "front_alpha=0"),
        ({"alpha": 0.1}, "alpha=0.1"),
        ({"alpha": -1.0}, "alpha=-1.0"),
        ({"output_stride": 4}, "output_stride=4"),
        ({"input_shape": (16, 16, 3)}, r"\(16, 16, 3\)"),
        ({"input_shape": (64, 64)}, r"\(64, 64\)"),
        ({"classes": 0}, "classes=0"),
        ({"width": 2}, "'width'"),
        ({"attention": "relu"}, "'relu'"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DSMobileNet(**options)


def test_preprocessing_is_imagenets_normalisation():
    images = np.array([[[[0, 128, 255]]]], "uint8")
    expected = (images / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(preprocess_input(images), expected, atol=1e-5)
    tensor = preprocess_input(tf.constant(images))
    assert tensor.dtype == "float32"
    np.testing.assert_allclose(tensor, expected, atol=1e-5)
