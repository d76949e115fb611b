"""Executor of one route on channel blocks, with which a file holds every weight once.

An activation is a tuple of channel groups; see the module `channel_groups`. Kernels are cut along
the groups into blocks, and a convolution sums the blocks that lead to each group.
"""

import contextlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_dsnet.export.channel_groups import add_blocks, edges_of, join, regroup, split
from keras_dsnet.export.conversion import kept_in_float
from keras_dsnet.export.partition import shares_depthwise
from keras_dsnet.layers import SlicedGroupNormalization, SwitchableBatchNormalization
from keras_dsnet.layers.double_headed_gate import regions
from keras_dsnet.layers.sliced_conv2d import tf_padding
from keras_dsnet.models.executors import activate, resize
from keras_dsnet.models.path import Path
from keras_dsnet.models.subnetwork import as_numpy, foldable_norms, scale_and_offset
from keras_dsnet.models.topology import Executor, Step

INT8_MAX = 127


class BlockExecutor(Executor):
    """Runs steps over tuples of channel groups, with kernels cut into blocks of constants.

    A route with the group ends `(r1, ..., rn)` has the channel groups `[0, c(r1))`,
    `[c(r1), c(r2))`, ..., where `c` gives a layer's channels at a width. A convolution computes
    each group of its output as a sum over the groups of its input; `add_blocks` joins some groups
    of kernels that widen or narrow. Routes whose group ends begin alike have their first blocks in
    common, as equal constants, which a TFLite file stores once. Batch norm has statistics per width
    and would make the kernels of every width different; see `fold_groups`.

    Args:
        path: `Path` of Python ints.
        group_ends: Dict from layer to an ascending tuple of widths; the last one is the path's. For
            a convolution they are the group ends of its inputs and outputs. For a layer on pooled
            features they are those of its inputs. Defaults to None: every layer has one group, as
            have layers that are missing in the dict.
        integer: Boolean. `True` makes kernels for an int8 file. Its blocks are rounded to what int8
            can hold before they are scaled, so every route quantises to the same integers with
            different scales, and the ratio of the scales needs no operator. Defaults to `False`.
        folded_with: Dict from layer to the widths whose statistics its groups are folded with.
            Defaults to None: the path's statistics, as for layers that are missing in the dict.
        float_norms: Boolean. `True` keeps group normalisation in float in an int8 file. Defaults to
            `True`.

    Attributes:
        runs_all: Boolean, whether this executor runs all sections. Settable. Defaults to `False`.
        scores: List of the slimming heads' outputs `[1, choices]`, in the order of the heads. It is
            filled while steps run.
    """

    def __init__(
        self,
        path: Path,
        group_ends: Mapping | None = None,
        integer: bool = False,
        folded_with: Mapping | None = None,
        float_norms: bool = True,
    ):
        self.path = path
        self.group_ends = group_ends or {}
        self.folded_with = folded_with or {}
        self.integer = integer
        self.float_norms = float_norms
        self.scores: list = []
        self.runs_all = False
        # The norm that is folded into a convolution, and the channel of the norm that is the first
        # filter.
        self._norms_after: dict = {}
        # The layers of the norms that are folded.
        self._folded: set = set()
        # The number of channels that a norm scales itself.
        self._scaled: dict = {}
        # The step of the last convolution that this executor ran.
        self._last: Step | None = None

    def run(self, steps: Iterable[Step], x: tuple) -> tuple:
        """Runs steps on the groups of an activation and returns the groups of the result."""
        steps = list(steps)
        self._fold_norms(steps)
        if steps and steps[0].kind == "norm" and len(steps[0].layer.channels) == 1:
            # Its features may come from another convolution than the last one.
            self._last = None
        return super().run(steps, x)

    def run_aside(self, steps: Iterable[Step], x: tuple) -> tuple:
        """Runs steps whose result does not go on to the steps that run next."""
        last = self._last
        x = self.run(steps, x)
        self._last = last
        return x

    def run_first(self, steps: Sequence[Step], x: tuple) -> tuple:
        """Runs only the first of some steps, a convolution, with its folded norm."""
        self._last = None
        self._fold_norms(steps)
        return super().run(steps[:1], x)

    def _fold_norms(self, steps):
        for layer, norm in foldable_norms(steps).items():
            self.fold(layer, norm)

    def fold(self, layer: Any, norm: Step, first: int = 0) -> None:
        """Folds a batch norm, or some of its channels, into a convolution that runs later.

        Args:
            layer: The layer of the convolution, which has no activation before the norm.
            norm: A "norm" step with batch norm.
            first: Integer, the channel of the norm that the first filter of the convolution is.
        """
        self._norms_after[layer] = (norm, first)
        self._folded.add(norm.layer)

    def scale_first(self, norm: Step, channels: int) -> None:
        """Leaves the first channels to the norm itself, since their convolution runs elsewhere.

        Args:
            norm: A "norm" step with batch norm.
            channels: Integer, number of the channels. A channel group must end there.
        """
        self._scaled[norm.layer] = channels

    def regroup(self, step: Step, x: tuple) -> tuple:
        """Joins the outputs of a convolution that another executor cut more finely."""
        return regroup(x, self._edges(step, step.layer.filters))

    def conv(self, step: Step, x: tuple) -> tuple:
        """Runs a convolution as sums of blocks."""
        layer = step.layer
        padding = tf_padding(layer.padding, layer.kernel_size, layer.strides)

        def convolve(group, kernel):
            return tf.nn.conv2d(group, tf.constant(kernel), layer.strides, padding)

        widening, inputs = None, edges_of(x)
        # The first convolution after a gate takes groups that end at the widths before the gate.
        if self._last and self._last.section == step.section:
            widening = layer.kernel.shape[-1] / layer.kernel.shape[-2]
            # After a stride, the group ends of the input may differ from the layer's.
            inputs = self._edges(step, self._last.layer.filters)
        self._last = step
        kernel = as_numpy(layer.kernel)
        return self._blocks(step, x, layer.filters, kernel, convolve, inputs, widening)

    def depthwise(self, step: Step, x: tuple) -> tuple:
        """Runs a depthwise convolution on every group."""
        layer, folded_with = step.layer, ()
        if self._last and shares_depthwise(layer, x[0].shape[1:3]):
            x = regroup(x, self._edges(self._last, self._last.layer.filters))
            folded_with = self.folded_with.get(self._last.layer, ())
        edges = edges_of(x)
        kernel = as_numpy(layer.kernel)[:, :, : edges[-1], 0]
        bias = None if layer.bias is None else as_numpy(layer.bias)[: edges[-1]]
        scale, bias, ratio = self._fold(step, folded_with, edges, bias)
        kernel = (_round_to_int8(kernel) if self.integer else kernel) * scale
        padding = tf_padding(layer.padding, layer.kernel_size, layer.strides)
        strides = (1, layer.strides, layer.strides, 1)
        outputs = []
        for group, channels in zip(x, itertools.pairwise(edges)):
            group_kernel = tf.constant(kernel[:, :, slice(*channels), None])
            y = tf.nn.depthwise_conv2d(group, group_kernel, strides, padding)
            y = y if bias is None else y + (bias / ratio)[slice(*channels)]
            outputs.append(multiply_channels(y, ratio[slice(*channels)], is_sum=False))
        return tuple(outputs)

    def dense(self, step: Step, x: tuple) -> tuple:
        """Runs a dense layer as a sum of blocks."""

        def multiply(group, kernel):
            return tf.matmul(group, tf.constant(kernel))

        # Without a convolution in this section, the groups are those of the section before.
        if self._last:
            # GPU delegates slice only tensors of three or four axes.
            x = tuple(tf.reshape(group, (1, 1, 1, -1)) for group in x)
            x = split(x, self._edges(step, self._last.layer.filters))
            x = tuple(tf.reshape(group, (1, -1)) for group in x)
        kernel = as_numpy(step.layer.kernel)
        return self._blocks(step, x, step.layer.units, kernel, multiply, edges_of(x))

    def norm(self, step: Step, x: tuple) -> tuple:
        """Runs a norm on every group.

        A batch norm is folded into the convolution before it, if that is the step before it.
        """
        options = step.layer.channels
        if step.is_batch_norm:
            left = 0 if step.layer in self._folded else edges_of(x)[-1]
            x = self._scale(step, x, self._scaled.get(step.layer, left))
        if len(options) == 1:
            x = regroup(x, (0, options[0]))
        if step.is_batch_norm:
            return tuple(activate(step.activation, group) for group in x)
        # The statistics of an image span more than the 255 steps of int8; see `group_norm`.
        with kept_in_float() if self.float_norms else contextlib.nullcontext():
            edges = itertools.pairwise(edges_of(x))
            normalised = [
                group_norm(step.layer, group, *channels) for group, channels in zip(x, edges)
            ]
            return tuple(activate(step.activation, group) for group in normalised)

    def _scale(self, step, x, end):
        """Applies a batch norm to the first channels, which are not folded."""
        if not end:
            return x
        scale, offset = scale_and_offset(step.layer, self.path.statistics[step.section], end)
        groups = []
        for group, (first, last) in zip(x, itertools.pairwise(edges_of(x))):
            if first >= end:
                groups.append(group)
                continue
            factors, terms = scale[first:last], offset[first:last]
            if self.integer:
                # One operator with a scale per channel. A product and a sum would round twice.
                kernel = factors[None, None, :, None]
                product = tf.nn.depthwise_conv2d(group, kernel, [1, 1, 1, 1], "VALID")
            else:
                product = group * factors
            groups.append(product + terms)
        return tuple(groups)

    def gate(self, step: Step, x: tuple) -> tuple:
        """Runs a gate: keeps the scores of its slimming head and applies its attention."""
        layer, edges = step.layer, edges_of(x)
        pooled = tuple(tf.reduce_mean(group, (1, 2), keepdims=True) for group in x)
        pooled = split(pooled, self._edges(step, layer.channels))
        code = hidden = None
        if layer.w1 is not None:
            code = _encode(pooled, layer.w1, layer.b1)
            hidden = tf.nn.relu(code)
        if step.is_slimming_gate:
            if not layer.share_encoder:
                code = _encode(pooled, layer.w1_slimming, layer.b1_slimming)
            if layer.w1_regions is not None:
                code += self._encode_regions(step, x)
            code = hidden if layer.share_encoder and layer.w1_regions is None else tf.nn.relu(code)
            scores = tf.nn.conv2d(code, as_numpy(layer.w2)[None, None], 1, "VALID")
            # XNNPACK does not support a slice that drops axes.
            self.scores.append(tf.reshape(scores, (1, -1)))
        if not layer.attention:
            return x
        weights, bias = as_numpy(layer.w3), as_numpy(layer.b3)
        logits = []
        for channels in itertools.pairwise(edges_of(pooled)):
            head = tf.constant(weights[None, None, :, slice(*channels)])
            logits.append(tf.nn.conv2d(hidden, head, 1, "VALID") + bias[slice(*channels)])
        tanh = layer.attention == "tanh"
        return tuple(
            group * (1.0 + tf.tanh(logit) if tanh else tf.sigmoid(logit))
            for group, logit in zip(x, join(logits, edges))
        )

    def _encode_regions(self, step, x):
        """Returns the part of the regions in the hidden vector of a slimming head."""
        # The regions lie below one another, so that one kernel of five rows weighs them.
        means = [
            tf.concat([tf.reduce_mean(r, (1, 2), keepdims=True) for r in regions(group)], axis=1)
            for group in x
        ]
        means = split(means, self._edges(step, step.layer.channels))
        weights = as_numpy(step.layer.w1_regions)[:, None]
        terms = [
            tf.nn.conv2d(group, tf.constant(weights[:, :, slice(*channels)]), 1, "VALID")
            for group, channels in zip(means, itertools.pairwise(edges_of(means)))
        ]
        return tf.add_n(terms) if len(terms) > 1 else terms[0]

    def max_pool(self, step: Step, x: tuple) -> tuple:
        """Runs a max pooling on every group."""
        # The Keras layer would cast to the precision of the network.
        size, strides = step.layer.pool_size, step.layer.strides
        return tuple(tf.nn.max_pool2d(group, size, strides, "SAME") for group in x)

    def stock(self, step: Step, x: Any) -> tuple:
        """Runs a layer of Keras without variables, on one activation or on a list of them.

        Activations that are concatenated along their channels become groups of one activation,
        which the norm or convolution after them joins.
        """
        self._last = None
        # The precision of a file is not that of the network.
        config = {**step.layer.get_config(), "dtype": "float32"}
        layer = type(step.layer).from_config(config)
        if not isinstance(layer, keras.layers.Concatenate):
            return (layer(join(x, (0, edges_of(x)[-1]))[0]),)
        parts = [group for groups in x for group in groups]
        if layer.axis == -1:
            return tuple(parts)
        # In int8 all of them would get one scale.
        with kept_in_float():
            return (layer(parts),)

    def resize(self, step: Step, x: tuple) -> tuple:
        """Resizes every group."""
        return tuple(resize(group, step.size) for group in x)

    def pool(self, step: Step, x: tuple) -> tuple:
        """Runs a global average pooling on every group."""
        return tuple(tf.reduce_mean(group, (1, 2)) for group in x)

    def global_max_pool(self, step: Step, x: tuple) -> tuple:
        """Runs a global max pooling on every group."""
        return tuple(tf.reduce_max(group, (1, 2)) for group in x)

    def dropout(self, step: Step, x: tuple) -> tuple:
        """Returns the groups unchanged, since nothing is dropped at inference."""
        return x

    def residual(self, step: Step, x: tuple) -> tuple:
        """Runs shortcut and branch, which have the same last convolution before them."""
        last = self._last
        shortcut = self.run(step.shortcut, x)
        self._last = last
        return self.add(step, self.run(step.branch, x), shortcut)

    def add(self, step: Step, x: tuple, shortcut: tuple) -> tuple:
        """Adds the groups of a shortcut to those of a branch."""
        shortcut = regroup(shortcut, edges_of(x))
        return tuple(activate(step.activation, a + b) for a, b in zip(x, shortcut))

    def _edges(self, step, options):
        """Returns the edges of a layer's channel groups, for one of its channel options."""
        if len(options) == 1:
            return (0, options[0])
        ends = self.group_ends.get(step.layer, (self.path.widths[step.section],))
        return (0, *(options[width] for width in ends))

    def _blocks(self, step, x, options, kernel, operation, inputs, widening=None):
        """Sums `operation(input group, block)` over the groups of the input, for each output."""
        edges = self._edges(step, options)
        bias = None if step.layer.bias is None else as_numpy(step.layer.bias)[: edges[-1]]
        folded_with = self.folded_with.get(step.layer, ())
        scale, bias, ratio = self._fold(step, folded_with, edges, bias)

        def term(group, in_channels, out_channels, is_first):
            out = slice(*out_channels)
            block = kernel[..., slice(*in_channels), out]
            block = _round_to_int8(block) if self.integer else block
            result = operation(group, block * scale[out])
            # A convolution adds its bias for free; after the ratio it would be an operator.
            return result + (bias / ratio)[out] if is_first and bias is not None else result

        outputs = add_blocks(x, inputs, edges, term, widening)
        groups = edges_of([total for total, _ in outputs])
        return tuple(
            multiply_channels(total, ratio[slice(*channels)], is_sum)
            for (total, is_sum), channels in zip(outputs, itertools.pairwise(groups))
        )

    def _fold(self, step, folded_with, edges, bias):
        """Returns what `fold_groups` gives for the norm after a step, or ones without a norm."""
        if step.layer not in self._norms_after:
            ones = np.ones(edges[-1], "float32")
            return ones, bias, ones
        norm, first = self._norms_after[step.layer]
        row = self.path.statistics[norm.section]
        rows = () if self.integer else folded_with
        return fold_groups(norm.layer, row, rows, edges, bias, first)


