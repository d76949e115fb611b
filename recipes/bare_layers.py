"""The operations of the reference networks that `benchmark_training.py` measures the package by.

Without Keras and without this package, and written to be fast on a CPU: 1x1 convolutions are
products of matrices, Swish keeps its derivative.
"""

import tensorflow as tf

EPSILON = 1e-5


@tf.custom_gradient
def swish(x):
    """Returns `x * sigmoid(x)`; keeps the derivative for the gradient, instead of `x`."""
    gate = tf.sigmoid(x)
    derivative = gate + tf.raw_ops.SigmoidGrad(y=gate, dy=x)
    return x * gate, lambda gradient: gradient * derivative


def convolve(x, kernel, stride=1):
    """Convolution with symmetric padding; a kernel of two axes is a 1x1 convolution."""
    if len(kernel.shape) > 2:
        return tf.nn.conv2d(x, kernel, stride, _padding(kernel.shape[0], stride))
    if stride > 1:
        # A pool of single pixels takes every other one, with a faster gradient than a slice.
        x = tf.nn.avg_pool2d(x, 1, stride, "VALID")
    sizes = tf.unstack(tf.shape(kernel))
    rows, columns = (static or size for static, size in zip(kernel.shape, sizes))
    return tf.reshape(tf.matmul(tf.reshape(x, (-1, rows)), kernel), (*x.shape[:3], columns))


def depthwise(x, kernel, stride):
    """Depthwise convolution with symmetric padding."""
    size = kernel.shape[0]
    # oneDNN's filter gradient is slow on features smaller than the kernel; explicit padding makes
    # TensorFlow use its own.
    padding = _explicit(size) if x.shape[1] < size else _padding(size, stride)
    return tf.nn.depthwise_conv2d(x, kernel, (1, stride, stride, 1), padding)


def _padding(size, stride):
    return "SAME" if stride == 1 else _explicit(size)


def _explicit(size):
    pad = [size // 2] * 2
    return [[0, 0], pad, pad, [0, 0]]


def attend(x, w1, b1, w3, b3):
    """Attention head of a gate (Eq. 9)."""
    hidden = tf.nn.relu(tf.matmul(tf.reduce_mean(x, (1, 2)), w1) + b1)
    scale = 1.0 + tf.tanh(tf.matmul(hidden, w3) + b3)
    return x * scale[:, None, None, :]


def group_norm(x, gamma, beta, size):
    """Group norm with `size` channels a group (Sec. 4), by the moments of the channels."""

    @tf.custom_gradient
    def normalize(x, gamma, beta):
        channels = tf.shape(gamma)[0]
        rows, groups = (-1, 1, 1, channels), (-1, channels // size, size)
        means, variances = (tf.reshape(m, groups) for m in tf.nn.moments(x, (1, 2)))
        mean = _over_group(means)
        between = tf.math.squared_difference(means, mean)
        inverse = tf.math.rsqrt(_over_group(variances + between) + EPSILON)
        gammas = tf.reshape(gamma, groups[1:])
        scale = inverse * gammas
        offset = tf.reshape(beta, groups[1:]) - mean * scale

        def gradient(outer):
            # Means over the pixels: of the gradient, and of it times the normalised input.
            plain = tf.reshape(tf.reduce_mean(outer, (1, 2)), groups)
            times_x = tf.reshape(tf.reduce_mean(outer * x, (1, 2)), groups)
            times_x = inverse * (times_x - mean * plain)
            factor = -inverse * inverse * _over_group(gammas * times_x)
            constant = -inverse * _over_group(gammas * plain) - factor * mean
            factor, constant = (
                tf.reshape(tf.repeat(v, size, axis=2), rows) for v in (factor, constant)
            )
            inner = outer * tf.reshape(scale, rows) + (x * factor + constant)
            pixels = float(x.shape[1] * x.shape[2])
            sums = (pixels * tf.reduce_sum(v, 0) for v in (times_x, plain))
            return inner, *(tf.reshape(v, (-1,)) for v in sums)

        return x * tf.reshape(scale, rows) + tf.reshape(offset, rows), gradient

    return tf.ensure_shape(normalize(x, gamma, beta), x.shape)


def _over_group(values):
    return tf.reduce_mean(values, 2, keepdims=True)


def batch_norm(x, gamma, beta, mean=None, variance=None):
    """Batch norm by given statistics, or by the batch's own.

    Returns:
        `(outputs, mean, variance)`.
    """
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=gamma,
        offset=beta,
        mean=[] if mean is None else mean,
        variance=[] if variance is None else variance,
        epsilon=EPSILON,
        is_training=mean is None,
    )
    return outputs, mean, variance
