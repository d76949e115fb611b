"""Buffers of quantised files, such that XNNPACK's weight cache tells the operators apart."""

import copy

from ai_edge_litert import schema_py_generated as schema

from keras_dsnet.export.flatbuffer import builtin_code

_PACKED = (
    schema.BuiltinOperator.CONV_2D,
    schema.BuiltinOperator.DEPTHWISE_CONV_2D,
    schema.BuiltinOperator.FULLY_CONNECTED,
    schema.BuiltinOperator.TRANSPOSE_CONV,
    schema.BuiltinOperator.BATCH_MATMUL,
)
_QUANTIZED = (schema.TensorType.INT8, schema.TensorType.UINT8, schema.TensorType.INT4)


def separate_buffers(model):
    """Gives operators of quantised weights buffers that identify what XNNPACK packs of them.

    XNNPACK packs weights, bias and scales of an operator together, and its weight cache knows what
    it has packed by the buffers of weights and bias only. Operators that share both buffers but not
    the scales would get the values of the one that was packed first. Each of them gets a buffer of
    its own here: of its bias, which is small, or of its weights where it has no constant bias.
    Operators on floats are left as they are: their buffers say all that is packed.

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
            bias = _bias(graph, model, operator)
            pair = weights.buffer, bias.buffer if bias is not None else 0
            packed = code, *_scales(graph, operator)
            if owners.setdefault(pair, packed) == packed:
                continue
            if (pair, packed) not in copies:
                copies[pair, packed] = _copy(model, pair[1] or pair[0])
            # Tensors of one graph that share a buffer may serve several operators.
            _replace(graph, operator, 1 if bias is None else 2, copies[pair, packed])


def _bias(graph, model, operator):
    """Returns the constant bias of an operator, or None."""
    if len(operator.inputs) < 3 or operator.inputs[2] < 0:
        return None
    bias = graph.tensors[operator.inputs[2]]
    return bias if _is_constant(model, bias) else None


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


def _copy(model, buffer):
    added = schema.BufferT()
    added.data = model.buffers[buffer].data
    model.buffers.append(added)
    return len(model.buffers) - 1


def _replace(graph, operator, place, buffer):
    """Gives an operator's input a tensor that is the same, of another buffer."""
    index = operator.inputs[place]
    users = sum(list(other.inputs).count(index) for other in graph.operators)
    if users > 1:
        graph.tensors.append(copy.copy(graph.tensors[index]))
        index = len(graph.tensors) - 1
        operator.inputs = [*operator.inputs]
        operator.inputs[place] = index
    graph.tensors[index].buffer = buffer
