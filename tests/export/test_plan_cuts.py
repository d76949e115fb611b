"""Where one span can be cut: every cut can be run, and what is stored is counted."""

import pytest

from keras_dsnet.export.partition import (
    cheapest_cuts,
    finest,
    folded_rows,
    shares_depthwise,
    stored_share,
    stored_weights,
    whole,
)
from keras_dsnet.layers import SlicedDepthwiseConv2D


def weights_of(*widths):
    """Weights that grow with the square of the channels, as those of pointwise convolutions."""
    return {width: (224 + 32 * width) ** 2 for width in widths}


SETS = [
    weights_of(0),
    weights_of(5),
    weights_of(0, 13),
    weights_of(0, 4, 9, 13),
    weights_of(0, 1, 2, 3),
    weights_of(*range(14)),
    # Steps of very different size.
    {0: 10, 1: 11, 2: 1000, 3: 1001},
]


@pytest.fixture(params=SETS, ids=lambda weights: "-".join(map(str, weights)))
def weights(request):
    return request.param


@pytest.mark.parametrize("price", [0.0, 1e-6, 1e-5, 1e-4, 1.0])
def test_every_route_extends_the_cuts_of_another_one(weights, price):
    plan = cheapest_cuts(weights, price)
    assert list(plan) == list(weights)
    for route, cuts in plan.items():
        assert cuts[-1] == route
        assert list(cuts) == sorted(set(cuts))
        if len(cuts) > 1:
            assert plan[cuts[-2]] == cuts[:-1]


def test_free_weights_are_not_cut_and_dear_ones_stored_once(weights):
    assert cheapest_cuts(weights, 0.0) == whole(weights)
    assert cheapest_cuts(weights, 2.0 * len(weights)) == finest(tuple(weights))
    assert stored_weights(weights, whole(weights)) == sum(weights.values())
    assert stored_weights(weights, finest(tuple(weights))) == max(weights.values())


def test_the_dearer_a_weight_the_fewer_are_stored_and_the_more_is_cut():
    weights = weights_of(*range(14))
    plans = [cheapest_cuts(weights, 1e-7 * 2**k) for k in range(28)]
    stored = [stored_weights(weights, plan) for plan in plans]
    cuts = [sum(map(len, plan.values())) for plan in plans]
    assert stored == sorted(stored, reverse=True)
    assert cuts == sorted(cuts)
    assert len(set(cuts)) > 4


def test_weights_are_counted_once_where_routes_begin_with_the_same_cuts():
    weights = {0: 10, 1: 20, 2: 50}
    assert stored_weights(weights, {0: (0,), 1: (0, 1), 2: (0, 1, 2)}) == 50
    # The blocks of route 1 are of no use to route 2, nor the other way round.
    assert stored_weights(weights, {0: (0,), 1: (0, 1), 2: (0, 2)}) == 60
    assert stored_weights(weights, {0: (0,), 1: (1,), 2: (0, 2)}) == 70


def test_the_share_of_channels_counts_groups_in_the_same_way():
    assert stored_share({0: (0,), 1: (0, 1), 2: (0, 1, 2)}) == 1
    assert stored_share({0: (0,), 1: (1,), 2: (2,)}) == 2
    # One channel of route 0, one more of route 1, two of route 2 alone.
    assert stored_share({0: (0,), 1: (0, 1), 2: (0, 2)}) == pytest.approx(4 / 3)


def test_large_kernels_of_small_features_are_shared():
    large, small = (SlicedDepthwiseConv2D((8,), size) for size in (5, 3))
    halving = SlicedDepthwiseConv2D((8,), 3, 2)
    cases = [(large, 7), (large, 14), (small, 7), (small, 8), (halving, 14), (halving, 28)]
    found = [shares_depthwise(layer, (side, side)) for layer, side in cases]
    assert found == [True, False, True, False, True, False]


def test_a_group_is_folded_alike_by_all_routes_that_share_it():
    cuts = {0: (0,), 6: (0, 6), 13: (0, 6, 13), 19: (0, 6, 13, 19)}
    assert {route: folded_rows(cuts, route) for route in cuts} == {
        0: (13,),
        6: (13, 13),
        13: (13, 13, 13),
        19: (13, 13, 13, 19),
    }


def test_a_group_of_two_routes_is_folded_with_the_narrower_and_one_alone_with_its_own():
    cuts = {0: (0,), 4: (4,), 8: (4, 8), 13: (0, 13)}
    assert {route: folded_rows(cuts, route) for route in cuts} == {
        0: (0,),
        4: (4,),
        8: (4, 8),
        13: (0, 13),
    }
