"""Puts the parts of a routed network together into one TFLite file."""

import copy
import hashlib
import json

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_dsnet.export.dynamic_interpreter import METADATA_NAME
from keras_dsnet.export.flatbuffer import builtin_code, pack, parse, tensor_index
from keras_dsnet.export.graph_builder import (
    Builtin,
    TensorType,
    add_operator,
    add_tensor,
    copy_tensor,
    give_quantized,
    take_quantized,
)

BOUNDED = "bounded"
SERVING = "serving_default"
# What goes from gate to gate.
STATE = ("min_width", "max_width", "path")


class RoutedFile:
    """A TFLite file whose graphs call one another along the path that the gates choose.

    Each part was converted as a graph with a signature of its own. Here the front becomes the main
    graph, the others graphs that nested `IF` operators call at the end of the part before them: a
    balanced tree over the place of the chosen route, so that few operators stand before any of
    them. The outputs come back through the calls, so no tensor has the shape of the widest route.
    An `IF` hands its tensors on without a copy. Constants of equal content are stored once,
    whichever parts they come from.

    Args:
        parts: list of `RoutedPart`, the front first and each before those that may follow it.
        contents: list of bytes: the files that `convert_parts` makes of them.
        widest: int: the widest width of the network, for the bounds that bind nothing.
        metadata: what the file says of itself, for JSON.
    """

    def __init__(self, parts, contents, widest, metadata):
        self._buffers = {}
        self._codes = {}
        self._model = schema.ModelT()
        self._model.version = 3
        self._model.description = b"keras_dsnet"
        self._model.operatorCodes, self._model.buffers = [], [schema.BufferT()]
        self._model.subgraphs, self._model.signatureDefs = [], []
        self._model.metadata = []
        self._build(parts, contents, widest)
        self._add_metadata(METADATA_NAME, json.dumps(metadata).encode())

    @property
    def model(self):
        """The file as a `schema.ModelT`."""
        return self._model

    def content(self):
        """Returns the bytes of the file."""
        return pack(self._model)

    def _build(self, parts, contents, widest):
        found = {}
        for content in contents:
            found |= self._take(parse(content))
        taken = [found[part.name] for part in parts]
        # Subgraph 0 is what an interpreter runs that asks for no signature.
        self._model.subgraphs = [None, *(graph for graph, _ in taken)]
        self._places = {part.name: place for place, part in enumerate(parts, start=1)}
        for part, (graph, signature) in zip(parts[1:], taken[1:]):
            self._set_inputs(graph, signature, part.section, parts[-1].section)
        # Those that are called first: a call needs to know what it gives.
        for part, (graph, signature) in reversed(list(zip(parts, taken))):
            self._set_outputs(part, graph, signature)
        main, signature = taken[0]
        serving = copy.deepcopy(main)
        serving.name = SERVING.encode()
        inputs = [tensor_index(signature, name) for name in ("image", *STATE[:2])]
        for index, width in zip(inputs[1:], (0, widest)):
            self._set_constant(serving.tensors[index], width)
        serving.inputs = inputs[:1]
        self._model.subgraphs[0] = serving
        names = dict(zip(("image", *STATE[:2]), inputs))
        self._add_signature(SERVING, 0, {"image": inputs[0]}, main.outputs)
        self._add_signature(BOUNDED, 1, names, main.outputs)

    def _set_inputs(self, graph, signature, section, gates):
        """Gives a graph the inputs of all: features, the chosen place, and what gates need."""
        own = {entry.name.decode(): entry.tensorIndex for entry in signature.inputs}
        count = sum(name.startswith("features") for name in own)
        features = [own[f"features_{index}"] for index in range(count)]
        features = [take_quantized(graph, index, self._model) for index in features]
        graph.inputs = [*features, add_tensor(graph, "position", TensorType.INT32, [])]
        if section < gates:
            # The layers before a gate hand on what they do not read.
            graph.inputs += [
                own[name] if name in own else add_tensor(graph, name, TensorType.INT32, [size])
                for name, size in zip(STATE, (gates, gates, section))
            ]

    def _set_outputs(self, part, graph, signature):
        """Lets a graph end with the call of what follows."""
        own = {entry.name.decode(): entry.tensorIndex for entry in signature.outputs}
        if not part.next:
            graph.outputs = [own["output"]]
            return
        first = self._places[part.next[0]]
        callee = self._model.subgraphs[first]
        count = sum(name.startswith("features") for name in own)
        features = [
            give_quantized(
                graph,
                own[f"features_{index}"],
                callee.tensors[callee.inputs[index]],
                self._model,
                self._builtin(Builtin.QUANTIZE),
            )
            for index in range(count)
        ]
        goes_on = len(callee.inputs) > count + 1
        if part.gate is None:
            arguments = [*features, *graph.inputs[-4 if goes_on else -1 :]]
            graph.outputs = self._call(graph, arguments, first)
            return
        bounds = [tensor_index(signature, name) for name in STATE[:2]]
        arguments = [*features, own["position"], *([*bounds, own["path"]] if goes_on else [])]
        position = len(features)
        graph.outputs = self._branch(graph, arguments, position, (first, 0, len(part.next)))
        if not goes_on:
            graph.outputs.append(own["path"])

    def _take(self, model):
        """Takes over buffers and operator codes; returns graph and signature of each part."""
        codes = [self._code(code) for code in model.operatorCodes]
        buffers = [self._taken(buffer) for buffer in model.buffers]
        taken = {}
        for signature in model.signatureDefs:
            graph = model.subgraphs[signature.subgraphIndex]
            graph.name = signature.signatureKey
            for operator in graph.operators:
                operator.opcodeIndex = codes[operator.opcodeIndex]
            ends = {entry.tensorIndex for entry in (*signature.inputs, *signature.outputs)}
            for index, tensor in enumerate(graph.tensors):
                tensor.buffer = buffers[tensor.buffer]
                if index not in ends:
                    # Names of steps of TensorFlow's graph, longer than all the rest of a tensor.
                    tensor.name = b""
            taken[graph.name.decode()] = graph, signature
        return taken

    def _taken(self, buffer):
        return 0 if buffer.data is None or len(buffer.data) == 0 else self._buffer(buffer.data)

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

    def _set_constant(self, tensor, value):
        kind = "bool" if tensor.type == TensorType.BOOL else "int32"
        values = np.full(tensor.shape, value, kind)
        tensor.buffer = self._buffer(np.frombuffer(values.tobytes(), "uint8"))

    def _constant(self, graph, name, kind, value):
        index = add_tensor(graph, name, kind, [])
        self._set_constant(graph.tensors[index], value)
        return index

    def _branch(self, graph, arguments, position, branches):
        """Adds the operators to `graph` that call one of several branches.

        Args:
            graph: the caller.
            arguments: indices of its tensors that a branch takes.
            position: int: which of them is the int32 place of the chosen route.
            branches: `(subgraph, place, count)`: of the first; they follow each other.

        Returns:
            The indices of the branch's outputs.
        """
        first, place, count = branches
        middle = (count + 1) // 2
        condition = add_tensor(graph, "is_before", TensorType.BOOL, [])
        limit = self._constant(graph, "limit", TensorType.INT32, place + middle)
        operator = add_operator(
            graph, self._builtin(Builtin.LESS), [arguments[position], limit], [condition]
        )
        operator.builtinOptionsType = schema.BuiltinOptions.LessOptions
        operator.builtinOptions = schema.LessOptionsT()
        before = (first, place, middle)
        after = (first + middle, place + middle, count - middle)
        sides = before, after if after[2] else before
        inner = [self._inner(graph, arguments, position, side) for side in sides]
        return self._if(graph, condition, arguments, inner)

    def _inner(self, caller, arguments, position, branches):
        """Returns the subgraph that runs one of several branches: the branch, or a new node."""
        first, place, count = branches
        if count == 1:
            return first
        graph = schema.SubGraphT()
        graph.name = f"{caller.name.decode()}_routes_{place}_to_{place + count - 1}".encode()
        graph.tensors, graph.operators = [], []
        graph.inputs = [copy_tensor(graph, caller.tensors[i], f"input_{i}") for i in arguments]
        self._model.subgraphs.append(graph)
        index = len(self._model.subgraphs) - 1
        graph.outputs = self._branch(graph, graph.inputs, position, branches)
        return index

    def _call(self, graph, arguments, callee):
        """Adds the operators that call one subgraph: TFLite has none but `IF` for it."""
        always = self._constant(graph, "always", TensorType.BOOL, True)
        return self._if(graph, always, arguments, [callee, callee])

    def _if(self, graph, condition, arguments, sides):
        callee = self._model.subgraphs[sides[0]]
        outputs = [
            copy_tensor(graph, callee.tensors[index], f"output_{place}")
            for place, index in enumerate(callee.outputs)
        ]
        code = self._builtin(Builtin.IF)
        operator = add_operator(graph, code, [condition, *arguments], outputs)
        operator.builtinOptionsType = schema.BuiltinOptions.IfOptions
        operator.builtinOptions = schema.IfOptionsT()
        operator.builtinOptions.thenSubgraphIndex, operator.builtinOptions.elseSubgraphIndex = sides
        return list(outputs)

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
