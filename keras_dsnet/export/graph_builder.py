"""Tensors and operators that are added to the graphs of a TFLite file."""

import copy

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_dsnet.export.flatbuffer import builtin_code

TensorType = schema.TensorType
Builtin = schema.BuiltinOperator
# What writes its outputs in steps of any size, so that these may be changed.
_SCALING = (Builtin.CONV_2D, Builtin.DEPTHWISE_CONV_2D, Builtin.FULLY_CONNECTED)


def add_tensor(graph, name, kind, shape):
    """Adds a tensor without values; returns its index."""
    tensor = schema.TensorT()
    tensor.name, tensor.type, tensor.shape, tensor.buffer = name.encode(), kind, list(shape), 0
    tensor.hasRank = True
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def copy_tensor(graph, tensor, name):
    """Adds a tensor of the type, shape and scale of another one; returns its index."""
    tensor = copy.deepcopy(tensor)
    tensor.name, tensor.buffer = name.encode(), 0
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def add_operator(graph, code, inputs, outputs):
    """Adds an operator at the end; returns it."""
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = code, inputs, outputs
    graph.operators.append(operator)
    return operator


def inline(graph, other, inputs):
    """Adds the tensors and operators of another graph at the end of a graph.

    Args:
        graph: a `schema.SubGraphT`.
        other: the same.
        inputs: dict from the inputs of `other` to the tensors of `graph` that take their places.

    Returns:
        Dict from the indices of tensors in `other` to those in `graph`.
    """
    places = dict(inputs)
    for index, tensor in enumerate(other.tensors):
        if index not in places:
            places[index] = len(graph.tensors)
            graph.tensors.append(tensor)
    for operator in other.operators:
        operator.inputs = [places.get(index, index) for index in operator.inputs]
        operator.outputs = [places[index] for index in operator.outputs]
        graph.operators.append(operator)
    return places


def take_quantized(graph, index, model):
    """Lets a graph take an input in int8 if all it does is to make int8 of it.

    Args:
        graph: a `schema.SubGraphT`.
        index: of the input's tensor.
        model: the file, for its operator codes.

    Returns:
        The index of the tensor that is the input now.
    """
    readers = [operator for operator in graph.operators if index in operator.inputs]
    if len(readers) == 1 and _is(readers[0], Builtin.QUANTIZE, model):
        graph.operators.remove(readers[0])
        return readers[0].outputs[0]
    return index


def give_quantized(graph, index, wanted, model, quantize):
    """Returns the index of a tensor of a graph as the next graph takes it.

    Args:
        graph: a `schema.SubGraphT`.
        index: of a float tensor; int8 ones become floats for the outside of a converted graph.
        wanted: the next graph's tensor.
        model: the file, for its operator codes.
        quantize: int: the code of an operator QUANTIZE.
    """
    if wanted.type != TensorType.INT8 or graph.tensors[index].type == TensorType.INT8:
        return index
    makers = [operator for operator in graph.operators if index in operator.outputs]
    if not makers or not _is(makers[0], Builtin.DEQUANTIZE, model):
        result = copy_tensor(graph, wanted, "quantized")
        add_operator(graph, quantize, [index], [result])
        return result
    (own,) = makers[0].inputs
    if not any(index in op.inputs for op in graph.operators):
        graph.operators.remove(makers[0])
    if _same_steps(graph.tensors[own], wanted):
        return own
    makers = [operator for operator in graph.operators if own in operator.outputs]
    readers = [operator for operator in graph.operators if own in operator.inputs]
    if makers and not readers and any(_is(makers[0], kind, model) for kind in _SCALING):
        graph.tensors[own].quantization = copy.deepcopy(wanted.quantization)
        return own
    result = copy_tensor(graph, wanted, "requantized")
    add_operator(graph, quantize, [own], [result])
    return result


def multiply_directly(graph, model, multiplication):
    """Makes a `MUL` of every depthwise convolution in float that has one tap and adds nothing.

    The numbers stay the same, and it takes less time: XNNPACK fills one tap up to three.

    Args:
        graph: a `schema.SubGraphT`.
        model: the file, for its operator codes and buffers.
        multiplication: int: the code of an operator MUL.
    """
    for operator in graph.operators:
        if _is(operator, Builtin.DEPTHWISE_CONV_2D, model) and _only_scales(operator, graph, model):
            options = schema.MulOptionsT()
            options.fusedActivationFunction = operator.builtinOptions.fusedActivationFunction
            operator.builtinOptions = options
            operator.builtinOptionsType = schema.BuiltinOptions.MulOptions
            operator.opcodeIndex, operator.inputs = multiplication, operator.inputs[:2]


def _only_scales(operator, graph, model):
    """Whether a depthwise convolution multiplies each channel with one float, and adds zero."""
    options = operator.builtinOptions
    kernel, bias = (graph.tensors[index] for index in operator.inputs[1:])
    taps = (*kernel.shape[1:3], options.strideH, options.strideW, options.depthMultiplier)
    if kernel.type != TensorType.FLOAT32 or set(map(int, taps)) != {1}:
        return False
    # Weights in float16 pass a DEQUANTIZE.
    makers = [maker for maker in graph.operators if operator.inputs[2] in maker.outputs]
    bias = graph.tensors[makers[0].inputs[0]] if makers else bias
    zeros = model.buffers[bias.buffer].data
    return zeros is not None and not np.any(zeros)


def _same_steps(tensor, other):
    """Whether two int8 tensors agree; measured on the same images, they do but for rounding."""
    own, others = tensor.quantization, other.quantization
    scale, wanted = float(own.scale[0]), float(others.scale[0])
    same_zero = int(own.zeroPoint[0]) == int(others.zeroPoint[0])
    return same_zero and abs(scale - wanted) <= 1e-3 * wanted


def _is(operator, builtin, model):
    return builtin_code(model.operatorCodes[operator.opcodeIndex]) == builtin
