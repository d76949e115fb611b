"""Tests a routed float32 file: its signatures, its routes, its graphs and its report."""

import copy
import json
import re

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from exported import Exported, largest_difference
from routed_networks import SIZE, random_images, small_network
from tiny_families import tiny_network

from keras_dsnet.export import convert_graphs
from keras_dsnet.export.export_routed import check_routed
from keras_dsnet.export.packing import pack
from keras_dsnet.export.partition import stored_weights
from keras_dsnet.export.tflite_model import operators_of
from keras_dsnet.models import MobileNetSpec, MobileNetStage

IMAGES = random_images(24)
BOUNDS = {"min_width": ((1,), np.int32), "max_width": ((1,), np.int32)}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A file with all widths as routes, whose export logged its report."""
    return Exported(small_network(), tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def fast(tmp_path_factory):
    """A file with two routes that differ from the network's."""
    options = {"layout": "fast", "routes": (0, 2), "verbose": False}
    return Exported(small_network(), tmp_path_factory.mktemp("fast"), **options)


@pytest.fixture(params=["shared", "fast"])
def exported(request):
    return request.getfixturevalue(request.param)


def scores_of(network, images):
    """Returns the gate's scores, float32 `[batch, num_widths]`."""
    return network.run_section(0, None, (0, 0), images)[1].numpy()


def width_within(scores, routes, low, high):
    """Returns the width that one image takes within bounds."""
    within = [route for route in routes if low <= route <= high]
    if within:
        return max(within, key=lambda route: scores[route])
    above = [route for route in routes if route >= low]
    return above[0] if above else routes[-1]


def if_targets(exported, graph):
    """Returns the subgraph indices of the branches of each IF of a graph."""
    options = [op.builtinOptions for op, name in exported.operators(graph) if name == "IF"]
    return [(o.thenSubgraphIndex, o.elseSubgraphIndex) for o in options]


def test_signatures_have_the_promised_names_types_and_shapes(exported):
    image = {"image": ((1, SIZE, SIZE, 3), np.float32)}
    results = {"output": ((1, 5), np.float32), "path": ((1,), np.int32)}
    wanted = {"serving_default": image, "bounded": {**image, **BOUNDS}}
    assert set(exported.interpreter.get_signature_list()) == set(wanted)
    for name, inputs in wanted.items():
        runner = exported.interpreter.get_signature_runner(name)
        sides = (runner.get_input_details(), inputs), (runner.get_output_details(), results)
        for details, expected in sides:
            found = {key: (tuple(d["shape"]), d["dtype"]) for key, d in details.items()}
            assert found == expected


def test_without_a_signature_the_file_is_serving_default(exported):
    assert [details["name"] for details in exported.interpreter.get_input_details()] == ["image"]
    assert exported.model.subgraphs[0] is exported.main("serving_default")


def test_every_forced_route_gives_the_outputs_of_its_path(exported):
    for route in exported.routes:
        outputs, widths = exported.bounded(IMAGES[:6], route, route)
        assert set(widths) == {route}
        assert largest_difference(outputs, exported.network(IMAGES[:6], path=route)) <= 1e-4


def test_the_file_chooses_what_the_network_chooses_image_by_image(exported):
    network = exported.network
    network.routes = exported.routes
    outputs, widths = exported.choose(IMAGES)
    ordered = np.sort(scores_of(network, IMAGES)[:, list(exported.routes)], axis=1)
    clear = ordered[:, -1] - ordered[:, -2] >= 1e-4
    assert clear.sum() >= 22
    np.testing.assert_array_equal(widths[clear], network.route(IMAGES).numpy()[clear, 0])
    assert len(set(widths)) == min(len(exported.routes), 4)
    assert largest_difference(outputs[clear], network(IMAGES).numpy()[clear]) <= 1e-4


