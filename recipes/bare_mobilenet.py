"""DS-MobileNet in bare TensorFlow: what `benchmark_training.py` measures the package by.

Without Keras and without this package, and written to be fast on a CPU: vectors of one length lie
packed in one matrix, a width's slices are cut once and shared by all layers, 1x1 convolutions are
products of matrices, the activation keeps its derivative.
"""

import math
from typing import NamedTuple

import tensorflow as tf

NUM_WIDTHS = 14
WIDEST = NUM_WIDTHS - 1
GATE_BLOCK = 6
FRONT, TAIL = 0, 1
BN_EPSILON = 1e-5
STEM = (16, 24)
# Number of blocks, stride of the first, channels: one option per width, or what all widths use and
# the stored maximum that sizes the gates.
STAGES = (
    (1, 1, (32, 88)),
    (2, 2, (48, 168)),
    (2, 2, (96, 264)),
    (6, 2, tuple(range(224, 641, 32))),
    (2, 2, tuple(range(736, 1153, 32))),
)
PAD = [[0, 0], [1, 1], [1, 1], [0, 0]]


class Block(NamedTuple):
    """A depthwise separable block; `inputs` and `outputs` are channel options."""

    name: str
    inputs: tuple
    outputs: tuple
    stride: int
    hidden: int


class Parameter(NamedTuple):
    """A variable with its velocity and average; `axes` are the channel options of each axis."""

    variable: tf.Variable
    velocity: tf.Variable
    average: tf.Variable
    axes: tuple
    decayed: bool


def make_blocks():
    """Returns the 13 blocks."""
    inputs, most, blocks = STEM[:1], STEM[-1], []
    for count, stride, options in STAGES:
        for index in range(count):
            number = len(blocks) + 1
            outputs = options if number >= GATE_BLOCK else options[:1]
            hidden = int(0.25 * most + 0.5)
            blocks.append(Block(f"block_{number}", inputs, outputs, 1 if index else stride, hidden))
            inputs, most = outputs, options[-1]
    return blocks


@tf.custom_gradient
def swish(x):
    """Returns `x * sigmoid(x)`; keeps the derivative for the gradient, instead of `x`."""
    gate = tf.sigmoid(x)
    derivative = gate + tf.raw_ops.SigmoidGrad(y=gate, dy=x)
    return x * gate, lambda gradient: gradient * derivative


def depthwise(x, kernel, stride):
    """3x3 depthwise convolution with symmetric padding."""
    # oneDNN's filter gradient is slow on features smaller than the kernel; explicit padding makes
    # TensorFlow use its own.
    padding = "SAME" if stride == 1 and x.shape[1] > 2 else PAD
    return tf.nn.depthwise_conv2d(x, kernel, (1, stride, stride, 1), padding)


def attend(x, w1, b1, w3, b3):
    """Attention head of a gate (Eq. 9)."""
    hidden = tf.nn.relu(tf.matmul(tf.reduce_mean(x, (1, 2)), w1) + b1)
    scale = 1.0 + tf.tanh(tf.matmul(hidden, w3) + b3)
    return x * scale[:, None, None, :]


def pointwise(x, kernel):
    """1x1 convolution as a product of matrices."""
    sizes = tf.unstack(tf.shape(kernel))
    rows, columns = (static or size for static, size in zip(kernel.shape, sizes))
    return tf.reshape(tf.matmul(tf.reshape(x, (-1, rows)), kernel), (*x.shape[:3], columns))


def channels_at(options, width):
    """Returns the channels at a width: an int where they are known."""
    if len(options) < NUM_WIDTHS:
        return options[-1]
    return options[width] if isinstance(width, int) else tf.gather(options, width)


class TrainingNorm:
    """Batch norm by the batch's own statistics, which it keeps."""

    def __init__(self):
        self.means, self.variances = {}, {}

    def __call__(self, name, x, values):
        outputs, self.means[name], self.variances[name], *_ = tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=values[f"{name}/gamma"],
            offset=values[f"{name}/beta"],
            mean=[],
            variance=[],
            epsilon=BN_EPSILON,
            is_training=True,
        )
        return outputs


class MovingNorm:
    """Batch norm by the averaged statistics of a section at a width."""

    def __init__(self, net, section, width):
        self.means, self.variances = {}, {}
        for options, names in net.norms[section].items():
            row = net.statistics[section][options][1].sparse_read(width)
            means, variances = tf.unstack(row[..., : channels_at(options, width)])
            self.means.update(zip(names, tf.unstack(means, len(names))))
            self.variances.update(zip(names, tf.unstack(variances, len(names))))

    def __call__(self, name, x, values):
        outputs, *_ = tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=values[f"{name}/gamma"],
            offset=values[f"{name}/beta"],
            mean=self.means[name],
            variance=self.variances[name],
            epsilon=BN_EPSILON,
            is_training=False,
        )
        return outputs


