"""The channel groups of an activation.

An activation is a tuple of channel groups, tensors `[1, height, width, channels]`. The edges of the
groups are the channels at which they begin, followed by the end of the last one.
"""

import bisect
import itertools
from collections.abc import Callable, Sequence

import tensorflow as tf

# A kernel widens from this ratio of outputs to inputs on; it pays to join groups of its input.
WIDENING = 2
# A kernel narrows up to this ratio of outputs to inputs; it pays to join groups of its output.
NARROWING = 0.5


def edges_of(x: Sequence) -> tuple[int, ...]:
    """Returns the edges of an activation's channel groups."""
    return (0, *itertools.accumulate(int(group.shape[-1]) for group in x))


def split(x: Sequence, edges: Sequence[int]) -> tuple:
    """Cuts channel groups at those of the given edges that lie inside of them."""
    pieces = []
    for group, (first, last) in zip(x, itertools.pairwise(edges_of(x))):
        inner = [0, *(end - first for end in edges if first < end < last), last - first]
        cut = [group[..., slice(*channels)] for channels in itertools.pairwise(inner)]
        pieces += cut if len(cut) > 1 else [group]
    return tuple(pieces)


def join(x: Sequence, edges: Sequence[int]) -> tuple:
    """Joins channel groups that are cut at these edges and at others."""
    groups: list[list] = [[] for _ in edges[1:]]
    for group, end in zip(x, edges_of(x)[1:]):
        groups[bisect.bisect_left(edges, end) - 1].append(group)
    return tuple(tf.concat(parts, -1) if len(parts) > 1 else parts[0] for parts in groups)


def regroup(x: tuple, edges: Sequence[int]) -> tuple:
    """Returns an activation as channel groups with the given edges."""
    return x if edges_of(x) == edges else join(split(x, edges), edges)


def leading(x: Sequence, end: int) -> tf.Tensor:
    """Returns the first `end` channels. A group must end there unless there is only one group."""
    if len(x) == 1:
        return split(x, (end,))[0]
    return join(x[: edges_of(x).index(end)], (0, end))[0]


def add_blocks(
    x: tuple,
    inputs: Sequence[int],
    edges: Sequence[int],
    term: Callable,
    widening: float | None = None,
) -> list[tuple[tf.Tensor, bool]]:
    """Sums blocks in the order that suits the shape of a kernel.

    Args:
        x: Input channels, in groups with any edges.
        inputs: Edges at which the kernel's input channels are cut.
        edges: Edges at which the kernel's output channels are cut.
        term: Function `term(group, in_channels, out_channels, is_first)`. It returns the
            part of an input group in the sum of some output channels. Both ranges are pairs of
            begin and end. The first term of an output adds the bias.
        widening: Float, the layer's largest number of outputs divided by its largest number of
            inputs, so that all routes decide alike. Defaults to None: the groups of inputs and
            outputs do not end at the same routes.

    Returns:
        List with a pair for each group of the output: the group, and whether it is a sum. A kernel
        that narrows gives one group.
    """
    groups = regroup(x, inputs)
    if widening and len(edges) > 2:
        if widening >= WIDENING:
            return _rows(x if len(x) == 1 else groups, groups, edges, term)
        if widening <= NARROWING:
            return _columns(groups, edges, term)
    return _grid(groups, edges, term)


def _grid(groups, edges, term):
    """Uses a block for each pair of an input group and an output group."""
    inputs = list(zip(groups, itertools.pairwise(edges_of(groups))))
    outputs = []
    for out in itertools.pairwise(edges):
        terms = [term(group, rows, out, not place) for place, (group, rows) in enumerate(inputs)]
        outputs.append((_total(terms), len(terms) > 1))
    return outputs


def _rows(x, groups, edges, term):
    """Uses a block from all inputs of a route to its last group, for kernels that widen.

    Joining the narrow inputs costs little, and there are fewer of the wide partial sums.
    """
    inputs = edges_of(groups)
    outputs = []
    for place, out in enumerate(itertools.pairwise(edges)):
        end = inputs[place + 1]
        terms = [term(leading(x, end), (0, end), out, True)]
        wider = zip(groups[place + 1 :], itertools.pairwise(inputs[place + 1 :]))
        terms += [term(group, rows, out, False) for group, rows in wider]
        outputs.append((_total(terms), len(terms) > 1))
    return outputs


def _columns(groups, edges, term):
    """Uses a block from the last inputs of a route to all its outputs, for kernels that narrow.

    Joining the narrow outputs costs little, and there are fewer operators.
    """
    terms = []
    for place, rows in enumerate(itertools.pairwise(edges_of(groups))):
        outs = ((0, edges[place + 1]), *itertools.pairwise(edges[place + 1 :]))
        parts = [term(groups[place], rows, out, not place) for out in outs]
        terms.append(join(parts, (0, edges[-1]))[0])
    return [(_total(terms), len(terms) > 1)]


def _total(terms):
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
