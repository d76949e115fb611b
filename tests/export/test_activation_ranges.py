"""Ranges of int8 activations: narrowed where that lowers the mean absolute error."""

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from keras_dsnet.export import activation_ranges
from keras_dsnet.export.activation_ranges import best_range, range_of
from keras_dsnet.export.conversion import convert, convert_traced, trace
from keras_dsnet.export.tflite_model import Builtin, builtin_code, parse

GENERATOR = np.random.default_rng(0)
NORMAL = GENERATOR.normal(size=20000)
KERNEL = GENERATOR.normal(size=(3, 3, 4, 6)).astype("float32") / 6
LAST = GENERATOR.normal(size=(6, 5)).astype("float32")


def rounded(values, low, high):
    step = (high - low) / 255
    zero = np.rint(low / step)
    return np.clip(np.rint(values / step), zero, zero + 255) * step


def swish(values):
    return values / (1 + np.exp(-values))


def test_a_few_large_values_are_cut_off():
    values = np.append(np.tile(NORMAL, 50), [12.0, -9.0])
    low, high = best_range(values, -9.0, 12.0)
    assert -6 < low < -3
    assert 3 < high < 6
    error = np.square(rounded(values, low, high) - values).mean()
    assert error < 0.5 * np.square(rounded(values, -9, 12) - values).mean()


def test_a_heavy_tail_does_not_make_the_steps_of_all_others_coarse():
    """The least squared error keeps large values, and costs a network of such features accuracy."""
    values = np.random.default_rng(0).standard_t(1.5, size=200000)
    ends = float(values.min()), float(values.max())
    low, high = best_range(values, *ends)
    most = values[np.abs(values) < 5]
    assert len(most) > 0.9 * len(values)
    steps = [np.abs(rounded(most, *each) - most).mean() for each in ((low, high), ends)]
    assert steps[0] < 0.25 * steps[1]
    assert max(-low, high) < 0.25 * max(-ends[0], ends[1])
    # What is cut off counts too: no narrower range has a less mean error.
    whole = np.abs(rounded(values, low, high) - values).mean()
    for factor in (0.3, 0.5, 2, 3):
        assert np.abs(rounded(values, factor * low, factor * high) - values).mean() > 0.8 * whole


def test_values_that_are_not_rare_are_kept():
    values = np.append(NORMAL, np.full(20, 12.0))
    _, high = best_range(values, -5.0, 12.0)
    assert high > 11


def test_a_range_without_rare_values_stays():
    values = np.linspace(-1, 2, 20000)
    low, high = best_range(values, -1.0, 2.0)
    assert low == pytest.approx(-1, abs=0.03)
    assert high == pytest.approx(2, abs=0.06)


def test_what_swish_makes_zero_is_cut_off():
    values = 6 * NORMAL
    ends = float(values.min()), float(values.max())
    low, _ = best_range(values, *ends, is_swish=True)
    plain, _ = best_range(values, *ends)
    assert low > plain + 3
    assert low < -2


@pytest.mark.parametrize("values", [np.zeros(0), np.full(3, np.nan), np.zeros(9)])
def test_values_that_say_nothing_leave_a_range_with_zero(values):
    low, high = best_range(values, -1.0, 2.0)
    assert -1 <= low <= 0 <= high <= 2


def small_graph(image):
    x = tf.nn.conv2d(image, KERNEL, 1, "SAME") + np.ones(6, "float32")
    x = tf.pad(tf.nn.swish(x), [[0, 0], [1, 1], [1, 1], [0, 0]])
    x = tf.nn.conv2d(x, LAST[None, None], 2, "VALID")
    return {"output": tf.reshape(x, (1, -1))}


@pytest.fixture(scope="module")
def files():
    """An int8 file with narrowed ranges, one with measured ranges, and the images of both."""
    images = GENERATOR.normal(size=(400, 1, 8, 8, 4)).astype("float32")
    images[1, 0, 3, 3] = 20.0
    arguments = {"image": tf.TensorSpec((1, 8, 8, 4))}, "int8"
    samples = [{"image": image} for image in images]
    narrowed = convert(small_graph, *arguments, lambda: iter(samples))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activation_ranges, "_SHARES", np.ones(1))
        measured = convert(small_graph, *arguments, lambda: iter(samples))
    return narrowed, measured, images[1:]


