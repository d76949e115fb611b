"""Tests that plans keep to their limits and give the network's outputs."""

import dataclasses
import itertools

import numpy as np
import pytest
from exported import largest_difference
from keras_dsnet.applications import DSMobileNet
from routed_networks import SPEC, random_images, small_network
from tiny_families import TINY_EFFICIENTNET, TINY_RESNET, tiny_images, tiny_network

from keras_dsnet.export import partition as module
from keras_dsnet.export.graphs import RoutedParts
from keras_dsnet.export.partition import (
    cheapest_group_ends,
    finest,
    folded_routes,
    group_ends_of,
    plan_sections,
    shares_depthwise,
    stored_share,
    stored_weights,
    survey_network,
    whole,
)
from keras_dsnet.layers import SlicedDepthwiseConv2D
from keras_dsnet.models import MobileNetStage, ResNetSpec, ResNetStage, costs
from keras_dsnet.models.costs import CostCounter

ROUTES = (0, 1, 2)
SHAPE = (16, 16, 3)


@pytest.fixture(scope="module")
def efficientnet():
    return tiny_network(TINY_EFFICIENTNET)


@pytest.fixture(scope="module")
def large():
    return DSMobileNet()


def test_a_span_is_what_lies_between_two_strides(efficientnet):
    first, second = survey_network(efficientnet, ROUTES, SHAPE).spans
    names = [[layer.name.split("_", 1)[1] for layer in span.layers] for span in (first, second)]
    # Blocks 3 and 4 have outputs of 4x4. The second span begins with the stride of block 5.
    assert names[0] == ["3_project", "4_expand", "4_project", "5_expand"]
    assert names[1] == ["5_project", "conv"]
    assert first.weights[2] == 8 * 16 + 16 * 32 + 32 * 16 + 16 * 32
    assert second.weights == {0: 16 * 8 + 8 * 20, 1: 24 * 16 + 16 * 20, 2: 32 * 24 + 24 * 20}
    # Element counts are normalised by the MAdds of the path.
    madds = efficientnet.madds(2, SHAPE)
    assert first.outputs[2] == 16 * (16 + 32 + 16 + 32) / madds
    assert second.inputs[2] == 4 * 32 / madds


def test_a_plan_walks_each_route_once(efficientnet, monkeypatch):
    walked = []

    class Counter(CostCounter):
        def run(self, steps, x):
            walked.append((self.path.gates, steps))
            return super().run(steps, x)

    counter = type("Counter", (module._SurveyCounter, Counter), {})
    monkeypatch.setattr(module, "_SurveyCounter", counter)
    monkeypatch.setattr(costs, "CostCounter", Counter)
    plan_sections(efficientnet, ROUTES, SHAPE, "shared")
    wanted = [((route,), steps) for route in ROUTES for steps in efficientnet.sections]
    assert [own for own in walked if own[1] in efficientnet.sections] == wanted


def test_convolutions_that_see_the_width_before_are_no_part_of_a_span():
    spans = survey_network(tiny_network(TINY_RESNET), ROUTES, SHAPE).spans
    assert [span.section for span in spans] == [1, 2, 3]
    assert [span.has_entry for span in spans] == [False, True, True]
    # The branch maps 96 channels to 24, the shortcut 96 to 96.
    assert spans[1].entry_weights[2] == 96 * 24 + 96 * 96
    assert spans[1].weights[2] == 9 * 24 * 24 + 24 * 96


@pytest.mark.parametrize("layout", ["shared", "fast"])
@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("routes", [(3,), (0, 13), (0, 4, 8, 13), tuple(range(14))])
def test_a_file_of_one_gate_holds_no_more_than_it_may(large, layout, integer, routes):
    shape = (224, 224, 3)
    (plan,) = plan_sections(large, routes, shape, layout, integer)
    spans = survey_network(large, routes, shape).spans
    assert [list(ends) for ends in plan.group_ends] == [list(routes)] * len(spans)
    if layout == "fast":
        assert plan.group_ends == (whole(routes),) * len(spans)
        return
    total = large.costs(routes[-1], shape).parameters
    stored = [stored_weights(span.weights, cuts) for span, cuts in zip(spans, plan.group_ends)]
    spare = sum(stored) - sum(span.weights[routes[-1]] for span in spans)
    assert 0 <= spare <= (0.2 if integer else 0.016 * (len(routes) - 1)) * total


