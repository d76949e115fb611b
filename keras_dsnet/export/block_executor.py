"""Runs one route on channel blocks, so that a file holds every weight once for all routes."""

import contextlib
import itertools

import numpy as np
import tensorflow as tf

from keras_dsnet.export.block_sums import add_blocks, multiply_channels
from keras_dsnet.export.channel_groups import edges_of, join, regroup, split
from keras_dsnet.export.conversion import FLOAT_SCOPE
from keras_dsnet.export.fold_groups import fold_groups
from keras_dsnet.export.group_norm import group_norm
from keras_dsnet.export.plan_cuts import shares_depthwise
from keras_dsnet.layers.sliced_conv2d import tf_padding
from keras_dsnet.models.activation import activate
from keras_dsnet.models.folding import as_numpy, foldable_norms
from keras_dsnet.models.topology import Executor

INT8_MAX = 127


class BlockExecutor(Executor):
    """Runs steps over tuples of channel groups, with kernels cut into blocks of constants.

    A route of cuts `(r1, ..., rn)` has the groups `[0, c(r1))`, `[c(r1), c(r2))`, ... of channels;
    a convolution is a sum over the groups of its input for every group of its output; `add_blocks`
    joins some groups of kernels that widen or narrow. Routes that share leading cuts have leading
    blocks in common, as equal constants, which a TFLite file holds once. Batch norm has statistics
    per width, and would make the kernels of every width different: see `fold_groups`.

    Args:
        path: a `Path` of Python ints.
        cuts: dict from layer to an ascending tuple of widths, the last one the path's; a layer that
            is not there is not cut. Cuts of a convolution are those of its inputs and outputs, and
            cuts of a layer on pooled features are those of its inputs, which cost nearly nothing.
        integer: bool: make kernels for an int8 file. There the ratio of the scales is no operation:
            the blocks are rounded to what int8 holds before they are scaled, so that every route
            quantises to the same numbers, with scales of its own.
        rows: dict from layer to the widths whose statistics its groups are folded with; a layer
            that is not there takes the path's own.
        float_norms: bool: keep group normalisation in float in an int8 file.

    Attributes:
        scores: the slimming heads' outputs `[1, choices]`, in order, filled while running.
    """

    def __init__(self, path, cuts=None, integer=False, rows=None, float_norms=True):
        self.path = path
        self.cuts = cuts or {}
        self.rows = rows or {}
        self.integer = integer
        self.float_norms = float_norms
        self.scores = []
        self._norm_behind = {}
        # The step of the last convolution that was run here.
        self._last = None

    def run(self, steps, x):
        self._norm_behind.update(foldable_norms(steps))
        return super().run(steps, x)

    def run_first(self, steps, x):
        """Runs the first of some steps, a convolution, with what is folded into it."""
        self._last = None
        self._norm_behind.update(foldable_norms(steps))
        return super().run(steps[:1], x)

    def regroup(self, step, x):
        """Joins the outputs of a convolution that were cut more finely than by this executor."""
        return regroup(x, self._edges(step, step.layer.filters))

    def _cuts(self, step):
        return self.cuts.get(step.layer, (self.path.widths[step.section],))

    def _edges(self, step, options):
        """Returns where the groups of a layer's channels begin, and where the last one ends."""
        if len(options) == 1:
            return (0, options[0])
        return (0, *(options[width] for width in self._cuts(step)))

    def _row(self, step):
        """Returns the path's row of batch-norm statistics."""
        return self.path.statistics[step.section]

    def conv(self, step, x):
        layer = step.layer
        padding = tf_padding(layer.padding, layer.kernel_size, layer.strides)

        def convolve(group, kernel):
            return tf.nn.conv2d(group, tf.constant(kernel), layer.strides, padding)

        widening, inputs = None, edges_of(x)
        # Behind a gate the input is cut at the widths before it.
        if self._last and self._last.section == step.section:
            widening = layer.kernel.shape[-1] / layer.kernel.shape[-2]
            # Behind a stride it may be cut otherwise.
            inputs = self._edges(step, self._last.layer.filters)
        self._last = step
        kernel = as_numpy(layer.kernel)
        return self._blocks(step, x, layer.filters, kernel, convolve, inputs, widening)

    def dense(self, step, x):
        def multiply(group, kernel):
            return tf.matmul(group, tf.constant(kernel))

        # Behind a section's entry alone the groups are those of its cuts.
        if self._last:
            x = split(x, self._edges(step, self._last.layer.filters))
        kernel = as_numpy(step.layer.kernel)
        return self._blocks(step, x, step.layer.units, kernel, multiply, edges_of(x))

    def _blocks(self, step, x, options, kernel, operation, inputs, widening=None):
        """Sums `operation(input group, block)` over the groups of the input, for each output."""
        edges = self._edges(step, options)
        bias = None if step.layer.bias is None else as_numpy(step.layer.bias)[: edges[-1]]
        scale, bias, ratio = self._folded(step, self.rows.get(step.layer, ()), edges, bias)

        def term(group, own, out, first):
            block = kernel[..., slice(*own), slice(*out)]
            block = _rounded(block) if self.integer else block
            result = operation(group, block * scale[slice(*out)])
            # A convolution adds its bias for free; behind the ratio it would cost.
            return result + (bias / ratio)[slice(*out)] if first and bias is not None else result

        outputs = add_blocks(x, inputs, edges, term, widening)
        groups = edges_of([total for total, _ in outputs])
        return tuple(
            multiply_channels(total, ratio[slice(*own)], is_sum)
            for (total, is_sum), own in zip(outputs, itertools.pairwise(groups))
        )

    def _folded(self, step, rows, edges, bias):
        """Returns what `fold_groups` gives for the norm behind a step; without one, all ones."""
        if step.layer not in self._norm_behind:
            ones = np.ones(edges[-1], "float32")
            return ones, bias, ones
        norm = self._norm_behind[step.layer].layer
        return fold_groups(norm, self._row(step), () if self.integer else rows, edges, bias)

    def depthwise(self, step, x):
        layer, rows = step.layer, ()
        if self._last and shares_depthwise(layer, x[0].shape[1:3]):
            x = regroup(x, self._edges(self._last, self._last.layer.filters))
            rows = self.rows.get(self._last.layer, ())
        edges = edges_of(x)
        kernel = as_numpy(layer.kernel)[:, :, : edges[-1], 0]
        bias = None if layer.bias is None else as_numpy(layer.bias)[: edges[-1]]
        scale, bias, ratio = self._folded(step, rows, edges, bias)
        kernel = (_rounded(kernel) if self.integer else kernel) * scale
        padding = tf_padding(layer.padding, layer.kernel_size, layer.strides)
        strides = (1, layer.strides, layer.strides, 1)
        outputs = []
        for group, own in zip(x, itertools.pairwise(edges)):
            own_kernel = tf.constant(kernel[:, :, slice(*own), None])
            y = tf.nn.depthwise_conv2d(group, own_kernel, strides, padding)
            y = y if bias is None else y + (bias / ratio)[slice(*own)]
            outputs.append(multiply_channels(y, ratio[slice(*own)], is_sum=False))
        return tuple(outputs)

    def norm(self, step, x):
        if step.is_batch_norm:
            return tuple(activate(step.activation, group) for group in x)
        # Statistics of an image span more than the 255 steps of int8; see `group_norm`.
        with tf.name_scope(FLOAT_SCOPE) if self.float_norms else contextlib.nullcontext():
            edges = itertools.pairwise(edges_of(x))
            normalised = [group_norm(step.layer, group, *own) for group, own in zip(x, edges)]
            return tuple(activate(step.activation, group) for group in normalised)

    def gate(self, step, x):
        layer, edges = step.layer, edges_of(x)
        pooled = tuple(tf.reduce_mean(group, (1, 2), keepdims=True) for group in x)
        pooled = split(pooled, self._edges(step, layer.channels))
        hidden = None
        if layer.w1 is not None:
            hidden = self._encode(pooled, layer.w1, layer.b1)
        if step.is_slimming_gate:
            own = hidden
            if not layer.share_encoder:
                own = self._encode(pooled, layer.w1_slimming, layer.b1_slimming)
            scores = tf.nn.conv2d(own, as_numpy(layer.w2)[None, None], 1, "VALID")
            # XNNPACK takes no slice that drops axes.
            self.scores.append(tf.reshape(scores, (1, -1)))
        if not layer.attention:
            return x
        weights, bias = as_numpy(layer.w3), as_numpy(layer.b3)
        logits = []
        for own in itertools.pairwise(edges_of(pooled)):
            head = tf.constant(weights[None, None, :, slice(*own)])
            logits.append(tf.nn.conv2d(hidden, head, 1, "VALID") + bias[slice(*own)])
        tanh = layer.attention == "tanh"
        return tuple(
            group * (1.0 + tf.tanh(own) if tanh else tf.sigmoid(own))
            for group, own in zip(x, join(logits, edges))
        )

    def _encode(self, pooled, weights, bias):
        """Returns the hidden vector `[1, 1, 1, hidden]`: a 1x1 convolution takes its bias along."""
        weights, total = as_numpy(weights), None
        for group, own in zip(pooled, itertools.pairwise(edges_of(pooled))):
            block = tf.constant(weights[None, None, slice(*own)])
            term = tf.nn.conv2d(group, block, 1, "VALID")
            total = term + as_numpy(bias) if total is None else total + term
        return tf.nn.relu(total)

    def max_pool(self, step, x):
        # The layer itself would cast to the precision of the network.
        size, strides = step.layer.pool_size, step.layer.strides
        return tuple(tf.nn.max_pool2d(group, size, strides, "SAME") for group in x)

    def pool(self, step, x):
        return tuple(tf.reduce_mean(group, (1, 2)) for group in x)

    def global_max_pool(self, step, x):
        return tuple(tf.reduce_max(group, (1, 2)) for group in x)

    def dropout(self, step, x):
        return x

    def residual(self, step, x):
        last = self._last
        shortcut = self.run(step.shortcut, x)
        self._last = last
        return self.add(step, self.run(step.branch, x), shortcut)

    def add(self, step, x, shortcut):
        shortcut = regroup(shortcut, edges_of(x))
        return tuple(activate(step.activation, a + b) for a, b in zip(x, shortcut))


def _rounded(block):
    """Rounds a block to 255 steps per output channel, as TFLite's int8 does, so it loses nothing.

    The largest entry of a channel is 127 steps whatever the channel is scaled by, so TFLite finds
    the same integers for every route.
    """
    largest = np.abs(block).max(tuple(range(block.ndim - 1)))
    step = np.where(largest == 0, 1, largest / INT8_MAX)
    return (np.round(block / step) * step).astype("float32")
