"""Puts the parts of a routed network together into one TFLite file."""

import copy
import hashlib
import json

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_dsnet.export.dynamic_interpreter import METADATA_NAME
from keras_dsnet.export.flatbuffer import builtin_code, pack, parse, tensor_index

BOUNDED = "bounded"
SERVING = "serving_default"
TensorType = schema.TensorType


class RoutedFile:
    """A TFLite file that runs one of several branches behind a front.

    Each part was converted by itself, as a file of one signature. Here the front becomes the main
    graph, the others graphs that nested `IF` operators call: a balanced tree over the place of the
    chosen route, so that few operators stand before any branch. Constants of equal content are
    stored once, whichever parts they come from.

    Args:
        front: bytes of a file with the signature "bounded": `image`, `min_width`, `max_width` to
            `features`, `path` and `position`, the int32 place of the chosen route.
        branches: list of bytes: for each route a file from `features` to `output`.
        widest: int: the widest width of the network, for the bounds that bind nothing.
        metadata: what the file says of itself, for JSON.
    """

    def __init__(self, front, branches, widest, metadata):
        self._buffers = {}
        self._codes = {}
        self._model = schema.ModelT()
        self._model.version = 3
        self._model.description = b"keras_dsnet"
        self._model.operatorCodes, self._model.buffers = [], [schema.BufferT()]
        self._model.subgraphs, self._model.signatureDefs = [], []
        self._model.metadata = []
        self._widest = widest
        self._build(front, branches)
        self._add_metadata(METADATA_NAME, json.dumps(metadata).encode())

    @property
    def model(self):
        """The file as a `schema.ModelT`."""
        return self._model

    def content(self):
        """Returns the bytes of the file."""
        return pack(self._model)

    def _build(self, front, branches):
        main, signature = self._take(front, "bounded")
        features, position = (
            tensor_index(signature, name, outputs=True) for name in ("features", "position")
        )
        features = _strip_dequantize(main, features, self._model)
        graphs = []
        for index, branch in enumerate(branches):
            graph, own = self._take(branch, f"route_{index}")
            _strip_quantize(graph, main.tensors[features], self._model)
            graph.inputs = [graph.inputs[0], _add_tensor(graph, "position", TensorType.INT32, [])]
            graph.outputs = [tensor_index(own, "output", outputs=True)]
            graphs.append(graph)
        # Subgraph 0 is what an interpreter runs that asks for no signature.
        self._model.subgraphs = [None, main, *graphs]
        output = self._branch(main, features, position, 2, len(graphs), graphs[0])
        path = tensor_index(signature, "path", outputs=True)
        main.outputs = [output, path]
        serving = self._unbounded(main, signature)
        self._model.subgraphs[0] = serving
        names = ["image", "min_width", "max_width"]
        inputs = [tensor_index(signature, name) for name in names]
        for index, (key, count) in enumerate(((SERVING, 1), (BOUNDED, 3))):
            self._add_signature(key, index, dict(zip(names[:count], inputs)), (output, path))

    def _take(self, content, name):
        """Adds the buffers and operator codes of a file; returns its graph and its signature."""
        part = parse(content)
        (graph,), (signature,) = part.subgraphs, part.signatureDefs
        codes = [self._code(code) for code in part.operatorCodes]
        for operator in graph.operators:
            operator.opcodeIndex = codes[operator.opcodeIndex]
        for tensor in graph.tensors:
            data = part.buffers[tensor.buffer].data
            tensor.buffer = 0 if data is None or len(data) == 0 else self._buffer(data)
        ends = {entry.tensorIndex for entry in (*signature.inputs, *signature.outputs)}
        for index, tensor in enumerate(graph.tensors):
            if index not in ends:
                # Names of steps of TensorFlow's graph, longer than all the rest of a tensor.
                tensor.name = b""
        graph.name = name.encode()
        return graph, signature

    def _code(self, code):
        key = (builtin_code(code), code.version, code.customCode)
        if key not in self._codes:
            self._codes[key] = len(self._model.operatorCodes)
            self._model.operatorCodes.append(code)
        return self._codes[key]

    def _builtin(self, builtin):
        code = schema.OperatorCodeT()
        code.builtinCode = builtin
        code.deprecatedBuiltinCode = min(builtin, 127)
        return self._code(code)

    def _buffer(self, data):
        data = np.asarray(data, "uint8")
        key = hashlib.sha256(data.tobytes()).digest()
        if key not in self._buffers:
            self._buffers[key] = len(self._model.buffers)
            buffer = schema.BufferT()
            buffer.data = data
            self._model.buffers.append(buffer)
        return self._buffers[key]

    def _constant(self, graph, name, values):
        values = np.asarray(values, "int32")
        index = _add_tensor(graph, name, TensorType.INT32, list(values.shape))
        graph.tensors[index].buffer = self._buffer(np.frombuffer(values.tobytes(), "uint8"))
        return index

    def _branch(self, graph, features, position, first, count, like):
        """Adds the operators to `graph` that run one of `count` branches; returns the output.

        Args:
            graph: the caller.
            features: index of its features.
            position: index of its int32 place of the chosen route.
            first: index of the first branch's subgraph; they follow each other.
            count: int.
            like: a branch, for the type of the output.
        """
        output = _copy_tensor(graph, like, like.outputs[0], "output")
        middle = (count + 1) // 2
        place = first - 2
        condition = _add_tensor(graph, "is_before", TensorType.BOOL, [])
        limit = self._constant(graph, "limit", place + middle)
        operator = _add_operator(graph, self._builtin(schema.BuiltinOperator.LESS))
        operator.inputs, operator.outputs = [position, limit], [condition]
        operator.builtinOptionsType = schema.BuiltinOptions.LessOptions
        operator.builtinOptions = schema.LessOptionsT()
        sides = ((first, middle), (first + middle, count - middle))
        options = schema.IfOptionsT()
        options.thenSubgraphIndex, options.elseSubgraphIndex = (
            self._inner(graph, features, *(side if side[1] else sides[0]), like) for side in sides
        )
        operator = _add_operator(graph, self._builtin(schema.BuiltinOperator.IF))
        operator.inputs, operator.outputs = [condition, features, position], [output]
        operator.builtinOptionsType = schema.BuiltinOptions.IfOptions
        operator.builtinOptions = options
        return output

    def _inner(self, caller, features, first, count, like):
        """Returns the subgraph that runs one of `count` branches: the branch, or a new node."""
        if count == 1:
            return first
        graph = schema.SubGraphT()
        graph.name = f"routes_{first - 2}_to_{first + count - 3}".encode()
        graph.tensors, graph.operators = [], []
        own = _copy_tensor(graph, caller, features, "features")
        position = _add_tensor(graph, "position", TensorType.INT32, [])
        graph.inputs = [own, position]
        self._model.subgraphs.append(graph)
        index = len(self._model.subgraphs) - 1
        graph.outputs = [self._branch(graph, own, position, first, count, like)]
        return index

    def _unbounded(self, main, signature):
        """Returns a copy of the main graph in which the bounds are constants that bind nothing."""
        graph = copy.deepcopy(main)
        graph.name = SERVING.encode()
        for name, width in (("min_width", 0), ("max_width", self._widest)):
            tensor = graph.tensors[tensor_index(signature, name)]
            values = np.full(tensor.shape, width, "int32")
            tensor.buffer = self._buffer(np.frombuffer(values.tobytes(), "uint8"))
        graph.inputs = [tensor_index(signature, "image")]
        return graph

    def _add_signature(self, key, subgraph, inputs, outputs):
        signature = schema.SignatureDefT()
        signature.signatureKey = key.encode()
        signature.subgraphIndex = subgraph
        signature.inputs = [_named(name, index) for name, index in inputs.items()]
        signature.outputs = [_named(n, index) for n, index in zip(("output", "path"), outputs)]
        self._model.signatureDefs.append(signature)

    def _add_metadata(self, name, data):
        entry = schema.MetadataT()
        entry.name = name
        entry.buffer = self._buffer(np.frombuffer(data, "uint8"))
        self._model.metadata.append(entry)