def _encode(pooled, weights, bias):
    """Returns a hidden vector `[1, 1, 1, hidden]` before its activation, by 1x1 convolutions."""
    weights, total = as_numpy(weights), None
    for group, channels in zip(pooled, itertools.pairwise(edges_of(pooled))):
        block = tf.constant(weights[None, None, slice(*channels)])
        term = tf.nn.conv2d(group, block, 1, "VALID")
        total = term + as_numpy(bias) if total is None else total + term
    return total


def _round_to_int8(block):
    """Rounds a block to 255 steps per output channel as TFLite does, so int8 loses nothing more.

    The largest entry of a channel is 127 steps whatever factor scales the channel, so TFLite finds
    the same integers for every route.
    """
    largest = np.abs(block).max(tuple(range(block.ndim - 1)))
    step = np.where(largest == 0, 1, largest / INT8_MAX)
    return (np.round(block / step) * step).astype("float32")


def fold_groups(
    layer: SwitchableBatchNormalization,
    row: int,
    folded_with: Sequence[int],
    edges: Sequence[int],
    bias: np.ndarray | None,
    first: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Splits a batch norm into a scale of the kernels and a ratio that multiplies their outputs.

    Batch norm has statistics per width. A channel group is folded with those of one of the routes
    that share its kernels. Each other route multiplies the group's outputs with the ratio of its
    scale to that one.

    Args:
        layer: `SwitchableBatchNormalization`.
        row: Integer, row of the path's statistics.
        folded_with: For each group the row that it is folded with. Where the number of groups
            differs, as for a layer that is not cut, all groups are folded with the first row given.
            Empty: with the path's row.
        edges: Edges of the groups.
        bias: Array `[channels]` that is added before the norm, or None.
        first: Integer, the norm's channel that is the first of the groups. Defaults to 0.

    Returns:
        Tuple `(scale, bias, ratio)` of arrays `[channels]`. If `y` is what the unscaled kernels
        give without their bias, the norm gives `y * scale * ratio + bias`.
    """
    channels, groups = edges[-1], len(edges) - 1

    def values(row):
        return [vector[first:] for vector in scale_and_offset(layer, row, first + channels)]

    scale, offset = values(row)
    bias = offset if bias is None else offset + bias * scale
    rows = folded_with if len(folded_with) == groups else [*folded_with, row][:1] * groups
    scales = {each: values(each)[0] for each in rows}
    shared = np.concatenate(
        [scales[each][slice(*group)] for each, group in zip(rows, itertools.pairwise(edges))]
    )
    # Both scales have the same gamma, which may be zero.
    safe = np.where(shared == 0, 1, shared)
    return shared, bias, np.where(shared == 0, 1, scale / safe).astype("float32")


def multiply_channels(x: tf.Tensor, ratio: np.ndarray, is_sum: bool) -> tf.Tensor:
    """Multiplies each channel by a factor, unless all factors are 1.

    TFLite's converter would fold a multiplication into the kernel of the only convolution before
    it, and the file would store that kernel once per route. So the product of a convolution is
    written as a depthwise convolution with one tap, which the converter keeps.
    `restore_multiplications` turns it back in the converted graph.

    Args:
        x: `[1, height, width, channels]`.
        ratio: Array `[channels]`.
        is_sum: Boolean, whether `x` is the output of an addition, which nothing folds into.
    """
    if np.all(ratio == 1):
        return x
    if is_sum:
        return x * ratio
    return tf.nn.depthwise_conv2d(x, ratio[None, None, :, None], [1, 1, 1, 1], "VALID")


def group_norm(layer: SlicedGroupNormalization, x: tf.Tensor, first: int, last: int) -> tf.Tensor:
    """Normalises some channels of an activation; see `SlicedGroupNormalization`.

    XNNPACK does not support a tensor of five axes, one of them for the norm's groups, and a mean
    over that many values would lose digits. So each channel is averaged first. A grouped 1x1
    convolution of ones then averages the channels of each group and returns the mean to each of
    its channels.

    Args:
        layer: `SlicedGroupNormalization`.
        x: `[1, height, width, last - first]`.
        first: Integer, the layer's channel that is the first of `x`.
        last: Integer, the end of the channels.
    """
    size = layer.channels_per_group
    if first % size or (last - first) % size:
        raise ValueError(
            f"Layer '{layer.name}' normalises groups of {size} channels; a channel group must hold "
            f"whole ones. Received: channels {first} to {last}"
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