def test_bounds_follow_the_rule_where_they_hold_routes_and_where_not(exported):
    images = IMAGES[:3]
    scores = scores_of(exported.network, images)
    for low in range(4):
        for high in range(4):
            _, widths = exported.bounded(images, low, high)
            wanted = [width_within(own, exported.routes, low, high) for own in scores]
            assert widths.tolist() == wanted, (low, high)


def test_both_signatures_run_the_same_branches(exported):
    serving, bounded = map(exported.main, ("serving_default", "bounded"))
    assert serving is not bounded
    assert if_targets(exported, serving) == if_targets(exported, bounded) != []
    waiting, seen = [serving], set()
    while waiting:
        targets = {index for pair in if_targets(exported, waiting.pop()) for index in pair}
        waiting += [exported.model.subgraphs[index] for index in targets - seen]
        seen |= targets
    # All graphs except those of the two signatures: no graph serves only one signature.
    assert seen == set(range(2, len(exported.model.subgraphs)))
    assert {exported.branch(route).name for route in exported.routes} <= {
        exported.model.subgraphs[index].name for index in seen
    }


def test_the_second_signature_costs_less_than_10_kb(shared):
    without = copy.deepcopy(shared.model)
    without.signatureDefs = without.signatureDefs[1:]
    empty = schema.SubGraphT()
    empty.tensors, empty.operators, empty.inputs, empty.outputs = [], [], [], []
    without.subgraphs[0] = empty
    assert 0 < len(shared.content) - len(pack(without)) < 10_000


def test_the_file_has_builtin_operators_only(exported):
    for code in exported.model.operatorCodes:
        assert code.builtinCode != schema.BuiltinOperator.CUSTOM
        assert not code.customCode


def test_a_shared_file_holds_each_weight_once(shared):
    own = [shared.kernels(shared.branch(route)) for route in shared.routes]
    weights = [sum(kernels.values()) for kernels in own]
    stored = sum({k: size for kernels in own for k, size in kernels.items()}.values())
    assert stored == stored_weights(dict(zip(shared.routes, weights)), shared.cuts)
    assert stored <= 1.04 * weights[-1]
    # The kernels of the slimmest route are not cut, and every other route runs them, too.
    assert all(set(own[0]) <= set(kernels) for kernels in own)


@pytest.mark.slow
def test_a_depthwise_kernel_behind_one_that_narrows_is_there_once(tmp_path):
    spec = MobileNetSpec(
        stem=(4,),
        stages=(
            MobileNetStage(1, 2, (6, 8)),
            MobileNetStage(1, 2, (16, 32, 48), gated=True),
            MobileNetStage(2, 1, (8, 16, 24)),
        ),
    )
    exported = Exported(tiny_network(spec), tmp_path, routes=(0, 1, 2), verbose=False)
    own = []
    for route in exported.routes:
        graph = exported.branch(route)
        inputs = [o.inputs for o, name in exported.operators(graph) if name == "DEPTHWISE_CONV_2D"]
        tensors = [graph.tensors[index[1]] for index in inputs]
        own.append({t.buffer for t in tensors if list(t.shape[1:3]) == [3, 3]})
    assert exported.cuts[2] == (0, 1, 2)
    # The two kernels of the third stage. A wider route has one group more of each.
    assert [len(kernels) for kernels in own] == [2, 4, 6]
    assert own[0] < own[1] < own[2]


def test_a_fast_file_has_whole_convolutions_and_shares_what_pooled_features_take(fast):
    operators = [fast.operators(fast.branch(route)) for route in fast.routes]
    counts = [[name for _, name in own].count("DEPTHWISE_CONV_2D") for own in operators]
    assert counts == [2, 2]
    slim, wide = (fast.branch(route) for route in fast.routes)
    whole = fast.kernels(slim, pooled=False)
    front, first, second = (stage.channels[0] for stage in fast.network.spec.stages)
    assert sum(whole.values()) == 4 * (front * first + first * first + first * second)
    assert not set(whole) & set(fast.kernels(wide))
    # The other kernels of the slimmest route are the first blocks of the wider one.
    assert set(fast.kernels(slim)) - set(whole) < set(fast.kernels(wide))


