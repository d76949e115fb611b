"""Sums of blocks: which blocks a kernel over groups of channels is cut into.

A route that ends with the k-th group has the inputs up to it and the outputs up to it. What it has
beyond the route before may be one block or several; the fewer, the fewer operators and passes over
features a route takes.
"""

import itertools

import tensorflow as tf

from keras_dsnet.export.channel_groups import edges_of

# Outputs per input from which on it pays to join groups of the input.
WIDENING = 2


def add_blocks(x, edges, term, widening=None):
    """Sums blocks in the way that suits a kernel.

    Args:
        x: the groups of the input.
        edges: where the groups of the output begin, and where the last one ends.
        term: function that returns what a group, the input channels `own`, adds to the output
            channels `out`, both pairs of begin and end: `term(group, own, out, first)`. The `first`
            term of an output brings the bias.
        widening: most outputs for each of the most inputs, the same at every route, where the
            groups of both end at the same routes; None: they do not.

    Returns:
        List of the groups of the output, each with whether it is a sum.
    """
    if widening and widening >= WIDENING and len(edges) > 2:
        return _rows(x, edges, term)
    return _grid(x, edges, term)


def _grid(x, edges, term):
    """A block for each group of the input and of the output."""
    inputs = list(zip(x, itertools.pairwise(edges_of(x))))
    outputs = []
    for out in itertools.pairwise(edges):
        terms = [term(group, own, out, not index) for index, (group, own) in enumerate(inputs)]
        outputs.append((_total(terms), len(terms) > 1))
    return outputs


def _rows(x, edges, term):
    """A block from all inputs of a route to its last group, for kernels that widen.

    Inputs are joined, which costs little, and there are fewer of the wide partial sums.
    """
    inputs = edges_of(x)
    outputs = []
    for place, out in enumerate(itertools.pairwise(edges)):
        joined = tf.concat(x[: place + 1], -1) if place else x[0]
        terms = [term(joined, (0, inputs[place + 1]), out, True)]
        wider = zip(x[place + 1 :], itertools.pairwise(inputs[place + 1 :]))
        terms += [term(group, own, out, False) for group, own in wider]
        outputs.append((_total(terms), len(terms) > 1))
    return outputs


def _total(terms):
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
