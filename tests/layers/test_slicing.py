"""Gradients by slices against gradients by whole variables."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_dsnet.layers import SlicedConv2D, SlicedDense
from keras_dsnet.layers.slicing import SliceTape, add_slices, whole_gradient

IMAGES = np.random.default_rng(0).normal(size=(2, 5, 5, 3)).astype("float32")


@pytest.fixture
def layers():
    conv = SlicedConv2D((4, 6, 8), 3, input_channels=3, use_bias=True)
    dense = SlicedDense(2, input_channels=8)
    run(conv, dense, 2)
    return conv, dense


def run(conv, dense, width):
    features = tf.nn.relu(conv(IMAGES, width=width))
    return tf.reduce_sum(dense(tf.reduce_mean(features, (1, 2))) ** 2)


def by_variables(layers, widths):
    variables = [v.value for layer in layers for v in layer.trainable_variables]
    with tf.GradientTape() as tape:
        loss = tf.add_n([run(*layers, width) for width in widths])
    return tape.gradient(loss, variables)


def by_slices(layers, widths, ascending=False):
    total, reads = {}, {}
    for width in widths:
        with SliceTape(reads) as tape:
            loss = run(*layers, width)
        add_slices(total, tape.gradient(loss)[1], ascending)
    return [whole_gradient(total, v) for layer in layers for v in layer.trainable_variables]


@pytest.mark.parametrize("widths", [(0, 1, 2), (2, 0), (1, 0), (0,)])
def test_sums_are_the_gradients_by_whole_variables(layers, widths):
    for gradient, expected in zip(by_slices(layers, widths), by_variables(layers, widths)):
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


def test_tensor_widths_in_a_traced_function(layers):
    traced = tf.function(
        lambda a, b: by_slices(layers, (0, a, b, 2), ascending=True), autograph=False
    )
    expected = by_variables(layers, (0, 1, 1, 2))
    for gradient, value in zip(traced(tf.constant(1), tf.constant(1)), expected):
        np.testing.assert_allclose(gradient, value, rtol=1e-5, atol=1e-6)


def test_one_tape_takes_a_variable_at_two_widths(layers):
    with SliceTape() as tape:
        loss = run(*layers, 0) + run(*layers, 2) + run(*layers, 1)
    total = tape.gradient(loss)[1]
    variables = [v for layer in layers for v in layer.trainable_variables]
    for variable, expected in zip(variables, by_variables(layers, (0, 2, 1)), strict=True):
        np.testing.assert_allclose(whole_gradient(total, variable), expected, rtol=1e-5, atol=1e-6)


def test_watched_tensors_and_output_gradients(layers):
    conv, _ = layers
    images = tf.constant(IMAGES)
    with SliceTape() as tape:
        tape.watch(images)
        outputs = conv(images, width=1)
    (gradient,), slices = tape.gradient(outputs, [images], 2.0 * tf.ones_like(outputs))
    with tf.GradientTape() as plain:
        plain.watch(images)
        doubled = 2.0 * tf.reduce_sum(conv(images, width=1))
    expected, kernel = plain.gradient(doubled, [images, conv.kernel.value])
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    np.testing.assert_allclose(whole_gradient(slices, conv.kernel), kernel, rtol=1e-5)


def test_a_variable_that_no_sliced_layer_used_is_an_error(layers):
    stray = keras.Variable(np.zeros(3, "float32"), name="stray")
    with SliceTape() as tape:
        loss = run(*layers, 0) + tf.reduce_sum(stray)
    with pytest.raises(ValueError, match="stray"):
        whole_gradient(tape.gradient(loss)[1], stray)


def test_layers_outside_of_a_tape_are_as_they_were(layers):
    conv, dense = layers
    before = run(conv, dense, 1)
    with SliceTape():
        inside = run(conv, dense, 1)
    np.testing.assert_array_equal(inside, before)
    np.testing.assert_array_equal(run(conv, dense, 1), before)
