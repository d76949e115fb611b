"""Buffers of quantised files, such that XNNPACK's weight cache tells the operators apart."""

import copy

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_dsnet.export.flatbuffer import builtin_code
from keras_dsnet.export.graph_builder import add_tensor

_PACKED = (
    schema.BuiltinOperator.CONV_2D,
    schema.BuiltinOperator.DEPTHWISE_CONV_2D,
    schema.BuiltinOperator.FULLY_CONNECTED,
)
_QUANTIZED = (schema.TensorType.INT8, schema.TensorType.UINT8, schema.TensorType.INT4)


def separate_buffers(model):
    """Gives operators of quantised weights buffers that identify what XNNPACK packs of them.

    XNNPACK packs weights, bias and scales of an operator together, and its weight cache knows what
    it has packed by the buffers of weights and bias only. Operators that share both buffers but not
    the scales would get the values of the one that was packed first. Each of them gets a buffer of
    its own here: of its bias, which is small. One without a bias gets a bias of zeros. Operators on
    floats are left as they are: their buffers say all that is packed.

    Args:
        model: a `schema.ModelT`, which is changed.
    """
    owners, copies = {}, {}
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = builtin_code(model.operatorCodes[operator.opcodeIndex])
            if code not in _PACKED or len(operator.inputs) < 2:
                continue
            weights = graph.tensors[operator.inputs[1]]
            if weights.type not in _QUANTIZED or not _is_constant(model, weights):
                continue
            bias = _bias(graph, operator)
            if bias is not None and not _is_constant(model, bias):
                continue
            pair = weights.buffer, bias.buffer if bias is not None else 0
            packed = code, *_scales(graph, operator)
            if owners.setdefault(pair, packed) == packed:
                continue
            if (pair, packed) not in copies:
                zeros = np.zeros(4 * _channels(weights, code), "uint8")
                data = zeros if bias is None else model.buffers[bias.buffer].data
                copies[pair, packed] = _add_buffer(model, data)
            if bias is None:
                operator.inputs = [*operator.inputs[:2], _zero_bias(graph, operator, code)]
            _replace_bias(graph, operator, copies[pair, packed])


def _bias(graph, operator):
    """Returns the tensor of an operator's bias, or None."""
    has_bias = len(operator.inputs) > 2 and operator.inputs[2] >= 0
    return graph.tensors[operator.inputs[2]] if has_bias else None


def _is_constant(model, tensor):
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def _scales(graph, operator):
    """Returns what an operator's packed weights depend on beside weights and bias."""
    tensors = [graph.tensors[index] for index in (*operator.inputs[:2], operator.outputs[0])]
    steps = []
    for tensor in tensors:
        own = tensor.quantization
        scale = () if own is None or own.scale is None else tuple(map(float, own.scale))
        zero = () if own is None or own.zeroPoint is None else tuple(map(int, own.zeroPoint))
        steps.append((tensor.type, scale, zero))
    return (tuple(map(int, tensors[1].shape)), *steps)


def _add_buffer(model, data):
    buffer = schema.BufferT()
    buffer.data = data
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def _channels(weights, code):
    """Returns how many values a bias has; zeros are the same bytes in int32 and float32."""
    return int(weights.shape[-1 if code == schema.BuiltinOperator.DEPTHWISE_CONV_2D else 0])


def _zero_bias(graph, operator, code):
    """Adds the tensor of a bias; returns its index."""
    features, weights = (graph.tensors[index] for index in operator.inputs[:2])
    is_float = features.type == schema.TensorType.FLOAT32
    kind = schema.TensorType.FLOAT32 if is_float else schema.TensorType.INT32
    index = add_tensor(graph, "bias", kind, [_channels(weights, code)])
    if not is_float:
        steps = schema.QuantizationParametersT()
        scale = np.asarray(features.quantization.scale) * np.asarray(weights.quantization.scale)
        steps.scale, steps.zeroPoint = scale.astype("float32"), np.zeros(len(scale), "int64")
        graph.tensors[index].quantization = steps
    return index


def _replace_bias(graph, operator, buffer):
    """Gives an operator a bias that is the same, of another buffer."""
    index = operator.inputs[2]
    # Its tensor may be that of other operators too.
    if sum(list(other.inputs).count(index) for other in graph.operators) > 1:
        graph.tensors.append(copy.copy(graph.tensors[index]))
        index = len(graph.tensors) - 1
        operator.inputs = [*operator.inputs[:2], index]
    graph.tensors[index].buffer = buffer
