"""Runs one route on channel blocks, so that a file holds every weight once for all routes.

An activation is a tuple of channel groups, tensors `[1, height, width, channels]`. Kernels are cut
along the groups into blocks, and a convolution sums the blocks that lead to each group.
"""

import bisect
import contextlib
import itertools

import numpy as np
import tensorflow as tf

from keras_dsnet.export.conversion import FLOAT_SCOPE
from keras_dsnet.export.partition import shares_depthwise
from keras_dsnet.layers.sliced_conv2d import tf_padding
from keras_dsnet.models.executors import activate
from keras_dsnet.models.subnetwork import as_numpy, foldable_norms, scale_and_offset
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


def edges_of(x):
    """Returns where the groups of an activation begin, and where the last one ends."""
    return (0, *itertools.accumulate(int(group.shape[-1]) for group in x))


def split(x, edges):
    """Cuts groups of channels at those of these edges that lie inside of them."""
    pieces = []
    for group, (first, last) in zip(x, itertools.pairwise(edges_of(x))):
        inner = [0, *(end - first for end in edges if first < end < last), last - first]
        cut = [group[..., slice(*own)] for own in itertools.pairwise(inner)]
        pieces += cut if len(cut) > 1 else [group]
    return tuple(pieces)


def join(x, edges):
    """Joins groups of channels that are cut more finely than at these edges."""
    groups = [[] for _ in edges[1:]]
    for group, end in zip(x, edges_of(x)[1:]):
        groups[bisect.bisect_left(edges, end) - 1].append(group)
    return tuple(tf.concat(parts, -1) if len(parts) > 1 else parts[0] for parts in groups)


def regroup(x, edges):
    """Returns the channels in groups with these edges."""
    return x if edges_of(x) == edges else join(split(x, edges), edges)


def leading(x, end):
    """Returns the channels before `end`, where a group ends, or which lies in the only group."""
    if len(x) == 1:
        return split(x, (end,))[0]
    return join(x[: edges_of(x).index(end)], (0, end))[0]


# Outputs per input from which on it pays to join groups of the input, and up to which to join those
# of the output.
WIDENING = 2
NARROWING = 0.5


def add_blocks(x, inputs, edges, term, widening=None):
    """Sums blocks in the way that suits a kernel.

    Args:
        x: channels of the input, in groups of any edges.
        inputs: where the groups begin that the kernel is cut at, and where the last one ends.
        edges: the same of the output.
        term: function that returns what a group, the input channels `own`, adds to the output
            channels `out`, both pairs of begin and end: `term(group, own, out, first)`. The `first`
            term of an output brings the bias.
        widening: most outputs for each of the most inputs, the same at every route, where the
            groups of both end at the same routes; None: they do not.

    Returns:
        List of the groups of the output, each with whether it is a sum. A kernel that narrows gives
        one group.
    """
    groups = regroup(x, inputs)
    if widening and len(edges) > 2:
        if widening >= WIDENING:
            return _rows(x if len(x) == 1 else groups, groups, edges, term)
        if widening <= NARROWING:
            return _columns(groups, edges, term)
    return _grid(groups, edges, term)


def multiply_channels(x, ratio, is_sum):
    """Multiplies each channel with its own factor, where one is not 1.

    Args:
        x: `[1, height, width, channels]`.
        ratio: array `[channels]`.
        is_sum: bool: what gives `x` is an addition.
    """
    if np.all(ratio == 1):
        return x
    if is_sum:
        return x * ratio
    # TFLite would put a multiplication into the kernel of the one convolution before it, and the
    # file would hold that kernel once per route. A depthwise convolution of one tap stays apart;
    # in the file it is a multiplication again, see `multiply_directly`.
    return tf.nn.depthwise_conv2d(x, ratio[None, None, :, None], [1, 1, 1, 1], "VALID")


def _grid(groups, edges, term):
    """A block for each group of the input and of the output."""
    inputs = list(zip(groups, itertools.pairwise(edges_of(groups))))
    outputs = []
    for out in itertools.pairwise(edges):
        terms = [term(group, own, out, not index) for index, (group, own) in enumerate(inputs)]
        outputs.append((_total(terms), len(terms) > 1))
    return outputs