class BareMobileNet:
    """The variables of the network, and its two sections: before and behind the slimming gate.

    Args:
        classes: int.
        seed: int.
    """

    def __init__(self, classes, seed=0):
        self.seed = seed
        self.blocks = make_blocks()
        self.parameters, self.vectors, self.norms = ({}, {}), ({}, {}), ({}, {})
        self._make_front()
        self._make_tail(classes)
        self.statistics = [self._pack(section) for section in (FRONT, TAIL)]

    def _make_front(self):
        kernel = self._he_normal((3, 3, 3, STEM[0]), 27)
        self._add(FRONT, "stem_conv/kernel", kernel, decayed=True)
        self._add_norm(FRONT, "stem_norm", STEM[:1])
        for block in self.blocks[: GATE_BLOCK - 1]:
            self._add_depthwise(FRONT, block)
            self._add_pointwise(FRONT, block)
        self._add_depthwise(FRONT, self.blocks[GATE_BLOCK - 1])

    def _make_tail(self, classes):
        self._add_pointwise(TAIL, self.blocks[GATE_BLOCK - 1])
        for block in self.blocks[GATE_BLOCK:]:
            self._add_depthwise(TAIL, block)
            self._add_pointwise(TAIL, block)
        features = self.blocks[-1].outputs
        kernel = self._he_normal((features[-1], classes), 2 * features[-1])
        self._add(TAIL, "classifier/kernel", kernel, (features, ()), decayed=True)
        self._add_vector(TAIL, "classifier/bias", (classes,))

    def _add_depthwise(self, section, block):
        name, options, hidden = block.name, block.inputs, block.hidden
        kernel = self._he_normal((3, 3, options[-1], 1), 9)
        self._add(section, f"{name}_depthwise/kernel", kernel, ((), (), options, ()), decayed=True)
        self._add_norm(section, f"{name}_depthwise_norm", options)
        w1 = self._he_normal((options[-1], hidden), options[-1])
        self._add(section, f"{name}_gate/w1", w1, (options, ()))
        self._add_vector(section, f"{name}_gate/b1", (hidden,))
        self._add(section, f"{name}_gate/w3", tf.zeros((hidden, options[-1])), ((), options))
        self._add_vector(section, f"{name}_gate/b3", options)

    def _add_pointwise(self, section, block):
        shape, axes = (block.inputs[-1], block.outputs[-1]), (block.inputs, block.outputs)
        name = f"{block.name}_pointwise"
        self._add(section, f"{name}/kernel", self._he_normal(shape, shape[0]), axes, decayed=True)
        self._add_norm(section, f"{name}_norm", block.outputs)

    def _he_normal(self, shape, fan_in):
        seed = (self.seed, sum(map(len, self.parameters)))
        return tf.random.stateless_normal(shape, seed) * math.sqrt(2.0 / fan_in)

    def _add(self, section, name, value, axes=None, decayed=False):
        variables = tf.Variable(value), tf.Variable(tf.zeros_like(value)), tf.Variable(value)
        axes = tuple(a or (n,) for a, n in zip(axes or [()] * len(value.shape), value.shape))
        self.parameters[section][name] = Parameter(*variables, axes, decayed)

    def _add_norm(self, section, name, options):
        self.norms[section].setdefault(options, []).append(name)
        self._add_vector(section, f"{name}/gamma", options)
        self._add_vector(section, f"{name}/beta", options)

    def _add_vector(self, section, name, options):
        self.vectors[section].setdefault(options, []).append(name)

    def _pack(self, section):
        """Makes one matrix of all vectors of a length, and one table of their statistics."""
        for options, names in self.vectors[section].items():
            start = [[float(name.endswith("gamma"))] for name in names] * tf.ones((1, options[-1]))
            self._add(section, f"vectors {options}", start, ((), options))
        tables = {}
        for options, names in self.norms[section].items():
            shape = (len(options), 1, len(names), options[-1])
            table = tf.concat([tf.zeros(shape), tf.ones(shape)], axis=1)
            tables[options] = tf.Variable(table), tf.Variable(table)
        return tables

    def slice_at(self, section, values, width):
        """Returns the slices of all values of a section at a width (Eq. 2)."""
        slices = {}
        for name, value in values.items():
            axes = self.parameters[section][name].axes
            ends = [None if len(o) == 1 else channels_at(o, width) for o in axes]
            # The gradient by a slice that cuts nothing off would still be copied.
            whole = all(end is None for end in ends) or width is WIDEST
            slices[name] = value if whole else value[tuple(slice(end) for end in ends)]
        return slices

    def unpack(self, section, slices):
        """Returns the slices with the packed vectors under their own names."""
        named = dict(slices)
        for options, names in self.vectors[section].items():
            named.update(zip(names, tf.unstack(slices[f"vectors {options}"], len(names))))
        return named

    def front(self, x, values, norm):
        """Runs what lies before the slimming gate."""
        x = tf.nn.conv2d(tf.pad(x, PAD), values["stem_conv/kernel"], 2, "VALID")
        x = swish(norm("stem_norm", x, values))
        for block in self.blocks[: GATE_BLOCK - 1]:
            x = self._pointwise(block, self._depthwise(block, x, values, norm), values, norm)
        return self._depthwise(self.blocks[GATE_BLOCK - 1], x, values, norm)

    def tail(self, x, values, norm):
        """Runs what lies behind the slimming gate; returns logits."""
        x = self._pointwise(self.blocks[GATE_BLOCK - 1], x, values, norm)
        for block in self.blocks[GATE_BLOCK:]:
            x = self._pointwise(block, self._depthwise(block, x, values, norm), values, norm)
        pooled = tf.reduce_mean(x, (1, 2))
        return tf.matmul(pooled, values["classifier/kernel"]) + values["classifier/bias"]

    def _depthwise(self, block, x, values, norm):
        x = depthwise(x, values[f"{block.name}_depthwise/kernel"], block.stride)
        x = swish(norm(f"{block.name}_depthwise_norm", x, values))
        return attend(x, *(values[f"{block.name}_gate/{key}"] for key in ("w1", "b1", "w3", "b3")))

    def _pointwise(self, block, x, values, norm):
        x = pointwise(x, values[f"{block.name}_pointwise/kernel"])
        return swish(norm(f"{block.name}_pointwise_norm", x, values))
