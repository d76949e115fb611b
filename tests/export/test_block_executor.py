"""Tests that sums of blocks equal the whole product and that routes share their blocks."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from keras_dsnet.export.channel_groups import add_blocks, edges_of, join, leading, regroup, split

GENERATOR = np.random.default_rng(0)
# Where groups end, for kernels that widen, narrow and do neither.
ENDS = {4.0: ((2, 3, 5), (8, 12, 20)), 0.25: ((8, 12, 20), (2, 3, 5)), 1.0: ((4, 6, 9), (5, 6, 9))}


def run(widening, groups, cut=True):
    """Multiplies by blocks; returns the result, the expected one, the blocks and the groups."""
    inputs, outputs = ((0, *ends[:groups]) for ends in ENDS[widening])
    kernel = np.random.default_rng(1).normal(size=(20, 20)).astype("float32")
    values = GENERATOR.normal(size=(1, 2, 2, inputs[-1])).astype("float32")
    x, blocks = split((tf.constant(values),), inputs), []

    def term(group, own, out, is_first):
        assert group.shape[-1] == own[1] - own[0]
        blocks.append((own, out))
        return group @ kernel[slice(*own), slice(*out)] + (1.0 if is_first else 0.0)

    parts = add_blocks(x if cut else (tf.constant(values),), inputs, outputs, term, widening)
    result = np.concatenate([part for part, _ in parts], -1)
    expected = values @ kernel[: inputs[-1], : outputs[-1]] + 1.0
    return result, expected, blocks, parts


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("widening", ENDS)
@pytest.mark.parametrize("cut", [True, False])
def test_the_sum_is_the_product_with_the_whole_kernel(widening, groups, cut):
    result, expected, blocks, _ = run(widening, groups, cut)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    covered = np.zeros((20, 20), int)
    for own, out in blocks:
        covered[slice(*own), slice(*out)] += 1
    inputs, outputs = (ends[groups - 1] for ends in ENDS[widening])
    assert covered.max() == 1
    assert covered.sum() == inputs * outputs


@pytest.mark.parametrize("widening", ENDS)
def test_a_route_has_the_blocks_of_narrower_ones(widening):
    for groups in (1, 2):
        assert set(run(widening, groups)[2]) < set(run(widening, groups + 1)[2])


def test_kernels_that_widen_or_narrow_have_fewer_blocks():
    counts = {widening: len(run(widening, 3)[2]) for widening in ENDS}
    assert counts == {4.0: 6, 0.25: 6, 1.0: 9}
    sums = {widening: [is_sum for _, is_sum in run(widening, 3)[3]] for widening in ENDS}
    assert sums == {4.0: [True, True, False], 0.25: [True], 1.0: [True] * 3}


def test_groups_are_cut_and_joined_at_other_edges():
    values = GENERATOR.normal(size=(1, 2, 2, 9)).astype("float32")
    cuts = [(0, 9), (0, 4, 9), (0, 2, 4, 9), (0, 2, 9)]
    for before, after in itertools.product(cuts, repeat=2):
        x = split((tf.constant(values),), before)
        assert edges_of(x) == before
        y = regroup(x, after)
        assert edges_of(y) == after
        np.testing.assert_array_equal(np.concatenate(y, -1), values)
    pieces = split((tf.constant(values),), (0, 2, 4, 9))
    assert edges_of(join(pieces, (0, 4, 9))) == (0, 4, 9)
    assert edges_of([leading(pieces, 4), leading((tf.constant(values),), 2)]) == (0, 4, 6)