def test_what_may_be_spared_saves_cuts_first_where_features_are_large(large):
    routes = (0, 4, 8, 13)
    (once,), (spared,) = (
        plan_sections(large, routes, (224, 224, 3), "shared", integer) for integer in (False, True)
    )
    assert once.group_ends == (finest(routes),) * 2
    first, second = (sum(map(len, cuts.values())) for cuts in spared.group_ends)
    assert first < second < 10


def test_pooled_features_are_cut_finely_in_every_layout(large):
    (plan,) = plan_sections(large, (0, 13), (224, 224, 3), "fast")
    found = plan.of_layers(13)
    steps = {step.layer: step.kind for step in large.sections[1]}
    assert {found[layer] for layer, kind in steps.items() if kind in ("gate", "dense")} == {(0, 13)}
    assert {found[layer] for layer, kind in steps.items() if kind == "conv"} == {(13,)}


def test_several_gates_hold_no_more_than_their_layout(monkeypatch):
    network = tiny_network(TINY_RESNET)
    total = network.costs(2, SHAPE).parameters
    for layout, limit in (("shared", 1.06), ("fast", 1.2)):
        monkeypatch.setitem(module.LIMITS, layout, limit)
        plans = plan_sections(network, ROUTES, SHAPE, layout)
        spans = survey_network(network, ROUTES, SHAPE).spans
        stored = [stored_weights(s.weights, p.group_ends[0]) for s, p in zip(spans, plans)]
        own = sum(stored) - sum(span.weights[2] for span in spans)
        most = sum(stored_weights(s.weights, whole(ROUTES)) - s.weights[2] for s in spans)
        # The largest plan would break the limit.
        assert 0 <= own <= (limit - 1) * total < most
        assert group_ends_of(plans, (0, 1, 2)) == [
            list(p.group_ends[0][w]) for p, w in zip(plans, ROUTES)
        ]


def run_plan(network, plan, route, images):
    """Runs a route in TensorFlow as a file with this plan runs it."""
    parts = {part.name: part for part in RoutedParts(network, ROUTES, (plan,)).graphs().running()}
    rest = parts[f"route_{route}"].function
    outputs = [rest(parts["front"].function(image[None])["features"]) for image in images]
    return np.concatenate([result["output"] for result in outputs])


@pytest.mark.long
@pytest.mark.parametrize("family", ["mobilenet", "efficientnet"])
def test_every_cut_of_every_span_gives_the_outputs_of_the_network(family, efficientnet):
    network, images = efficientnet, tiny_images()[::12]
    if family == "mobilenet":
        stages = (*SPEC.stages[:2], MobileNetStage(2, 2, (16, 24, 32, 48)))
        network = small_network(spec=type(SPEC)(SPEC.stem, stages=stages, attention_ratio=0.5))
        images = random_images(2)
    (plan,) = plan_sections(network, ROUTES, SHAPE, "shared")
    middle = {0: (0,), 1: (1,), 2: (1, 2)}
    plans = (whole(ROUTES), finest(ROUTES), middle)
    assert len(plan.group_ends) == 2
    for cuts in itertools.product(plans, repeat=2):
        plan = dataclasses.replace(plan, group_ends=cuts)
        for route in ROUTES[1:]:
            outputs = run_plan(network, plan, route, images)
            assert largest_difference(outputs, network(images, path=route)) <= 1e-5, (cuts, route)


@pytest.mark.slow
def test_a_section_of_several_gates_may_have_several_spans():
    stages = (
        ResNetStage(1, 1, (8, 16, 24)),
        ResNetStage(2, 2, (16,), gated=False),
        ResNetStage(1, 1, (8, 16, 24)),
    )
    network, images = tiny_network(ResNetSpec((8,), stages=stages)), tiny_images()[::12]
    spans = survey_network(network, ROUTES, SHAPE).spans
    assert [span.section for span in spans] == [1, 1, 2]
    plans = plan_sections(network, ROUTES, SHAPE, "shared")
    parts = {
        part.name: part.function for part in RoutedParts(network, ROUTES, plans).graphs().running()
    }
    for path in itertools.product(ROUTES, repeat=2):
        names = ["front", "gate_1_route_{}", "gate_2_route_{}_to_{}", "gate_2_route_{1}"]
        outputs = []
        for image in images:
            result = {"features": image[None]}
            for name in names:
                result = parts[name.format(*path)](result["features"])
            outputs.append(result["output"])
        difference = largest_difference(np.concatenate(outputs), network(images, path=path))
        assert difference <= 1e-5, path