def scales(content):
    """Returns the scales of the activations that each kind of operator writes."""
    model = parse(content)
    (graph,) = model.subgraphs
    return {
        builtin_code(model.operatorCodes[operator.opcodeIndex]): float(
            graph.tensors[operator.outputs[0]].quantization.scale[0]
        )
        for operator in graph.operators
        if graph.tensors[operator.outputs[0]].quantization.scale is not None
    }


def test_an_int8_file_is_nearer_to_the_network(files):
    *contents, images = files
    expected = np.concatenate([small_graph(image)["output"] for image in images])
    errors = []
    for content in contents:
        runner = Interpreter(model_content=content).get_signature_runner("serving_default")
        outputs = np.concatenate([runner(image=image)["output"] for image in images])
        errors.append(np.square(outputs - expected).mean())
    assert errors[0] < 0.8 * errors[1]


def test_padding_shares_a_range_and_the_output_keeps_its_own(files):
    narrowed, measured = map(scales, files[:2])
    assert narrowed[Builtin.MUL] == narrowed[Builtin.PAD] < 0.7 * measured[Builtin.PAD]
    assert narrowed[Builtin.RESHAPE] == measured[Builtin.RESHAPE]
    # The same operators, so no more time.
    assert narrowed.keys() == measured.keys()
    assert len(files[0]) == len(files[1])


def test_graphs_have_one_range_for_the_features_that_they_pass_on():
    """Else int8 features would be read at another scale than they were written with."""
    images = GENERATOR.standard_t(2, size=(140, 1, 8, 8, 4)).astype("float32")

    def first(image):
        x = tf.nn.conv2d(image, KERNEL, 1, "SAME")
        return {"features_0": tf.nn.swish(x), "scores": tf.reduce_mean(x, (1, 2))}

    def second(features_0):
        x = tf.pad(features_0, [[0, 0], [1, 1], [1, 1], [0, 0]])
        return {"output": tf.reduce_sum(tf.nn.conv2d(x, LAST[None, None], 1, "VALID"), (1, 2))}

    def other(features_0):
        return {"output": tf.reduce_mean(features_0 * features_0, (1, 2))}

    features = np.stack([first(image)["features_0"].numpy() for image in images])
    inputs = {"features_0": tf.TensorSpec((1, 8, 8, 6))}
    traced = {"first": trace(first, {"image": tf.TensorSpec((1, 8, 8, 4))})}
    traced |= {"second": trace(second, inputs), "other": trace(other, inputs)}

    def given():
        return ({"features_0": each} for each in features)

    samples = {"first": lambda: ({"image": image} for image in images)}
    low, high = range_of(features)
    passed = {name: {("inputs", "features_0"): (low, high)} for name in ("second", "other")}
    passed["first"] = {("outputs", "features_0"): (low, high)}
    samples |= {"second": given, "other": given}
    model = parse(convert_traced(traced, "int8", samples, passed))
    scales = []
    for graph in model.subgraphs:
        for operator in graph.operators:
            kind = builtin_code(model.operatorCodes[operator.opcodeIndex])
            ends = {Builtin.DEQUANTIZE: graph.outputs, Builtin.QUANTIZE: graph.inputs}.get(kind, ())
            inside = operator.inputs if kind == Builtin.DEQUANTIZE else operator.outputs
            if {*operator.inputs, *operator.outputs}.intersection(ends):
                tensor = graph.tensors[inside[0]]
                scales += [tensor.quantization.scale[0]] if [*tensor.shape[3:]] == [6] else []
    assert len(scales) == 3
    np.testing.assert_allclose(scales, (high - low) / 255, rtol=1e-3)
    assert scales[0] < 0.5 * (features.max() - features.min()) / 255
