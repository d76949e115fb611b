"""Batch norm in kernels that routes of several widths share."""

import itertools

import numpy as np

from keras_dsnet.models.folding import scale_and_offset


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
