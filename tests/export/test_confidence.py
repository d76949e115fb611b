"""Tests routed files that route by confidence: paths, outputs, bounds, thresholds, and size."""

import dataclasses
import itertools
import warnings

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from exported import Exported
from routed_networks import random_images, small_network
from tiny_families import TINY_RESNET, tiny_images, tiny_network
from weight_cache import assert_same_with_cache

from keras_dsnet.export import DynamicInterpreter
from keras_dsnet.export.assembly import force_route
from keras_dsnet.export.confidence import ConfidencePlan
from keras_dsnet.export.export_routed import check_routed
from keras_dsnet.export.options import plan_routing

THRESHOLDS = {1: (0.27, 0.23), 3: (0.33, 0.84)}
IMAGES = {1: random_images(24), 3: tiny_images(24)}
# A confidence this near to a threshold may fall on the other side of it.
MARGIN = 1e-4


def network_of(num_gates, **options):
    if num_gates == 1:
        return small_network(**options)
    return tiny_network(TINY_RESNET, **options)


def softmax(logits):
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    return exponents / exponents.sum(1, keepdims=True)


def expected_paths(network, images, steps, thresholds, starts=None, end=None):
    """Returns the path of each image, and whether no confidence on its way is near a threshold.

    Args:
        network: `DynamicSlimmableNetwork`.
        images: `[images, height, width, 3]`.
        steps: tuple of widths.
        thresholds: tuple of floats.
        starts: paths `[images, num_gates]`; the first step if None.
        end: the widest width to go on to.
    """
    paths, clear, confidences = [], [], {}
    for index in range(len(images)):
        start = (steps[0],) * network.num_gates if starts is None else starts[index]
        path, is_clear = tuple(map(int, start)), True
        for target in steps:
            narrower = [place for place, step in enumerate(steps) if step <= max(path)]
            wider = [step for step in steps if step > max(path)]
            if wider[:1] != [target] or (end is not None and target > end):
                continue
            threshold = thresholds[narrower[-1] if narrower else 0]
            if path not in confidences:
                logits = network.run_sections(images, network.resolve_path(path))
                confidences[path] = softmax(np.asarray(logits, "float64")).max(1)
            confidence = confidences[path][index]
            is_clear &= abs(confidence - threshold) > MARGIN
            if (confidence <= threshold or threshold >= 1) and threshold > 0:
                path = (target,) * network.num_gates
        paths.append(path)
        clear.append(is_clear)
    return paths, clear


def run(content, signature, images, **inputs):
    """Returns the outputs and the paths of a signature for each image."""
    runner = Interpreter(model_content=content).get_signature_runner(signature)
    results = [runner(image=image[None], **inputs) for image in images]
    paths = [tuple(map(int, result["path"])) for result in results]
    return np.concatenate([result["output"] for result in results]), paths


def assert_same(network, images, results, expected):
    """Asserts that paths are right where they are clear, and outputs those of the network."""
    outputs, paths = results
    assert len(outputs) == len(paths) == len(images)
    for path, right, is_clear in zip(paths, *expected):
        assert path == right or not is_clear
    for path in set(paths):
        chosen = [index for index, taken in enumerate(paths) if taken == path]
        reference = network(images[chosen], path=path)
        np.testing.assert_allclose(outputs[chosen], reference, atol=1e-4)


@pytest.fixture(scope="module", params=[1, 3], ids=["one_gate", "three_gates"])
def network(request):
    return network_of(request.param)


@pytest.fixture(scope="module", params=["shared", pytest.param("fast", marks=pytest.mark.long)])
def exported(request, network, tmp_path_factory):
    """A file of three steps without gates."""
    folder = tmp_path_factory.mktemp(request.param)
    options = {"steps": (0, 1, 2), "thresholds": THRESHOLDS[network.num_gates], "verbose": False}
    exported = Exported(network, folder, routing="confidence", layout=request.param, **options)
    exported.model_layout = request.param
    exported.plan = ConfidencePlan((0, 1, 2), (0, 1, 2), options["thresholds"])
    return exported


@pytest.mark.slow
def test_images_go_on_by_their_confidence(exported):
    network = exported.network
    images, thresholds = IMAGES[network.num_gates], THRESHOLDS[network.num_gates]
    expected = expected_paths(network, images, (0, 1, 2), thresholds)
    assert {path[0] for path in expected[0]} == {0, 1, 2}
    assert_same(network, images, run(exported.content, "serving_default", images), expected)


