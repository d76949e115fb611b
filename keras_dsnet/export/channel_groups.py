"""Channels of an activation as a tuple of groups, tensors `[1, height, width, channels]`."""

import bisect
import itertools

import tensorflow as tf


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
