"""TFLite models as objects: read, extended by graphs and operators, written."""

import copy
import dataclasses
import hashlib

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

IDENTIFIER = b"TFL3"


def parse(content):
    """Returns the bytes of a TFLite file as a `schema.ModelT`."""
    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))


def pack(model):
    """Returns a `schema.ModelT` as the bytes of a TFLite file."""
    builder = _SharingBuilder(1024)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def tensor_index(signature, name, outputs=False):
    """Returns the index of a signature's input or output tensor in its subgraph."""
    maps = signature.outputs if outputs else signature.inputs
    return next(entry.tensorIndex for entry in maps if entry.name.decode() == name)


def operators_of(graph, model):
    """Returns the names of a subgraph's operators, in order."""
    names = {
        value: name for name, value in vars(schema.BuiltinOperator).items() if name[0].isupper()
    }
    return [names[builtin_code(model.operatorCodes[op.opcodeIndex])] for op in graph.operators]


def builtin_code(code):
    """Returns the builtin operator of an operator code; old files have it in a small field."""
    return max(code.builtinCode, code.deprecatedBuiltinCode)


class _SharingBuilder(flatbuffers.Builder):
    """Writes equal vectors of numbers once, but for the contents of buffers.

    Every tensor of an int8 file has scales and zero points for each of its channels, and blocks cut
    from one kernel have many in common; quantised files of many routes shrink by a tenth. Buffers
    stay apart, since runtimes tell them apart by their addresses; see `separate_buffers`.
    """

    def __init__(self, size):
        super().__init__(size)
        self._written = {}

    def CreateNumpyVector(self, x):  # noqa: N802
        if x.dtype == np.uint8:
            return super().CreateNumpyVector(x)
        key = (x.dtype.str, np.ascontiguousarray(x).tobytes())
        if key not in self._written:
            self._written[key] = super().CreateNumpyVector(x)
        return self._written[key]


@dataclasses.dataclass
class TakenGraph:
    """A graph that was taken over, and which of its tensors its signature names.

    Args:
        graph: a `schema.SubGraphT`.
        inputs: dict from name to index.
        outputs: the same.
        features: indices of the inputs `features_0`, `features_1`, ...
        results: indices of the outputs of these names.
    """

    graph: schema.SubGraphT
    inputs: dict
    outputs: dict
    features: list
    results: list