@pytest.mark.slow
def test_thresholds_can_be_given_for_each_call(exported):
    network, count = exported.network, 8
    images = IMAGES[network.num_gates][:count]
    for thresholds in itertools.product((0.0, 0.35, 1.0), repeat=2):
        expected = expected_paths(network, images, (0, 1, 2), thresholds)
        given = np.array(thresholds, "float32")
        results = run(exported.content, "tuned", images, thresholds=given)
        assert_same(network, images, results, expected)
    assert set(results[1]) == {(2,) * network.num_gates}


def test_tuned_returns_the_confidence_of_its_output(exported):
    network = exported.network
    image, runner = (
        IMAGES[network.num_gates][:1],
        exported.interpreter.get_signature_runner("tuned"),
    )
    for thresholds, width in (((0, 0), 0), ((1, 0), 1), ((1, 1), 2)):
        result = runner(image=image, thresholds=np.array(thresholds, "float32"))
        assert {name: value.shape for name, value in result.items()} == {
            "output": (1, 5),
            "path": (network.num_gates,),
            "confidence": (1,),
        }
        logits = network.run_sections(image, network.resolve_path(width))
        np.testing.assert_allclose(result["confidence"], softmax(logits.numpy()).max(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("low", "high"), [(0, 2), (0, 1), (1, 2), (1, 1), (2, 0), (2, 2), (0, 0)])
def test_bounds_give_the_first_and_the_last_step(exported, low, high):
    network = exported.network
    gates = network.num_gates
    images, thresholds = IMAGES[gates][:12], THRESHOLDS[gates]
    start = [(low,) * gates] * len(images)
    expected = expected_paths(network, images, (0, 1, 2), thresholds, start, end=high)
    bounds = {"min_width": np.full(gates, low, "int32"), "max_width": np.full(gates, high, "int32")}
    results = run(exported.content, "bounded", images, **bounds)
    assert_same(network, images, results, expected)
    assert set(results[1]) <= {(width,) * gates for width in range(low, max(low, high) + 1)}


def test_a_file_has_no_gates_and_each_step_once(exported, network, tmp_path):
    names = {graph.name.decode() for graph in exported.model.subgraphs}
    steps = {f"route_{place}" for place in range(3)}
    assert names == {"serving_default", "bounded", "tuned", *steps} | {
        f"{step}_noop" for step in steps
    }
    kinds = [name for _, name in exported.operators(exported.main("serving_default"))]
    assert "ARG_MAX" not in kinds
    # Three starts, and two steps to go on to.
    assert kinds.count("IF") == 5


@pytest.mark.long
def test_constants_grow_by_at_most_two_percent(exported, tmp_path):
    layout = exported.model_layout
    by_gate = Exported(exported.network, tmp_path, routes=(0, 1, 2), layout=layout, verbose=False)
    constants = [each.report["shared"]["constants"] for each in (exported, by_gate)]
    assert constants[0] < 1.02 * constants[1]


def test_a_path_can_be_forced(exported):
    network = exported.network
    images = IMAGES[network.num_gates][:3]
    for width in (0, 1, 2):
        content = force_route(exported.content, width)
        outputs, paths = run(content, "serving_default", images)
        assert set(paths) == {(width,) * network.num_gates}
        np.testing.assert_allclose(outputs, network(images, path=width), atol=1e-4)
    if network.num_gates > 1:
        with pytest.raises(ValueError, match="a path has one width at all of them"):
            force_route(exported.content, (0, 1, 2))


@pytest.fixture(
    scope="module",
    params=[
        ((0, 1), (1, 2), 1),
        pytest.param(((0, 1, 2), (0, 2), 1), marks=pytest.mark.long),
        pytest.param(((0, 1), (1, 2), 3), marks=pytest.mark.long),
        pytest.param(((0, 1, 2), (0, 2), 3), marks=pytest.mark.long),
    ],
    ids=["narrow_start", "any_start", "narrow_start_of_three", "any_start_of_three"],
)
def gated(request, tmp_path_factory):
    """A file in which the gates choose the start."""
    routes, steps, num_gates = request.param
    network = network_of(num_gates, routes=routes)
    options = {"routing": "gate+confidence", "steps": steps, "thresholds": (0.3,)}
    folder = tmp_path_factory.mktemp("gated")
    exported = Exported(network, folder, verbose=False, **options)
    exported.steps, exported.gate_routes = steps, routes
    return exported


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
def test_gates_choose_the_start(gated, threshold):
    network = gated.network
    images = IMAGES[network.num_gates]
    starts = network.route(images).numpy()
    expected = expected_paths(network, images, gated.steps, (threshold,), starts)
    assert len(set(expected[0])) > (threshold < 1)
    given = np.array([threshold], "float32")
    results = run(gated.content, "tuned", images, thresholds=given)
    assert_same(network, images, results, expected)
    if threshold == 0.3:
        assert_same(network, images, run(gated.content, "serving_default", images), expected)


def test_bounds_hold_for_the_start_and_the_steps(gated):
    network = gated.network
    gates, images = network.num_gates, IMAGES[network.num_gates][:8]
    for low, high in itertools.product(range(3), repeat=2):
        bounds = {
            "min_width": np.full(gates, low, "int32"),
            "max_width": np.full(gates, high, "int32"),
        }
        _, paths = run(gated.content, "bounded", images, **bounds)
        assert {width for path in paths for width in path} <= set(range(low, max(low, high) + 1))
        # Also where only a step, which no gate may choose, lies within the bounds.
        if low == high:
            assert set(paths) == {(low,) * gates}


@pytest.mark.long
def test_several_gates_are_bounded_separately(tmp_path):
    network = network_of(3)
    options = {"routing": "gate+confidence", "steps": (0, 2), "thresholds": 1.0, "verbose": False}
    exported = Exported(network, tmp_path, **options)
    path = np.array([0, 2, 1], "int32")
    outputs, paths = run(exported.content, "bounded", IMAGES[3][:3], min_width=path, max_width=path)
    assert set(paths) == {(0, 2, 1)}
    np.testing.assert_allclose(outputs, network(IMAGES[3][:3], path=(0, 2, 1)), atol=1e-4)
    content = force_route(exported.content, (2, 0, 1))
    assert set(run(content, "serving_default", IMAGES[3][:3])[1]) == {(2, 0, 1)}


@pytest.mark.parametrize(
    ("quantize", "num_gates", "routing"),
    [
        pytest.param(*case, marks=[] if case == ("int8", 1, "confidence") else pytest.mark.long)
        for case in itertools.product(
            ("float16", "dynamic", "int8"), (1, 3), ("confidence", "gate+confidence")
        )
    ],
)
def test_quantised_files_go_on_by_their_own_confidence(quantize, num_gates, routing, tmp_path):
    network, images = network_of(num_gates), IMAGES[num_gates]
    options = {"representative_data": images} if quantize == "int8" else {}
    options |= {"routing": routing, "steps": (0, 2), "quantize": quantize, "verbose": False}
    exported = Exported(network, tmp_path, thresholds=(0.3,), **options)
    # Where nothing goes on, the confidence is that of the start.
    tuned = exported.interpreter.get_signature_runner("tuned")
    first = [tuned(image=i[None], thresholds=np.zeros(1, "float32")) for i in images]
    _, paths = run(exported.content, "serving_default", images)
    for result, path in zip(first, paths):
        start = tuple(map(int, result["path"]))
        goes_on = result["confidence"][0] <= np.float32(0.3) and max(start) < 2
        assert path == ((2,) * num_gates if goes_on else start)
    assert len(set(paths)) > 1
    _, all_go_on = run(exported.content, "tuned", images, thresholds=np.ones(1, "float32"))
    for result, path in zip(first, all_go_on):
        start = tuple(map(int, result["path"]))
        assert path == ((2,) * num_gates if max(start) < 2 else start)
    if quantize == "int8":
        assert len({float(result["confidence"][0]) for result in first}) > 12
        assert_same_with_cache(exported.filename, images[:4], tmp_path, [(2,) * num_gates])


@pytest.fixture(scope="module")
def saturated(tmp_path_factory):
    """A file of a network with huge logits and untrained gates, and the warnings of its export."""
    network = small_network(classifier_activation="softmax")
    classifier = network.sections[-1][-1].layer
    classifier.kernel.assign(classifier.kernel * 1e4)
    network.gates_trained = False
    folder = tmp_path_factory.mktemp("saturated")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exported = Exported(network, folder, routing="confidence", steps=(0, 3), verbose=False)
    return exported, [str(warning.message) for warning in caught]


def test_saturated_logits_obey_thresholds_of_zero_and_one(saturated):
    exported, _ = saturated
    images = IMAGES[1][:4]
    for threshold, width in ((1.0, 3), (0.0, 0)):
        given = np.array([threshold], "float32")
        _, paths = run(exported.content, "tuned", images, thresholds=given)
        assert set(paths) == {(width,)}


def test_outputs_that_are_not_numbers_go_on_unless_nothing_may(saturated):
    exported, _ = saturated
    image = np.full_like(IMAGES[1][:1], np.nan)
    for threshold, width in ((0.0, 0), (1e-6, 3), (0.5, 3), (1.0, 3)):
        given = np.array([threshold], "float32")
        _, paths = run(exported.content, "tuned", image, thresholds=given)
        assert paths == [(width,)]


def test_untrained_gates_cause_no_warning_where_the_file_has_none(saturated):
    _, messages = saturated
    assert not [message for message in messages if "gate" in message]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"routing": "sure"}, "`routing` must be 'gate', 'confidence' or 'gate\\+confidence'"),
        ({"steps": (0, 1)}, "`steps` and `thresholds` are for routing by confidence"),
        ({"thresholds": (0.5,)}, "`steps` and `thresholds` are for routing by confidence"),
        ({"routing": "confidence", "steps": (2, 0)}, "`steps` must be two or more ascending"),
        ({"routing": "confidence", "steps": (2,)}, "`steps` must be two or more ascending"),
        ({"routing": "confidence", "steps": (0, 9)}, "`steps` must be two or more ascending"),
        (
            {"routing": "confidence", "thresholds": (0.5, 0.5)},
            "`thresholds` must be a number",
        ),
        ({"routing": "confidence", "thresholds": (1.5,)}, "`thresholds` must be a number"),
        ({"routing": "confidence", "thresholds": "a"}, "`thresholds` must be a number"),
        (
            {"routing": "confidence", "routes": (1,)},
            "`routes` of a file .* must be two or more widths",
        ),
        (
            {"routing": "gate+confidence", "routes": (3,), "steps": (0, 3)},
            "needs a step that is wider than a start",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(options, message, tmp_path):
    with pytest.raises(ValueError, match=message) as raised:
        small_network().export(tmp_path / "m.tflite", format="litert", **options)
    assert "\n" not in str(raised.value)
    assert "Received" in str(raised.value)


def test_a_network_without_classifier_has_no_confidence(tmp_path):
    network = small_network(include_top=False, classifier_activation=None)
    with pytest.raises(ValueError, match="needs the network's classifier"):
        network.export(tmp_path / "m.tflite", format="litert", routing="confidence")


def test_a_file_that_does_not_go_on_as_it_should_is_refused(exported):
    network, content = exported.network, exported.content
    plan = exported.plan
    check_routed(content, network, (0, 1, 2), network.input_shape[1:], confidence=plan)
    wrong = dataclasses.replace(plan, steps=(0, 2, 3))
    with pytest.raises(ValueError, match="takes the path"):
        check_routed(content, network, (0, 1, 2), network.input_shape[1:], confidence=wrong)


@pytest.mark.slow
def test_a_file_takes_the_settings_of_the_network(tmp_path):
    network = small_network()
    network.routing, network.confidence_steps, network.thresholds = "confidence", (1, 3), 0.24
    metadata = DynamicInterpreter(Exported(network, tmp_path, verbose=False).filename).metadata
    assert (metadata["routing"], metadata["steps"]) == ("confidence", [1, 3])
    assert metadata["thresholds"] == [0.24]
    _, paths = run((tmp_path / "m.tflite").read_bytes(), "serving_default", IMAGES[1])
    assert paths == [tuple(path) for path in network.route(IMAGES[1]).numpy().tolist()]
    assert len(set(paths)) == 2


def test_one_route_by_confidence_is_named_as_a_route():
    network = small_network()
    network.routing = "confidence"
    with pytest.raises(ValueError, match=r"`routes` of a file.*two or more.*routes=\(1,\)"):
        plan_routing(network, (1,), None, None, None)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ((0, 3), (0.4,))),
        ({"routes": (0, 1, 3)}, ((0, 3), (0.4,))),
        ({"routes": (1, 2)}, ((1, 2), (0.7,))),
        ({"steps": (0, 2)}, ((0, 2), (0.7,))),
        ({"steps": (0, 3), "thresholds": 0.5}, ((0, 3), (0.5,))),
    ],
)
def test_steps_and_thresholds_belong_together(options, expected):
    network = small_network()
    network.routing, network.thresholds = "confidence", 0.4
    options = {"routes": None, "routing": None, "steps": None, "thresholds": None, **options}
    widths, plan = plan_routing(network, **options)
    assert (plan.steps, plan.thresholds) == expected
    assert widths == (options["routes"] or expected[0])