def _rows(x, groups, edges, term):
    """A block from all inputs of a route to its last group, for kernels that widen.

    Inputs are joined, which costs little, and there are fewer of the wide partial sums.
    """
    inputs = edges_of(groups)
    outputs = []
    for place, out in enumerate(itertools.pairwise(edges)):
        end = inputs[place + 1]
        terms = [term(leading(x, end), (0, end), out, True)]
        wider = zip(groups[place + 1 :], itertools.pairwise(inputs[place + 1 :]))
        terms += [term(group, own, out, False) for group, own in wider]
        outputs.append((_total(terms), len(terms) > 1))
    return outputs


def _columns(groups, edges, term):
    """A block from the last inputs of a route to all of its outputs, for kernels that narrow.

    Outputs are joined, which costs little, and there are fewer operators.
    """
    terms = []
    for place, own in enumerate(itertools.pairwise(edges_of(groups))):
        outs = ((0, edges[place + 1]), *itertools.pairwise(edges[place + 1 :]))
        parts = [term(groups[place], own, out, not place) for out in outs]
        terms.append(join(parts, (0, edges[-1]))[0])
    return [(_total(terms), len(terms) > 1)]


def _total(terms):
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def fold_groups(layer, row, rows, edges, bias):
    """Splits a batch norm into what goes into kernels and what is left for behind them.

    Batch norm has statistics per width. A group of channels is folded with those of one of the
    routes that share its kernels; each of the others multiplies what the group gives with the ratio
    of the two scales.

    Args:
        layer: a `SwitchableBatchNormalization`.
        row: int: the row of the route's own statistics.
        rows: for each group the row that it is folded with. If the channels are in other groups,
            such as those of a layer that is not cut, all are folded as the first one would be;
            empty: with the route's own.
        edges: where the groups begin, and where the last one ends.
        bias: array `[channels]` that is added before the norm, or None.

    Returns:
        `(scale, bias, ratio)`, arrays `[channels]`: kernels are scaled, and the norm of what they
        gave before, `y`, with its bias is `y * scale * ratio + bias`.
    """
    channels, groups = edges[-1], len(edges) - 1
    scale, offset = scale_and_offset(layer, row, channels)
    bias = offset if bias is None else offset + bias * scale
    rows = rows if len(rows) == groups else [*rows, row][:1] * groups
    scales = {each: scale_and_offset(layer, each, channels)[0] for each in rows}
    shared = np.concatenate(
        [scales[each][slice(*own)] for each, own in zip(rows, itertools.pairwise(edges))]
    )
    # Both scales have the same gamma, which may be zero.
    safe = np.where(shared == 0, 1, shared)
    return shared, bias, np.where(shared == 0, 1, scale / safe).astype("float32")


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


def enter(executor, steps, x):
    """Runs the convolutions that a section begins with.

    Args:
        executor: a `BlockExecutor`, whose cuts are those of the entry's outputs.
        steps: of the section.
        x: the groups of its input.

    Returns:
        The groups of all that the rest of the section needs: those of the shortcut last.
    """
    first = steps[0]
    branches = (first.branch, first.shortcut) if first.kind == "residual" else (steps,)
    return tuple(group for branch in branches for group in executor.run_first(branch, x))


def leave(executor, steps, x, groups):
    """Runs the rest of a section, from what `enter` gives.

    Args:
        executor: a `BlockExecutor`.
        steps: of the section.
        x: what `enter` gives.
        groups: int: how many groups each of its convolutions has.
    """
    first = steps[0]
    if first.kind != "residual":
        return _go_on(executor, steps, x)
    branch = _go_on(executor, first.branch, x[:groups])
    shortcut = _go_on(executor, first.shortcut, x[groups:])
    return executor.run(steps[1:], executor.add(first, branch, shortcut))


def _go_on(executor, steps, x):
    """Runs the steps behind a convolution; its norm still runs on the groups of the entry."""
    norms = 1 + (len(steps) > 1 and steps[1].kind == "norm")
    x = executor.run(steps[1:norms], x)
    return executor.run(steps[norms:], executor.regroup(steps[0], x))
