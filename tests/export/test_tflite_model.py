"""Tests a tree of `IF`s in a model built by hand, and separate buffers."""

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from weight_cache import run_compiled

from keras_dsnet.export.conversion import convert
from keras_dsnet.export.packing import pack
from keras_dsnet.export.tflite_model import (
    ModelBuilder,
    TensorType,
    add_operator,
    add_tensor,
    operators_of,
    parse,
    separate_buffers,
)

SIZE = 8
KERNEL = np.random.default_rng(0).normal(size=(3, 3, 3, 4)).astype("float32")
IMAGES = np.random.default_rng(1).normal(size=(16, SIZE, SIZE, 3)).astype("float32")


def empty_graph(name):
    graph = schema.SubGraphT()
    graph.name = name.encode()
    graph.tensors, graph.operators = [], []
    return graph


def adding(builder, value):
    """Adds a subgraph of `x` and a number that computes `x + value`; returns its index."""
    graph = empty_graph(f"add_{value}")
    graph.inputs = [add_tensor(graph, "x", TensorType.INT32, [2])]
    graph.inputs.append(add_tensor(graph, "number", TensorType.INT32, []))
    constant = add_tensor(graph, "value", TensorType.INT32, [2])
    builder.set_constant(graph.tensors[constant], value)
    graph.outputs = [add_tensor(graph, "sum", TensorType.INT32, [2])]
    operator = add_operator(
        graph, builder.builtin("ADD"), [graph.inputs[0], constant], graph.outputs
    )
    operator.builtinOptionsType = schema.BuiltinOptions.AddOptions
    operator.builtinOptions = schema.AddOptionsT()
    return builder.add_subgraph(graph)


def built(numbers, likely):
    """Returns a file whose signature calls one of several graphs by number, and its model."""
    builder, main = ModelBuilder(), empty_graph("main")
    builder.add_subgraph(main)
    places = {number: adding(builder, 10 * number) for number in numbers}
    main.inputs = [
        add_tensor(main, name, TensorType.INT32, shape) for name, shape in (("x", [2]), ("n", []))
    ]
    main.outputs = builder.add_if_tree(main, main.inputs, places, likely)
    builder.add_signature("call", 0, dict(zip("xn", main.inputs)), {"y": main.outputs[0]})
    return pack(builder.model), builder.model


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("likely", [None, 0, 2])
def test_a_tree_calls_the_graph_of_the_number(count, likely):
    likely = None if likely is None else min(likely, count - 1)
    content, _ = built(range(count), likely)
    runner = Interpreter(model_content=content).get_signature_runner("call")
    for number in [*range(count), *reversed(range(count))]:
        result = runner(x=np.int32([1, 2]), n=np.int32(number))["y"]
        assert result.tolist() == [1 + 10 * number, 2 + 10 * number]


def test_the_likely_graph_is_called_without_going_down_the_tree():
    for likely in range(4):
        _, model = built(range(4), likely)
        main = model.subgraphs[0]
        assert operators_of(main, model) == ["EQUAL", "IF"]
        options = main.operators[1].builtinOptions
        assert model.subgraphs[options.thenSubgraphIndex].name.decode() == f"add_{10 * likely}"
        # The others are two levels further down, not three.
        below = model.subgraphs[options.elseSubgraphIndex]
        assert operators_of(below, model) == ["LESS", "IF"]


def convolutions(image):
    """Applies one kernel to two inputs with different scales."""
    first = tf.nn.conv2d(image, KERNEL, 1, "SAME")
    return {"output": first + tf.nn.conv2d(tf.nn.relu(30.0 * image), KERNEL, 1, "SAME")}


def products(image):
    """Applies one matrix without a bias to two inputs with different scales."""
    rows = tf.reshape(image, (1, -1))[:, :27]
    matrix = KERNEL.reshape(27, 4)
    return {"output": tf.matmul(rows, matrix) + tf.matmul(tf.nn.relu(30.0 * rows), matrix)}


@pytest.fixture(scope="module", params=[convolutions, products])
def contents(request):
    """Returns the bytes of a converted file without and with separate buffers."""
    samples = [{"image": image[None]} for image in IMAGES]
    inputs = {"image": tf.TensorSpec((1, SIZE, SIZE, 3))}
    content = convert(request.param, inputs, "int8", lambda: iter(samples))
    model = parse(content)
    separate_buffers(model)
    return content, pack(model)


def pairs(content):
    """Returns the buffers of weights and bias of each operator that has weights."""
    model = parse(content)
    (graph,) = model.subgraphs
    return [
        tuple(graph.tensors[i].buffer if i >= 0 else 0 for i in operator.inputs[1:3])
        for operator, name in zip(graph.operators, operators_of(graph, model))
        if name in ("CONV_2D", "FULLY_CONNECTED")
    ]


def run(content):
    runner = Interpreter(model_content=content).get_signature_runner("serving_default")
    return np.concatenate([runner(image=image[None])["output"] for image in IMAGES])


def test_weights_stay_shared_and_biases_do_not(contents):
    before, after = map(pairs, contents)
    assert len(before) == len(after) == 2
    assert len({weights for weights, _ in before}) == 1
    assert len(set(before)) == 1
    assert len({weights for weights, _ in after}) == 1
    assert len(set(after)) == 2
    assert len(contents[1]) < len(contents[0]) + 400


def test_outputs_are_the_same_to_the_bit(contents):
    before, after = map(run, contents)
    np.testing.assert_array_equal(after, before)


def test_xnnpacks_weight_cache_changes_nothing(contents, tmp_path):
    filename = tmp_path / "m.tflite"
    filename.write_bytes(contents[1])
    expected = run(contents[1])
    for _ in range(2):
        (outputs,) = run_compiled(filename, IMAGES, tmp_path / "m.cache")
        np.testing.assert_array_equal(outputs.reshape(expected.shape), expected)


def test_files_without_quantised_weights_stay_as_they_are():
    inputs = {"image": tf.TensorSpec((1, SIZE, SIZE, 3))}
    for quantize in (None, "float16"):
        model = parse(convert(convolutions, inputs, quantize))
        before = pack(model)
        separate_buffers(model)
        assert pack(model) == before
