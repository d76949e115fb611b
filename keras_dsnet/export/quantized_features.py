"""Int8 features that the graphs of a file pass to each other."""

import copy

from keras_dsnet.export.graphs import RoutedGraphs
from keras_dsnet.export.tflite_model import (
    Builtin,
    ModelBuilder,
    TensorType,
    add_operator,
    copy_tensor,
    is_operator,
)

# These operators write their outputs with any scale, so the scale may be changed.
_RESCALING = (Builtin.CONV_2D, Builtin.DEPTHWISE_CONV_2D, Builtin.FULLY_CONNECTED)


def connect_quantized(builder: ModelBuilder, graphs: RoutedGraphs) -> None:
    """Makes graphs pass int8 features to each other without conversions to float.

    The converter gives every graph float inputs and outputs: it adds a `QUANTIZE` after each input
    and a `DEQUANTIZE` before each output. Its option for int8 inputs and outputs would apply to the
    image, the scores and the output, too.
    """
    for part in graphs.running():
        if "features" in part.inputs:
            features = part.inputs["features"]
            part.inputs["features"] = [_skip_quantize(builder, part.graph, i) for i in features]
    for producer, (consumer, *others) in graphs.consumers():
        wanted = [consumer.graph.tensors[index] for index in consumer.inputs["features"]]
        for other in others:
            other.inputs["features"] = [
                _requantize_input(builder, other.graph, index, tensor)
                for index, tensor in zip(other.inputs["features"], wanted)
            ]
        producer.outputs["features"] = [
            _quantize_output(builder, producer.graph, index, tensor)
            for index, tensor in zip(producer.outputs["features"], wanted)
        ]


def _skip_quantize(builder, graph, index):
    """Removes the `QUANTIZE` after an input if only it reads the input; returns the new input."""
    readers = [operator for operator in graph.operators if index in operator.inputs]
    if len(readers) == 1 and is_operator(readers[0], Builtin.QUANTIZE, builder.model):
        graph.operators.remove(readers[0])
        return readers[0].outputs[0]
    return index


def _requantize_input(builder, graph, index, wanted):
    """Returns the index of an input that has the type and scale of another graph's input."""
    tensor = graph.tensors[index]
    types = wanted.type, tensor.type
    if types == (TensorType.INT8, TensorType.INT8) and not _is_same_quantization(tensor, wanted):
        result = copy_tensor(graph, wanted, "requantized")
        add_operator(graph, builder.builtin("QUANTIZE"), [result], [index])
        graph.operators.insert(0, graph.operators.pop())
        return result
    return index


def _quantize_output(builder, graph, index, wanted):
    """Returns the index of an output as the next graph takes it.

    Args:
        builder: `ModelBuilder`.
        graph: `schema.SubGraphT`. It is changed.
        index: Tensor index of an output of the graph, in float.
        wanted: `schema.TensorT`, the input of the next graph.
    """
    if wanted.type != TensorType.INT8 or graph.tensors[index].type == TensorType.INT8:
        return index
    quantize = builder.builtin("QUANTIZE")
    makers = [operator for operator in graph.operators if index in operator.outputs]
    if not makers or not is_operator(makers[0], Builtin.DEQUANTIZE, builder.model):
        result = copy_tensor(graph, wanted, "quantized")
        add_operator(graph, quantize, [index], [result])
        return result
    (int8_output,) = makers[0].inputs
    if not any(index in op.inputs for op in graph.operators):
        graph.operators.remove(makers[0])
    if _is_same_quantization(graph.tensors[int8_output], wanted):
        return int8_output
    makers = [operator for operator in graph.operators if int8_output in operator.outputs]
    readers = [operator for operator in graph.operators if int8_output in operator.inputs]
    rescales = any(
        is_operator(maker, kind, builder.model) for maker in makers for kind in _RESCALING
    )
    if rescales and not readers:
        graph.tensors[int8_output].quantization = copy.deepcopy(wanted.quantization)
        return int8_output
    result = copy_tensor(graph, wanted, "requantized")
    add_operator(graph, quantize, [int8_output], [result])
    return result


def _is_same_quantization(tensor, other):
    """Returns whether two int8 tensors have one zero point and, but for rounding, one scale."""
    scale, wanted = (float(each.quantization.scale[0]) for each in (tensor, other))
    zero, wanted_zero = (int(each.quantization.zeroPoint[0]) for each in (tensor, other))
    return zero == wanted_zero and abs(scale - wanted) <= 1e-3 * wanted
