"""A file that is put together by hand: which graph a tree of operators calls, and how directly."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from keras_dsnet.export.tflite_model import (
    FileBuilder,
    TensorType,
    add_operator,
    add_tensor,
    operators_of,
    pack,
)


def empty_graph(name):
    graph = schema.SubGraphT()
    graph.name = name.encode()
    graph.tensors, graph.operators = [], []
    return graph


def adding(builder, value):
    """Adds a graph of `x` and a number that returns `x + value`; returns its place."""
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
    return builder.add_graph(graph)


def built(numbers, likely):
    """Returns a file whose signature calls, by number, one of as many graphs, and its model."""
    builder, main = FileBuilder(), empty_graph("main")
    builder.add_graph(main)
    places = {number: adding(builder, 10 * number) for number in numbers}
    main.inputs = [
        add_tensor(main, name, TensorType.INT32, shape) for name, shape in (("x", [2]), ("n", []))
    ]
    main.outputs = builder.add_tree(main, main.inputs, places, likely)
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
        # The others are two levels below, not three.
        below = model.subgraphs[options.elseSubgraphIndex]
        assert operators_of(below, model) == ["LESS", "IF"]
