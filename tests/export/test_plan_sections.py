"""How the sections of a network are cut: what a plan holds, and that every plan is the network."""

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
    SectionPlan,
    cuts_of,
    find_spans,
    finest,
    plan_sections,
    stored_weights,
    whole,
)
from keras_dsnet.models import MobileNetStage, ResNetSpec, ResNetStage

ROUTES = (0, 1, 2)
SHAPE = (16, 16, 3)


@pytest.fixture(scope="module")
def efficientnet():
    return tiny_network(TINY_EFFICIENTNET)


@pytest.fixture(scope="module")
def large():
    return DSMobileNet()


def test_a_span_is_what_lies_between_two_strides(efficientnet):
    first, second = find_spans(efficientnet, ROUTES, SHAPE)
    names = [[layer.name.split("_", 1)[1] for layer in span.layers] for span in (first, second)]
    # Blocks 3 and 4 at 4x4, block 5 from its stride on.
    assert names[0] == ["3_project", "4_expand", "4_project", "5_expand"]
    assert names[1] == ["5_project", "conv"]
    assert first.weights[2] == 8 * 16 + 16 * 32 + 32 * 16 + 16 * 32
    assert second.weights == {0: 16 * 8 + 8 * 20, 1: 24 * 16 + 16 * 20, 2: 32 * 24 + 24 * 20}
    # Elements for each multiply-add of the path.
    madds = efficientnet.madds(2, SHAPE)
    assert first.outputs[2] == 16 * (16 + 32 + 16 + 32) / madds
    assert second.inputs[2] == 4 * 32 / madds


def test_convolutions_that_see_the_width_before_are_no_part_of_a_span():
    spans = find_spans(tiny_network(TINY_RESNET), ROUTES, SHAPE)
    assert [span.section for span in spans] == [1, 2, 3]
    assert [span.has_entry for span in spans] == [False, True, True]
    # Branch and shortcut: 96 channels to 24 and to 96.
    assert spans[1].entry_weights[2] == 96 * 24 + 96 * 96
    assert spans[1].weights[2] == 9 * 24 * 24 + 24 * 96


@pytest.mark.parametrize("layout", ["shared", "fast"])
@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("routes", [(3,), (0, 13), (0, 4, 8, 13), tuple(range(14))])
def test_a_file_of_one_gate_holds_no_more_than_it_may(large, layout, integer, routes):
    shape = (224, 224, 3)
    (plan,) = plan_sections(large, routes, shape, layout, integer)
    spans = find_spans(large, routes, shape)
    assert [list(cuts) for cuts in plan.cuts] == [list(routes)] * len(spans)
    if layout == "fast":
        assert plan.cuts == (whole(routes),) * len(spans)
        return
    total = large.costs(routes[-1], shape).parameters
    stored = [stored_weights(span.weights, cuts) for span, cuts in zip(spans, plan.cuts)]
    spare = sum(stored) - sum(span.weights[routes[-1]] for span in spans)
    assert 0 <= spare <= (0.2 if integer else 0.016 * (len(routes) - 1)) * total


def test_what_may_be_spared_saves_cuts_first_where_features_are_large(large):
    routes = (0, 4, 8, 13)
    (once,), (spared,) = (
        plan_sections(large, routes, (224, 224, 3), "shared", integer) for integer in (False, True)
    )
    assert once.cuts == (finest(routes),) * 2
    first, second = (sum(map(len, cuts.values())) for cuts in spared.cuts)
    assert first < second < 10


def test_pooled_features_are_cut_finely_in_every_layout(large):
    (plan,) = plan_sections(large, (0, 13), (224, 224, 3), "fast")
    found = plan.of_layers(large.sections[1], 13)
    steps = {step.layer: step.kind for step in large.sections[1]}
    assert {found[layer] for layer, kind in steps.items() if kind in ("gate", "dense")} == {(0, 13)}
    assert {found[layer] for layer, kind in steps.items() if kind == "conv"} == {(13,)}


def test_several_gates_hold_no_more_than_their_layout(monkeypatch):
    network = tiny_network(TINY_RESNET)
    total = network.costs(2, SHAPE).parameters
    for layout, limit in (("shared", 1.5), ("fast", 3.0)):
        monkeypatch.setitem(module.LIMITS, layout, limit)
        plans = plan_sections(network, ROUTES, SHAPE, layout)
        spans = find_spans(network, ROUTES, SHAPE)
        stored = [stored_weights(s.weights, p.cuts[0]) for s, p in zip(spans, plans)]
        own = sum(stored) - sum(span.weights[2] for span in spans)
        assert own <= (limit - 1) * total
        assert cuts_of(plans, (0, 1, 2)) == [list(p.cuts[0][w]) for p, w in zip(plans, ROUTES)]


def run_plan(network, plan, route, images):
    """Runs a route as a file with this plan does, in TensorFlow."""
    parts = {part.name: part for part in RoutedParts(network, ROUTES, (plan,)).parts()}
    rest = parts[f"route_{route}"].function
    outputs = [rest(parts["front"].function(image[None])["features"]) for image in images]
    return np.concatenate([result["output"] for result in outputs])


@pytest.mark.parametrize("family", ["mobilenet", "efficientnet"])
def test_every_cut_of_every_span_gives_the_outputs_of_the_network(family, efficientnet):
    network, images = efficientnet, tiny_images()[::12]
    if family == "mobilenet":
        stages = (*SPEC.stages[:2], MobileNetStage(2, 2, (16, 24, 32, 48)))
        network = small_network(spec=type(SPEC)(SPEC.stem, stages=stages, attention_ratio=0.5))
        images = random_images(2)
    spans = find_spans(network, ROUTES, SHAPE)
    layers = tuple(tuple(span.layers) for span in spans)
    middle = {0: (0,), 1: (1,), 2: (1, 2)}
    plans = (whole(ROUTES), finest(ROUTES), middle)
    assert len(spans) == 2
    for cuts in itertools.product(plans, repeat=2):
        plan = SectionPlan(cuts, layers, cuts[0], finest(ROUTES))
        for route in ROUTES[1:]:
            outputs = run_plan(network, plan, route, images)
            assert largest_difference(outputs, network(images, path=route)) <= 1e-5, (cuts, route)


def test_a_section_of_several_gates_may_have_several_spans():
    stages = (
        ResNetStage(1, 1, (8, 16, 24)),
        ResNetStage(2, 2, (16,), gated=False),
        ResNetStage(1, 1, (8, 16, 24)),
    )
    network, images = tiny_network(ResNetSpec((8,), stages=stages)), tiny_images()[::12]
    spans = find_spans(network, ROUTES, SHAPE)
    assert [span.section for span in spans] == [1, 1, 2]
    plans = plan_sections(network, ROUTES, SHAPE, "shared")
    parts = {part.name: part.function for part in RoutedParts(network, ROUTES, plans).parts()}
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
