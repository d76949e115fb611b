"""Batch normalisation at inference: a scale and an offset that fit into the convolution before."""

import keras
import numpy as np
import tensorflow as tf


def foldable_norms(steps):
    """Returns the "norm" step right behind each convolution, where it is a batch norm.

    Args:
        steps: of a topology.

    Returns:
        Dict from the convolution's layer to the "norm" step.
    """
    return {
        step.layer: behind
        for step, behind in zip(steps, steps[1:])
        if step.kind in ("conv", "depthwise") and behind.is_batch_norm
    }


def batch_norm_values(layer, row, channels):
    """Returns gamma, beta, moving mean and moving variance, each float32 `[channels]`.

    Args:
        layer: a `SwitchableBatchNormalization`.
        row: int: the row of its statistics.
        channels: int: the first so many channels.
    """
    vectors = [as_numpy(v)[:channels] for v in (layer.gamma, layer.beta)]
    tables = [as_numpy(v)[row, :channels] for v in (layer.moving_mean, layer.moving_variance)]
    return [*vectors, *tables]


def scale_and_offset(layer, row, channels):
    """Returns what a batch norm multiplies its input with and then adds, float32 `[channels]`.

    Args:
        layer: a `SwitchableBatchNormalization`.
        row: int: the row of its statistics.
        channels: int: the first so many channels.
    """
    gamma, beta, mean, variance = batch_norm_values(layer, row, channels)
    scale = gamma / np.sqrt(variance + layer.epsilon)
    return scale, beta - mean * scale


def as_numpy(variable):
    """Returns the value of a variable now, float32, inside of a traced function too."""
    with tf.init_scope():
        return keras.ops.convert_to_numpy(variable).astype("float32")