def test_the_second_widest_route_is_folded_and_the_others_multiply(shared, fast):
    counts = [shared.multiplications_by_constants(shared.branch(route)) for route in shared.routes]
    assert counts[2] == 0 < counts[0] < counts[1] < counts[3]
    assert {fast.multiplications_by_constants(fast.branch(route)) for route in (0, 2)} == {0}


def test_every_branch_is_one_part_that_xnnpack_takes(exported):
    for route in exported.routes:
        graph = exported.branch(route)
        assert exported.partitions(graph) == [set(graph.outputs)]


def test_a_convolution_that_only_multiplies_is_a_multiplication(shared):
    for route in shared.routes:
        graph = shared.branch(route)
        taps = [
            tuple(graph.tensors[operator.inputs[1]].shape[1:3])
            for operator, name in shared.operators(graph)
            if name == "DEPTHWISE_CONV_2D"
        ]
        assert set(taps) == {(3, 3)}


def test_the_report_says_what_the_file_holds(exported):
    report, network = exported.report, exported.network
    assert report["bytes"] == len(exported.content)
    assert [row["path"] for row in report["routes"]] == list(exported.routes)
    for row in report["routes"]:
        assert row["madds"] == network.madds(row["path"])
        assert 0 <= row["difference"] <= 1e-4
        assert [cuts[-1] for cuts in row["cuts"]] == [row["path"]]
    operators = [n for g in exported.model.subgraphs for _, n in exported.operators(g)]
    assert report["operators"] == {name: operators.count(name) for name in set(operators)}
    assert report["shared"]["constants"] < report["bytes"]
    assert report["shared"]["constants"] < report["shared"]["parts_apart"]


def test_phases_and_a_report_are_logged_unless_it_is_not_verbose(shared, fast):
    assert fast.logged == []
    *phases, report = shared.logged
    assert all(re.match(r"\[ +\d+\.\d s\] ", phase) for phase in phases)
    assert [phase.split("] ")[1] for phase in phases] == [
        "converting 5 graphs",
        "converted 5 of 5 graphs",
        "checking paths against the network",
    ]
    assert report == shared.report.text()
    lines = report.splitlines()
    assert lines[0].startswith(f"{shared.filename}: ")
    rows = [line.split()[0] for line in lines[2:-1]]
    assert rows == [str(route) for route in shared.routes]
    assert lines[-1].startswith("operators: CONV_2D ")


def test_nothing_is_printed(shared, fast):
    assert shared.printed == fast.printed == ""


def test_the_report_is_json(shared):
    assert json.loads(json.dumps(shared.report)) == shared.report


@pytest.mark.long
def test_graphs_that_are_converted_one_by_one_make_the_same_file(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(convert_graphs, "MOST_CONSTANTS", 0)
    apart = Exported(small_network(), tmp_path)
    assert sum("converted " in message for message in apart.logged) == 5
    names, wanted = ([g.name for g in own.model.subgraphs] for own in (apart, shared))
    assert names == wanted
    for one, other in zip(apart.model.subgraphs, shared.model.subgraphs):
        assert operators_of(one, apart.model) == operators_of(other, shared.model)
    for found, expected in zip(apart.choose(IMAGES[:4]), shared.choose(IMAGES[:4])):
        np.testing.assert_array_equal(found, expected)


def test_a_file_of_another_network_fails_the_check(shared):
    other = small_network(seed=1)
    with pytest.raises(ValueError, match=r"differs by .* on the path \(0,\); 1e-04 is allowed"):
        check_routed(shared.content, other, shared.routes, (SIZE, SIZE, 3))


def test_a_file_without_a_route_fails_the_check(fast):
    with pytest.raises(ValueError, match=r"takes the paths \[\(2,\)\] instead of \(1,\)"):
        check_routed(fast.content, fast.network, (1,), (SIZE, SIZE, 3))
