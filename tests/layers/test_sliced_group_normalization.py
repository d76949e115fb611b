"""Group normalisation has a gradient of its own in training: that of the stock layer."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_dsnet.layers import SlicedGroupNormalization

OPTIONS, GROUP = (8, 12, 16), 4


def gradients(function, sources):
    """The outputs, and the gradients of a sum of them that weighs every one differently."""
    with tf.GradientTape() as tape:
        tape.watch(sources)
        outputs = function()
        weights = np.random.default_rng(1).normal(size=outputs.shape)
        loss = tf.reduce_sum(outputs * tf.cast(weights, outputs.dtype))
    return [outputs, *tape.gradient(loss, sources)]


@pytest.mark.parametrize("traced", [False, True], ids=["static width", "width as a tensor"])
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-12)])
def test_gradients_are_those_of_the_stock_layer(dtype, tolerance, training, traced):
    channels = OPTIONS[1]
    layer = SlicedGroupNormalization(OPTIONS, GROUP, dtype=dtype)
    layer.build((None, None, None, OPTIONS[-1]))
    stock = keras.layers.GroupNormalization(channels // GROUP, epsilon=layer.epsilon, dtype=dtype)
    stock.build((None, None, None, channels))
    generator = np.random.default_rng(0)
    for own, its in ((layer.gamma, stock.gamma), (layer.beta, stock.beta)):
        own.assign(generator.normal(size=OPTIONS[-1:]))
        its.assign(own.numpy()[:channels])
    images = tf.constant(generator.normal(2.0, 3.0, (2, 5, 3, channels)).astype(dtype))

    def by_own(images, width):
        sources = [images, layer.gamma.value, layer.beta.value]
        return gradients(lambda: layer(images, width=width, training=training), sources)

    actual = tf.function(by_own)(images, tf.constant(1)) if traced else by_own(images, 1)
    expected = gradients(lambda: stock(images), [images, stock.gamma.value, stock.beta.value])
    for ours, theirs in zip(actual, expected):
        ours, theirs = tf.convert_to_tensor(ours).numpy(), theirs.numpy()
        # A wider layer's vectors go on, with gradients of zero.
        ours = ours[tuple(slice(size) for size in theirs.shape)]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())