class FileBuilder:
    """Holds the buffers, operator codes and graphs of a file; stores equal buffers once.

    Attributes:
        model: the file as a `schema.ModelT`.
    """

    def __init__(self):
        self._buffers = {}
        self._codes = {}
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.description = b"keras_dsnet"
        self.model.operatorCodes, self.model.buffers = [], [schema.BufferT()]
        self.model.subgraphs, self.model.signatureDefs = [], []
        self.model.metadata = []

    def take(self, model):
        """Takes over buffers and operator codes of a file, not yet its graphs.

        Returns:
            Dict from signature to its `TakenGraph`.
        """
        codes = [self._code(code) for code in model.operatorCodes]
        buffers = [self._taken(buffer) for buffer in model.buffers]
        taken = {}
        for signature in model.signatureDefs:
            graph = model.subgraphs[signature.subgraphIndex]
            graph.name = signature.signatureKey
            for operator in graph.operators:
                operator.opcodeIndex = codes[operator.opcodeIndex]
            for tensor in graph.tensors:
                tensor.buffer = buffers[tensor.buffer]
                # Names of steps of TensorFlow's graph, longer than all the rest of a tensor.
                tensor.name = b""
            sides = [
                {entry.name.decode(): entry.tensorIndex for entry in side}
                for side in (signature.inputs, signature.outputs)
            ]
            for names in sides:
                for name, index in names.items():
                    graph.tensors[index].name = name.encode()
            taken[graph.name.decode()] = TakenGraph(graph, *sides, *map(_numbered, sides))
        return taken

    def _taken(self, buffer):
        return 0 if buffer.data is None or len(buffer.data) == 0 else self._buffer(buffer.data)

    def _code(self, code):
        key = (builtin_code(code), code.version, code.customCode)
        if key not in self._codes:
            self._codes[key] = len(self.model.operatorCodes)
            self.model.operatorCodes.append(code)
        return self._codes[key]

    def builtin(self, name):
        """Returns the code of a builtin operator."""
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        return self._code(code)

    def _buffer(self, data):
        data = np.asarray(data, "uint8")
        key = hashlib.sha256(data.tobytes()).digest()
        if key not in self._buffers:
            self._buffers[key] = len(self.model.buffers)
            buffer = schema.BufferT()
            buffer.data = data
            self.model.buffers.append(buffer)
        return self._buffers[key]

    def set_constant(self, tensor, values):
        """Gives an int32 or bool tensor values, or one value throughout."""
        kind = {TensorType.INT32: "int32", TensorType.BOOL: "bool"}[tensor.type]
        values = np.broadcast_to(np.array(values, kind), tuple(tensor.shape))
        tensor.buffer = self._buffer(np.frombuffer(values.tobytes(), "uint8"))

    def constant(self, graph, values):
        """Adds a tensor of int32 numbers; returns its index."""
        index = add_tensor(graph, "constant", TensorType.INT32, [len(values)])
        self.set_constant(graph.tensors[index], values)
        return index

    def add_graph(self, graph):
        """Adds a graph; returns its place."""
        self.model.subgraphs.append(graph)
        return len(self.model.subgraphs) - 1

    def idle(self, graph):
        """Adds a graph of the same inputs and outputs without operators; returns its place."""
        other = schema.SubGraphT()
        other.name = graph.name + b"_not_taken"
        other.tensors, other.operators = [], []
        other.inputs, other.outputs = (
            [copy_tensor(other, graph.tensors[index], "") for index in side]
            for side in (graph.inputs, graph.outputs)
        )
        return self.add_graph(other)

    def compare(self, graph, kind, index, value):
        """Adds a comparison, "EQUAL" or "LESS", of one int32; returns the condition."""
        constant = add_tensor(graph, "place", TensorType.INT32, [])
        self.set_constant(graph.tensors[constant], value)
        condition = add_tensor(graph, "condition", TensorType.BOOL, graph.tensors[index].shape)
        options = {"EQUAL": schema.EqualOptionsT, "LESS": schema.LessOptionsT}[kind]()
        self._add(graph, kind, [index, constant], [condition], options)
        return condition

    def add_if(self, graph, condition, arguments, sides):
        """Adds an operator that calls one of two graphs; returns its outputs."""
        callee = self.model.subgraphs[sides[0]]
        outputs = [copy_tensor(graph, callee.tensors[index], "") for index in callee.outputs]
        options = schema.IfOptionsT()
        options.thenSubgraphIndex, options.elseSubgraphIndex = sides
        self._add(graph, "IF", [condition, *arguments], outputs, options)
        return outputs

    def add_tree(self, graph, arguments, places, likely=None):
        """Adds operators that call one of several graphs: a balanced tree of `IF`.

        Args:
            graph: the caller.
            arguments: indices of its tensors that all of them take; the last is the int32 number of
                the graph to call.
            places: dict from number, ascending, to the place of a graph.
            likely: number of a graph that is called without going down the tree; None: none.

        Returns:
            The indices of the outputs.
        """
        numbers = list(places)
        if likely is None:
            middle = (len(numbers) + 1) // 2
            halves = numbers[:middle], numbers[middle:] or numbers
            condition = self.compare(graph, "LESS", arguments[-1], halves[1][0])
        else:
            halves = [likely], [number for number in numbers if number != likely] or numbers
            condition = self.compare(graph, "EQUAL", arguments[-1], likely)
        sides = [
            self._branch(graph, arguments, {number: places[number] for number in half})
            for half in halves
        ]
        return self.add_if(graph, condition, arguments, sides)

    def _branch(self, caller, arguments, places):
        """Returns the place of a graph that calls one of several: that graph, or a new one."""
        if len(places) == 1:
            return next(iter(places.values()))
        graph = schema.SubGraphT()
        graph.name = caller.name + f"_from_{'_'.join(map(str, places))}".encode()
        graph.tensors, graph.operators = [], []
        graph.inputs = [copy_tensor(graph, caller.tensors[index], "") for index in arguments]
        graph.outputs = self.add_tree(graph, graph.inputs, places)
        return self.add_graph(graph)

    def concat(self, graph, indices):
        """Adds an operator that joins tensors `[1, ...]` of a shape; returns its output."""
        if len(indices) == 1:
            return indices[0]
        output = copy_tensor(graph, graph.tensors[indices[0]], "joined")
        graph.tensors[output].shape = [len(indices), *graph.tensors[output].shape[1:]]
        self._add(graph, "CONCATENATION", list(indices), [output], schema.ConcatenationOptionsT())
        return output

    def gather(self, graph, index, positions):
        """Adds an operator that takes rows of a tensor; returns its output `[positions, ...]`."""
        output = copy_tensor(graph, graph.tensors[index], "picked")
        rows = list(graph.tensors[positions].shape)
        graph.tensors[output].shape = rows + list(graph.tensors[output].shape[1:])
        self._add(graph, "GATHER", [index, positions], [output], schema.GatherOptionsT())
        return output

    def add_numbers(self, graph, first, second):
        """Adds an operator that adds two tensors of a shape; returns its output."""
        output = copy_tensor(graph, graph.tensors[first], "sum")
        self._add(graph, "ADD", [first, second], [output], schema.AddOptionsT())
        return output

    def _add(self, graph, name, inputs, outputs, options):
        operator = add_operator(graph, self.builtin(name), inputs, outputs)
        kind = type(options).__name__.removesuffix("T")
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        operator.builtinOptions = options

    def add_signature(self, key, subgraph, inputs, outputs):
        """Adds a signature; inputs and outputs are dicts from name to index."""
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = key.encode(), subgraph
        signature.inputs, signature.outputs = (
            [_named(name, index) for name, index in side.items()] for side in (inputs, outputs)
        )
        self.model.signatureDefs.append(signature)


def _numbered(names):
    count = sum(name.startswith("features") for name in names)
    return [names[f"features_{index}"] for index in range(count)]


def _named(name, index):
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name.encode(), index
    return entry


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
