"""The base of the reference networks in bare TensorFlow: operations, variables, slices.

Nothing here uses Keras or this package, and all of it is written to be fast on a CPU: 1x1
convolutions are products of matrices, and Swish keeps its derivative.

Vectors of one length lie packed in one matrix, and a sub-network's slices are cut once and shared
by all layers.
"""

import math
from typing import NamedTuple

import tensorflow as tf

FRONT, TAIL = 0, 1
EPSILON = 1e-5


class Channels(NamedTuple):
    """Channel options, and which gate chooses among them; one option is static."""

    options: tuple
    gate: int = 0

    @property
    def most(self):
        return self.options[-1]

    def at(self, path):
        """Returns the channels along a path, a width per gate: an int where they are known."""
        if len(self.options) == 1:
            return self.options[0]
        width = path[self.gate]
        return self.options[width] if isinstance(width, int) else tf.gather(self.options, width)


class Parameter(NamedTuple):
    """A variable with its velocity and average; `axes` are the `Channels` of each axis."""

    variable: tf.Variable
    velocity: tf.Variable
    average: tf.Variable
    axes: tuple
    decayed: bool


class TrainingNorm:
    """Batch norm by the batch's own statistics, which it keeps."""

    def __init__(self):
        self.means, self.variances = {}, {}

    def __call__(self, name, x, gamma, beta):
        outputs, self.means[name], self.variances[name] = batch_norm(x, gamma, beta)
        return outputs


class MovingNorm:
    """Batch norm by the averaged statistics of the front or the tail along a path."""

    def __init__(self, net, half, path):
        self.means, self.variances = {}, {}
        for channels, names in net.norms[half].items():
            row = net.statistics[half][channels][1].sparse_read(path[0] if half else 0)
            means, variances = tf.unstack(row[..., : channels.at(path)])
            self.means.update(zip(names, tf.unstack(means, len(names))))
            self.variances.update(zip(names, tf.unstack(variances, len(names))))

    def __call__(self, name, x, gamma, beta):
        return batch_norm(x, gamma, beta, self.means[name], self.variances[name])[0]


class BareNetwork:
    """A network in two halves: the front, up to the first slimming gate, and the tail behind it.

    A subclass makes its variables by `_make_front` and `_make_tail`, and runs them by
    `front(x, values, norm)` and `tail(x, values, norm)`.

    Args:
        spec: what the network is made of: an object with the fields of the package's spec.
        classes: int.
        seed: int.
    """

    def __init__(self, spec, classes, seed=0):
        self.spec = spec
        self.seed = seed
        self.num_gates = sum(stage.gated for stage in spec.stages)
        self.num_widths = next(len(stage.channels) for stage in spec.stages if stage.gated)
        self.parameters, self.vectors, self.norms = ({}, {}), ({}, {}), ({}, {})
        self._make_front()
        self._add_classifier(self._make_tail(), classes)
        self.statistics = [self._pack(half) for half in (FRONT, TAIL)]

    def _he_normal(self, shape, fan_in):
        seed = (self.seed, sum(map(len, self.parameters)))
        return tf.random.stateless_normal(shape, seed) * math.sqrt(2.0 / fan_in)

    def _add(self, half, name, value, axes=None, decayed=False):
        variables = tf.Variable(value), tf.Variable(tf.zeros_like(value)), tf.Variable(value)
        axes = axes or [None] * len(value.shape)
        axes = tuple(axis or Channels((size,)) for axis, size in zip(axes, value.shape))
        self.parameters[half][name] = Parameter(*variables, axes, decayed)

    def _add_vector(self, half, name, channels):
        self.vectors[half].setdefault(channels, []).append(name)

    def _add_norm(self, half, name, channels, has_statistics=True):
        if has_statistics:
            self.norms[half].setdefault(channels, []).append(name)
        self._add_vector(half, f"{name}/gamma", channels)
        self._add_vector(half, f"{name}/beta", channels)

    def _add_conv(self, half, name, inputs, outputs, size=1):
        shape, axes = (inputs.most, outputs.most), (inputs, outputs)
        if size > 1:
            shape, axes = (size, size, *shape), (None, None, *axes)
        kernel = self._he_normal(shape, size * size * inputs.most)
        self._add(half, f"{name}/kernel", kernel, axes, decayed=True)

    def _add_depthwise(self, half, name, channels, size=3):
        kernel = self._he_normal((size, size, channels.most, 1), size * size)
        self._add(half, f"{name}/kernel", kernel, (None, None, channels, None), decayed=True)

    def _add_gate(self, half, name, channels, hidden):
        most = channels.most
        self._add(half, f"{name}/w1", self._he_normal((most, hidden), most), (channels, None))
        self._add_vector(half, f"{name}/b1", Channels((hidden,)))
        self._add(half, f"{name}/w3", tf.zeros((hidden, most)), (None, channels))
        self._add_vector(half, f"{name}/b3", channels)

    def _add_classifier(self, features, classes):
        kernel = self._he_normal((features.most, classes), 2 * features.most)
        self._add(TAIL, "classifier/kernel", kernel, (features, None), decayed=True)
        self._add_vector(TAIL, "classifier/bias", Channels((classes,)))

    def _pack(self, half):
        """Makes one matrix of all vectors of a length, and one table of their statistics."""
        for channels, names in self.vectors[half].items():
            start = [[float(name.endswith("gamma"))] for name in names]
            matrix = start * tf.ones((1, channels.most))
            self._add(half, f"vectors {channels}", matrix, (None, channels))
        tables = {}
        for channels, names in self.norms[half].items():
            shape = (self.num_widths if half else 1, 1, len(names), channels.most)
            table = tf.concat([tf.zeros(shape), tf.ones(shape)], axis=1)
            tables[channels] = tf.Variable(table), tf.Variable(table)
        return tables

    def slice_at(self, half, values, path):
        """Returns the slices of all values of a half along a path (Eq. 2)."""
        slices = {}
        for name, value in values.items():
            axes = self.parameters[half][name].axes
            ends = [axis.at(path) for axis in axes]
            # An axis that is not cut keeps its size known only so.
            cuts = [None if _is(end, axis.most) else end for end, axis in zip(ends, axes)]
            # The gradient by a slice that cuts nothing off would still be copied.
            whole = all(cut is None for cut in cuts)
            slices[name] = value if whole else value[tuple(map(slice, cuts))]
        return slices

    def unpack(self, half, slices):
        """Returns the slices with the packed vectors under their own names."""
        named = dict(slices)
        for channels, names in self.vectors[half].items():
            named.update(zip(names, tf.unstack(slices[f"vectors {channels}"], len(names))))
        return named


def _is(size, count):
    return isinstance(size, int) and size == count


def named(values, name, *keys):
    """Returns the values of one layer: `name/key` for every key."""
    return [values[f"{name}/{key}"] for key in keys]


def classify(x, values):
    """Average pool and classifier."""
    kernel, bias = named(values, "classifier", "kernel", "bias")
    return tf.matmul(tf.reduce_mean(x, (1, 2)), kernel) + bias


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