def _named(name, index):
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name.encode(), index
    return entry


def _add_tensor(graph, name, kind, shape):
    tensor = schema.TensorT()
    tensor.name, tensor.type, tensor.shape, tensor.buffer = name.encode(), kind, shape, 0
    tensor.hasRank = True
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _copy_tensor(graph, source, index, name):
    tensor = copy.deepcopy(source.tensors[index])
    tensor.name, tensor.buffer = name.encode(), 0
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _add_operator(graph, code):
    operator = schema.OperatorT()
    operator.opcodeIndex = code
    graph.operators.append(operator)
    return operator


def _is(operator, builtin, model):
    return builtin_code(model.operatorCodes[operator.opcodeIndex]) == builtin


def _strip_dequantize(graph, output, model):
    """Removes the operator that turns int8 features into floats, if there is one.

    Returns:
        The index of the features.
    """
    for operator in graph.operators:
        if output in operator.outputs and _is(operator, schema.BuiltinOperator.DEQUANTIZE, model):
            graph.operators.remove(operator)
            return operator.inputs[0]
    return output


def _strip_quantize(graph, features, model):
    """Lets a branch take int8 features as they come, if the front makes int8.

    The branch's scale of the features was measured on the same images as the front's; they differ
    by float rounding.

    Raises:
        ValueError: if they do not.
    """
    if features.type != TensorType.INT8:
        return
    (operator,) = [op for op in graph.operators if graph.inputs[0] in op.inputs]
    own = graph.tensors[operator.outputs[0]].quantization
    scales, zeros = (
        [float(side[0]) for side in (own_side, features_side)]
        for own_side, features_side in (
            (own.scale, features.quantization.scale),
            (own.zeroPoint, features.quantization.zeroPoint),
        )
    )
    same_scale = abs(scales[0] - scales[1]) <= 1e-3 * abs(scales[1])
    if not _is(operator, schema.BuiltinOperator.QUANTIZE, model) or not (
        same_scale and zeros[0] == zeros[1]
    ):
        raise ValueError(
            f"A branch takes features of int8 scale {scales[0]} and zero point {zeros[0]}; the "
            f"front gives {scales[1]} and {zeros[1]}"
        )
    graph.operators.remove(operator)
    graph.inputs = [operator.outputs[0]]
