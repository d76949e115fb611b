"""Runs one route on channel blocks, so that a file holds every weight once for all routes."""

import itertools

import numpy as np
import tensorflow as tf

from keras_dsnet.layers.sliced_conv2d import tf_padding
from keras_dsnet.models.activation import activate
from keras_dsnet.models.folding import as_numpy, foldable_norms, scale_and_offset
from keras_dsnet.models.topology import Executor

INT8_MAX = 127


class BlockExecutor(Executor):
    """Runs steps over tuples of channel groups, with kernels cut into blocks of constants.

    A route of cuts `(r1, ..., rn)` has the groups `[0, c(r1))`, `[c(r1), c(r2))`, ... of channels;
    a convolution is a sum over the groups of its input for every group of its output. Routes that
    share leading cuts have leading blocks in common, as equal constants, which a TFLite file holds
    once. Batch norm has statistics per width, and would make the kernels of every width different:
    each group is folded with the statistics of the narrowest route that has it, and a wider route
    multiplies the group's output by the ratio of the two scales.

    Args:
        row: int: the route's row of batch-norm statistics, its width.
        cuts: ascending tuple of widths, the last one the route's.
        integer: bool: make kernels for an int8 file. There the ratio of the scales is no operation:
            the blocks are rounded to what int8 holds before they are scaled, so that every route
            quantises to the same numbers, with scales of its own.

    Attributes:
        scores: the slimming heads' outputs, in order, filled while running.
    """

    def __init__(self, row, cuts, integer=False):
        self.row = row
        self.cuts = cuts
        self.integer = integer
        self.scores = []
        self._norm_behind = {}

    def run(self, steps, x):
        self._norm_behind.update(foldable_norms(steps))
        return super().run(steps, x)

    def _edges(self, step, options):
        """Returns where the groups of a layer's channels begin, and where the last one ends."""
        if step.section == 0 or len(options) == 1:
            return (0, options[0])
        return (0, *(options[width] for width in self.cuts))

    def _rows(self, step, groups):
        """Returns for each output group the row of statistics that its kernel is folded with."""
        if step.section == 0:
            return [0]
        return self.cuts if groups == len(self.cuts) else [self.row]

    def conv(self, step, x):
        layer = step.layer
        padding = tf_padding(layer.padding, layer.kernel_size, layer.strides)

        def convolve(group, kernel):
            return tf.nn.conv2d(group, tf.constant(kernel), layer.strides, padding)

        return self._blocks(step, x, layer.filters, as_numpy(layer.kernel), convolve)

    def dense(self, step, x):
        def multiply(group, kernel):
            return tf.matmul(group, tf.constant(kernel))

        return self._blocks(step, x, step.layer.units, as_numpy(step.layer.kernel), multiply)

    def _blocks(self, step, x, options, kernel, operation):
        """Sums `operation(input group, block)` over the groups of the input, for each output."""
        edges = self._edges(step, options)
        inputs = _edges_of(x)
        bias = None if step.layer.bias is None else as_numpy(step.layer.bias)[: edges[-1]]
        scale, bias, ratio = self._folded(step, edges, bias)
        outputs = []
        for out in itertools.pairwise(edges):
            total = None
            for group, own in zip(x, itertools.pairwise(inputs)):
                block = kernel[..., slice(*own), slice(*out)]
                block = _rounded(block) if self.integer else block
                term = operation(group, block * scale[slice(*out)])
                if total is None and bias is not None:
                    # A convolution adds its bias for free; behind the ratio it would cost.
                    term += (bias / ratio)[slice(*out)]
                total = term if total is None else total + term
            outputs.append(_multiplied(total, ratio[slice(*out)], is_sum=len(x) > 1))
        return tuple(outputs)

    def _folded(self, step, edges, bias):
        """Returns what kernels are scaled by, the bias, and what a sum is multiplied with after."""
        channels = edges[-1]
        ones = np.ones(channels, "float32")
        if step.layer not in self._norm_behind:
            return ones, bias, ones
        norm = self._norm_behind[step.layer]
        row = 0 if step.section == 0 else self.row
        scale, offset = scale_and_offset(norm.layer, row, channels)
        bias = offset if bias is None else offset + bias * scale
        if self.integer:
            return scale, bias, ones
        rows = self._rows(step, len(edges) - 1)
        scales = {each: scale_and_offset(norm.layer, each, channels)[0] for each in rows}
        shared = np.concatenate(
            [scales[each][slice(*own)] for each, own in zip(rows, itertools.pairwise(edges))]
        )
        # Both scales have the same gamma, which may be zero.
        safe = np.where(shared == 0, 1, shared)
        return shared, bias, np.where(shared == 0, 1, scale / safe).astype("float32")

    def depthwise(self, step, x):
        layer, edges = step.layer, _edges_of(x)
        kernel = as_numpy(layer.kernel)[:, :, : edges[-1]]
        bias = None if layer.bias is None else as_numpy(layer.bias)[: edges[-1]]
        if layer in self._norm_behind:
            # Small enough to be there once per route.
            norm = self._norm_behind[layer]
            row = 0 if step.section == 0 else self.row
            scale, offset = scale_and_offset(norm.layer, row, edges[-1])
            kernel = kernel * scale[:, None]
            bias = offset if bias is None else offset + bias * scale
        padding = tf_padding(layer.padding, layer.kernel_size, layer.strides)
        strides = (1, layer.strides, layer.strides, 1)
        outputs = []
        for group, own in zip(x, itertools.pairwise(edges)):
            own_kernel = tf.constant(kernel[:, :, slice(*own)])
            y = tf.nn.depthwise_conv2d(group, own_kernel, strides, padding)
            outputs.append(y if bias is None else y + bias[slice(*own)])
        return tuple(outputs)

    def norm(self, step, x):
        if not hasattr(step.layer, "moving_mean"):
            raise NotImplementedError(
                f"Layer '{step.layer.name}' cannot be exported with routes: only batch "
                "normalisation can."
            )
        return tuple(activate(step.activation, group) for group in x)

    def gate(self, step, x):
        layer, edges = step.layer, _edges_of(x)
        pooled = [tf.reduce_mean(group, (1, 2), keepdims=True) for group in x]
        hidden = None
        if layer.w1 is not None:
            hidden = self._encode(pooled, edges, layer.w1, layer.b1)
        if step.is_slimming_gate:
            own = hidden
            if not layer.share_encoder:
                own = self._encode(pooled, edges, layer.w1_slimming, layer.b1_slimming)
            scores = tf.nn.conv2d(own, as_numpy(layer.w2)[None, None], 1, "VALID")
            self.scores.append(scores[:, 0, 0])
        if not layer.attention:
            return x
        weights, bias = as_numpy(layer.w3), as_numpy(layer.b3)
        outputs = []
        for group, own in zip(x, itertools.pairwise(edges)):
            head = tf.constant(weights[None, None, :, slice(*own)])
            logits = tf.nn.conv2d(hidden, head, 1, "VALID") + bias[slice(*own)]
            tanh = layer.attention == "tanh"
            outputs.append(group * (1.0 + tf.tanh(logits) if tanh else tf.sigmoid(logits)))
        return tuple(outputs)

    def _encode(self, pooled, edges, weights, bias):
        """Returns the hidden vector `[1, 1, 1, hidden]`: a 1x1 convolution takes its bias along."""
        weights, total = as_numpy(weights), None
        for group, own in zip(pooled, itertools.pairwise(edges)):
            block = tf.constant(weights[None, None, slice(*own)])
            term = tf.nn.conv2d(group, block, 1, "VALID")
            total = term + as_numpy(bias) if total is None else total + term
        return tf.nn.relu(total)

    def pool(self, step, x):
        return tuple(tf.reduce_mean(group, (1, 2)) for group in x)

    def dropout(self, step, x):
        return x

    def add(self, step, x, shortcut):
        return tuple(activate(step.activation, a + b) for a, b in zip(x, shortcut))


def _multiplied(x, ratio, is_sum):
    """Multiplies each channel, where one needs it."""
    if np.all(ratio == 1):
        return x
    if is_sum:
        return x * ratio
    # TFLite would put a multiplication into the kernel of the one convolution before it, and the
    # file would hold that kernel once per route. A depthwise convolution of one tap stays apart.
    return tf.nn.depthwise_conv2d(x, ratio[None, None, :, None], [1, 1, 1, 1], "VALID")


def _edges_of(x):
    """Returns where the groups of an activation begin, and where the last one ends."""
    return (0, *itertools.accumulate(int(group.shape[-1]) for group in x))


def _rounded(block):
    """Rounds a block to 255 steps per output channel, as TFLite's int8 does, so it loses nothing.

    The largest entry of a channel is 127 steps whatever the channel is scaled by, so TFLite finds
    the same integers for every route.
    """
    largest = np.abs(block).max(tuple(range(block.ndim - 1)))
    step = np.where(largest == 0, 1, largest / INT8_MAX)
    return (np.round(block / step) * step).astype("float32")