def weights_of(*widths):
    """Returns weights that grow with the square of the channels, as pointwise kernels do."""
    return {width: (224 + 32 * width) ** 2 for width in widths}


SETS = [
    weights_of(0),
    weights_of(5),
    weights_of(0, 13),
    weights_of(0, 4, 9, 13),
    weights_of(0, 1, 2, 3),
    weights_of(*range(14)),
    # These steps have very different sizes.
    {0: 10, 1: 11, 2: 1000, 3: 1001},
]


@pytest.fixture(params=SETS, ids=lambda weights: "-".join(map(str, weights)))
def weights(request):
    return request.param


@pytest.mark.parametrize("price", [0.0, 1e-6, 1e-5, 1e-4, 1.0])
def test_every_route_extends_the_cuts_of_another_one(weights, price):
    plan = cheapest_group_ends(weights, price)
    assert list(plan) == list(weights)
    for route, cuts in plan.items():
        assert cuts[-1] == route
        assert list(cuts) == sorted(set(cuts))
        if len(cuts) > 1:
            assert plan[cuts[-2]] == cuts[:-1]


def test_free_weights_are_not_cut_and_dear_ones_stored_once(weights):
    assert cheapest_group_ends(weights, 0.0) == whole(weights)
    assert cheapest_group_ends(weights, 2.0 * len(weights)) == finest(tuple(weights))
    assert stored_weights(weights, whole(weights)) == sum(weights.values())
    assert stored_weights(weights, finest(tuple(weights))) == max(weights.values())


def test_the_dearer_a_weight_the_fewer_are_stored_and_the_more_is_cut():
    weights = weights_of(*range(14))
    plans = [cheapest_group_ends(weights, 1e-7 * 2**k) for k in range(28)]
    stored = [stored_weights(weights, plan) for plan in plans]
    cuts = [sum(map(len, plan.values())) for plan in plans]
    assert stored == sorted(stored, reverse=True)
    assert cuts == sorted(cuts)
    assert len(set(cuts)) > 4


def test_weights_are_counted_once_where_routes_begin_with_the_same_cuts():
    weights = {0: 10, 1: 20, 2: 50}
    assert stored_weights(weights, {0: (0,), 1: (0, 1), 2: (0, 1, 2)}) == 50
    # Routes 1 and 2 cannot use the blocks of each other.
    assert stored_weights(weights, {0: (0,), 1: (0, 1), 2: (0, 2)}) == 60
    assert stored_weights(weights, {0: (0,), 1: (1,), 2: (0, 2)}) == 70


def test_the_share_of_channels_counts_groups_in_the_same_way():
    assert stored_share({0: (0,), 1: (0, 1), 2: (0, 1, 2)}) == 1
    assert stored_share({0: (0,), 1: (1,), 2: (2,)}) == 2
    # One channel of route 0, one more of route 1, and two that only route 2 has.
    assert stored_share({0: (0,), 1: (0, 1), 2: (0, 2)}) == pytest.approx(4 / 3)


def test_large_kernels_of_small_features_are_shared():
    large, small = (SlicedDepthwiseConv2D((8,), size) for size in (5, 3))
    halving = SlicedDepthwiseConv2D((8,), 3, 2)
    cases = [(large, 7), (large, 14), (small, 7), (small, 8), (halving, 14), (halving, 28)]
    found = [shares_depthwise(layer, (side, side)) for layer, side in cases]
    assert found == [True, False, True, False, True, False]


def test_a_group_is_folded_alike_by_all_routes_that_share_it():
    cuts = {0: (0,), 6: (0, 6), 13: (0, 6, 13), 19: (0, 6, 13, 19)}
    assert {route: folded_routes(cuts, route) for route in cuts} == {
        0: (13,),
        6: (13, 13),
        13: (13, 13, 13),
        19: (13, 13, 13, 19),
    }


def test_a_group_of_two_routes_is_folded_with_the_narrower_and_one_alone_with_its_own():
    cuts = {0: (0,), 4: (4,), 8: (4, 8), 13: (0, 13)}
    assert {route: folded_routes(cuts, route) for route in cuts} == {
        0: (0,),
        4: (4,),
        8: (4, 8),
        13: (0, 13),
    }
