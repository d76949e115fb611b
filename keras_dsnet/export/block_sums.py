"""Sums of blocks: which blocks a kernel over groups of channels is cut into.

A route that ends with the k-th group has the inputs up to it and the outputs up to it. What it has
beyond the route before may be one block or several; the fewer, the fewer operators and passes over
features a route takes.
"""

import itertools

import numpy as np
import tensorflow as tf

from keras_dsnet.export.channel_groups import edges_of, join, leading, regroup

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
