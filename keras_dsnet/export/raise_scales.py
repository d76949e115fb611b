"""Mends the scales that an int8 conversion gives to activations that are always zero."""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_dsnet.export.flatbuffer import builtin_code, pack, parse

# An activation within 127 such steps of zero tells nothing in int8 beside a bias of ordinary size.
LEAST_SCALE = 1e-5
_WITH_BIAS = (
    schema.BuiltinOperator.CONV_2D,
    schema.BuiltinOperator.DEPTHWISE_CONV_2D,
    schema.BuiltinOperator.FULLY_CONNECTED,
)


def raise_scales(content):
    """Returns an int8 TFLite file whose activations have a scale of at least 1e-5.

    Where no image of the measurement makes a unit other than zero, the converter takes a scale near
    1e-8, and the next layer's bias, in units of that scale, goes beyond what XNNPACK takes: it
    refuses the graph, and ends the process on the way out.

    Args:
        content: bytes of the file.
    """
    model = parse(content)
    changed = False
    for graph in model.subgraphs:
        low = {
            index
            for index, tensor in enumerate(graph.tensors)
            if _is_activation(tensor, model) and tensor.quantization.scale[0] < LEAST_SCALE
        }
        for index in low:
            scale = np.array([LEAST_SCALE], "float32")
            graph.tensors[index].quantization.scale = scale
        for operator in graph.operators:
            if operator.inputs[0] in low and _kind(operator, model) in _WITH_BIAS:
                _requantize_bias(graph, operator, model)
        changed |= bool(low)
    return pack(model) if changed else content


def _is_activation(tensor, model):
    own = tensor.quantization
    if tensor.type != schema.TensorType.INT8 or own is None or own.scale is None:
        return False
    data = model.buffers[tensor.buffer].data
    return len(own.scale) == 1 and (data is None or len(data) == 0)


def _kind(operator, model):
    return builtin_code(model.operatorCodes[operator.opcodeIndex])


def _requantize_bias(graph, operator, model):
    """Writes a bias in units of the input's new scale times those of the kernel."""
    if len(operator.inputs) < 3 or operator.inputs[2] < 0:
        return
    kernel, bias = (graph.tensors[index] for index in operator.inputs[1:3])
    steps = np.asarray(model.buffers[bias.buffer].data, "uint8").view("<i4")
    values = steps * np.asarray(bias.quantization.scale, "float64")
    scales = np.asarray(kernel.quantization.scale, "float64") * LEAST_SCALE
    limit = np.iinfo("int32").max
    new = np.clip(np.rint(values / scales), -limit, limit).astype("<i4")
    # A new buffer: another operator may use the old one.
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(new.tobytes(), "uint8")
    bias.buffer = len(model.buffers)
    bias.quantization.scale = scales.astype("float32")
    model.buffers.append(buffer)
