"""Group normalisation in operators that XNNPACK takes."""

import numpy as np
import tensorflow as tf

from keras_dsnet.models.folding import as_numpy


def group_norm(layer, x, first, last):
    """Normalises a group of channels; see `SlicedGroupNormalization`.

    A tensor of five axes, one for the groups, would leave XNNPACK, and its mean over so many values
    would lose digits. Here the mean of every channel comes first; a grouped 1x1 convolution of ones
    turns those of a group into its mean, and hands it to each of its channels.

    Args:
        layer: a `SlicedGroupNormalization`.
        x: `[1, height, width, last - first]`.
        first: int: the layer's channel that is the first of `x`.
        last: int: the end of its channels.
    """
    size = layer.channels_per_group
    if first % size or (last - first) % size:
        raise ValueError(
            f"Channels {first} to {last} of layer '{layer.name}' are no whole groups of {size}"
        )
    average = tf.constant(np.full((1, 1, size, last - first), 1 / size, "float32"))
    gamma, beta = (as_numpy(v)[first:last] for v in (layer.gamma, layer.beta))
    mean = _over_groups(tf.reduce_mean(x, (1, 2), keepdims=True), average)
    squares = tf.math.squared_difference(x, mean)
    variance = _over_groups(tf.reduce_mean(squares, (1, 2), keepdims=True), average)
    scale = tf.math.rsqrt(variance + np.float32(layer.epsilon)) * gamma
    return x * scale + (beta - mean * scale)


def _over_groups(moments, average):
    return tf.nn.conv2d(moments, average, 1, "VALID")
