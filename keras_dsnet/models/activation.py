"""Activations of a network's steps."""

import keras
import tensorflow as tf


def activate(name, x, training=False):
    """Applies the activation of a "norm" step.

    Args:
        name: of a Keras activation, or None.
        x: a tensor.
        training: bool: whether a gradient will be asked for; changes speed alone.
    """
    if name is None:
        return x
    if training and name in ("swish", "silu"):
        return _swish(x)
    return keras.activations.get(name)(x)


@tf.custom_gradient
def _swish(x):
    """Swish that keeps its derivative for the gradient instead of `x`: as much memory, less work.

    The derivative is `s(x) + x * s(x) * (1 - s(x))` with the sigmoid `s`.
    """
    gate = tf.sigmoid(x)
    derivative = gate + tf.raw_ops.SigmoidGrad(y=gate, dy=x)
    return x * gate, lambda gradient: gradient * derivative
