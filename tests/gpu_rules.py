"""Rules of TensorFlow Lite's GPU delegate for the operators of our files.

`tf.lite.experimental.Analyzer` of TensorFlow 2.21 calls every file compatible, even one with `IF`
or `FLOOR_MOD`, so tests need rules of their own. They follow `gpu_compatibility.cc` of TensorFlow
(tensorflow/lite/tools/versioning) and cover float files only.
"""

from keras_dsnet.export.tflite_model import TensorType, operators_of

ELEMENTWISE = {"ADD", "MUL", "SUB", "SQUARED_DIFFERENCE", "MAXIMUM"}
OPERATORS = ELEMENTWISE | {
    "CONCATENATION",
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "FULLY_CONNECTED",
    "LOGISTIC",
    "MAX_POOL_2D",
    "MEAN",
    "PAD",
    "RESHAPE",
    "RSQRT",
    "SOFTMAX",
    "STRIDED_SLICE",
    "TANH",
}


def violations(model):
    """Returns a line for each operator that breaks a rule, of all subgraphs of a model."""
    found = []
    for graph in model.subgraphs:
        for name, operator in zip(operators_of(graph, model), graph.operators):
            inputs = [graph.tensors[index] for index in operator.inputs if index >= 0]
            outputs = [graph.tensors[index] for index in operator.outputs]
            for problem in _problems(name, operator.builtinOptions, inputs, outputs, model):
                found.append(f"{graph.name.decode()}: {name} {problem}")
    return found


def _problems(name, options, inputs, outputs, model):
    if name not in OPERATORS:
        yield "is not supported"
        return
    shapes = [tuple(map(int, tensor.shape)) for tensor in inputs]
    for tensor in outputs:
        if tensor.type != TensorType.FLOAT32:
            yield f"gives type {tensor.type}"
        if min(tensor.shape) < 1 or tensor.shapeSignature is not None:
            yield "has a dynamic shape"
        if len(tensor.shape) > 4 or tensor.shape[0] != 1:
            yield f"gives the shape {list(tensor.shape)}"
    if name == "STRIDED_SLICE":
        if len(shapes[0]) not in (3, 4):
            yield f"slices {len(shapes[0])} axes"
        if options.ellipsisMask or options.newAxisMask or options.shrinkAxisMask:
            yield "has a mask"
    if name in ELEMENTWISE and min(map(len, shapes)) > 1:
        first, second = shapes
        if len(first) != len(second):
            yield f"broadcasts {first} and {second}"
        elif any(a < b for a, b in zip(first, second)) and any(a > b for a, b in zip(*shapes)):
            yield f"broadcasts both of {first} and {second}"
    if name == "PAD" and shapes[1] != (4, 2):
        yield f"pads {shapes[1][0]} axes"
    if name in ("MEAN", "PAD", "RESHAPE", "STRIDED_SLICE"):
        buffers = [model.buffers[tensor.buffer].data for tensor in inputs[1:]]
        if any(data is None or len(data) == 0 for data in buffers):
            yield "computes its arguments"
