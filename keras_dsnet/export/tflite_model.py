"""TFLite models as Python objects.

A file is parsed into a `schema.ModelT`, changed or built from parts of others by a `ModelBuilder`,
and packed again. Subgraphs, tensors, buffers and operator codes are referred to by their indices,
as in the file.
"""

import copy
import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

TensorType = schema.TensorType
Builtin = schema.BuiltinOperator

# XNNPACK packs the weights of these operators, in these types.
_PACKED_OPERATORS = (Builtin.CONV_2D, Builtin.DEPTHWISE_CONV_2D, Builtin.FULLY_CONNECTED)
_PACKED_TYPES = (TensorType.INT8, TensorType.UINT8, TensorType.INT4)


def parse(content: bytes) -> schema.ModelT:
    """Returns the bytes of a TFLite file as a `schema.ModelT`."""
    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))


def operators_of(graph: schema.SubGraphT, model: schema.ModelT) -> list[str]:
    """Returns the names of a subgraph's operators, in order."""
    names = {value: name for name, value in vars(Builtin).items() if name[0].isupper()}
    return [names[builtin_code(model.operatorCodes[op.opcodeIndex])] for op in graph.operators]


def builtin_code(code: schema.OperatorCodeT) -> int:
    """Returns the builtin operator of an operator code. Old files store it in a smaller field."""
    return max(code.builtinCode, code.deprecatedBuiltinCode)


def is_operator(operator: schema.OperatorT, builtin: int, model: schema.ModelT) -> bool:
    """Returns whether an operator of a model is the given builtin operator."""
    return builtin_code(model.operatorCodes[operator.opcodeIndex]) == builtin


@dataclasses.dataclass
class ImportedGraph:
    """A subgraph of a converted file, with the tensors that its signature names.

    Args:
        graph: `schema.SubGraphT`.
        inputs: Dict from the name of an input to its tensor index.
        outputs: Dict from the name of an output to its tensor index.
    """

    graph: schema.SubGraphT
    inputs: dict
    outputs: dict


class ModelBuilder:
    """Builds a model out of the subgraphs of other models, with each equal buffer stored once.

    Attributes:
        model: The `schema.ModelT` that is being built.
    """

    def __init__(self):
        self._buffers = {}
        self._op_codes = {}
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.description = b"keras_dsnet"
        self.model.operatorCodes, self.model.buffers = [], [schema.BufferT()]
        self.model.subgraphs, self.model.signatureDefs = [], []
        self.model.metadata = []

    def import_model(self, model: schema.ModelT) -> dict[str, ImportedGraph]:
        """Adds the buffers and operator codes of a model, and adapts its subgraphs to them.

        The subgraphs are not added yet, since the caller may change, copy or inline them first.

        Args:
            model: `schema.ModelT` with a signature for every subgraph. It is changed.

        Returns:
            Dict from signature key to `ImportedGraph`.
        """
        op_codes = [self.add_op_code(code) for code in model.operatorCodes]
        buffers = [self._import_buffer(buffer) for buffer in model.buffers]
        imported = {}
        for signature in model.signatureDefs:
            graph = model.subgraphs[signature.subgraphIndex]
            graph.name = signature.signatureKey
            for operator in graph.operators:
                operator.opcodeIndex = op_codes[operator.opcodeIndex]
            for tensor in graph.tensors:
                tensor.buffer = buffers[tensor.buffer]
                # TensorFlow's names of operations take more bytes than the rest of a tensor.
                tensor.name = b""
            inputs, outputs = (
                {entry.name.decode(): entry.tensorIndex for entry in side}
                for side in (signature.inputs, signature.outputs)
            )
            for name, index in [*inputs.items(), *outputs.items()]:
                graph.tensors[index].name = name.encode()
            imported[graph.name.decode()] = ImportedGraph(graph, inputs, outputs)
        return imported

    def _import_buffer(self, buffer):
        return 0 if buffer.data is None or len(buffer.data) == 0 else self.add_buffer(buffer.data)

    def add_op_code(self, code: schema.OperatorCodeT) -> int:
        """Adds an operator code unless an equal one is there, and returns its index."""
        key = (builtin_code(code), code.version, code.customCode)
        if key not in self._op_codes:
            self._op_codes[key] = len(self.model.operatorCodes)
            self.model.operatorCodes.append(code)
        return self._op_codes[key]

    def builtin(self, name: str) -> int:
        """Returns the index of the operator code of a builtin operator, such as "ADD"."""
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(Builtin, name)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        return self.add_op_code(code)

    def add_buffer(self, data: np.ndarray) -> int:
        """Adds a buffer of bytes unless an equal one is there, and returns its index."""
        data = np.asarray(data, "uint8")
        key = hashlib.sha256(data.tobytes()).digest()
        if key not in self._buffers:
            self._buffers[key] = append_buffer(self.model, data)
        return self._buffers[key]

    def set_constant(self, tensor: schema.TensorT, values: Any) -> None:
        """Makes an int32, float32 or bool tensor a constant with values broadcast to its shape."""
        kinds = {TensorType.INT32: "int32", TensorType.FLOAT32: "float32", TensorType.BOOL: "bool"}
        kind = kinds[tensor.type]
        values = np.broadcast_to(np.array(values, kind), tuple(tensor.shape))
        tensor.buffer = self.add_buffer(np.frombuffer(values.tobytes(), "uint8"))

    def add_constant(self, graph: schema.SubGraphT, values: Sequence[int]) -> int:
        """Adds a constant int32 vector to a subgraph and returns its tensor index."""
        index = add_tensor(graph, "constant", TensorType.INT32, [len(values)])
        self.set_constant(graph.tensors[index], values)
        return index

    def add_subgraph(self, graph: schema.SubGraphT) -> int:
        """Adds a subgraph and returns its index."""
        self.model.subgraphs.append(graph)
        return len(self.model.subgraphs) - 1

    def add_noop_subgraph(self, graph: schema.SubGraphT) -> int:
        """Adds a subgraph without operators and returns its index.

        It has the inputs and outputs of `graph`, and never writes its outputs: it is the branch of
        an `IF` that does nothing.
        """
        noop = schema.SubGraphT()
        noop.name = graph.name + b"_noop"
        noop.tensors, noop.operators = [], []
        noop.inputs, noop.outputs = (
            [copy_tensor(noop, graph.tensors[index], "") for index in side]
            for side in (graph.inputs, graph.outputs)
        )
        return self.add_subgraph(noop)

    def compare(self, graph: schema.SubGraphT, name: str, index: int, value: int) -> int:
        """Adds a comparison of an int32 tensor with a value.

        Args:
            graph: `schema.SubGraphT`.
            name: "EQUAL" or "LESS".
            index: Integer, tensor index of a single int32.
            value: Integer.

        Returns:
            The tensor index of the condition.
        """
        constant = add_tensor(graph, "place", TensorType.INT32, [])
        self.set_constant(graph.tensors[constant], value)
        condition = add_tensor(graph, "condition", TensorType.BOOL, graph.tensors[index].shape)
        options = {"EQUAL": schema.EqualOptionsT, "LESS": schema.LessOptionsT}[name]()
        self._add(graph, name, [index, constant], [condition], options)
        return condition

    def add_if(
        self,
        graph: schema.SubGraphT,
        condition: int,
        arguments: Sequence[int],
        branches: tuple[int, int],
    ) -> list[int]:
        """Adds an `IF` that calls one of two subgraphs.

        Args:
            graph: `schema.SubGraphT`, the caller.
            condition: Integer, tensor index of a bool.
            arguments: Tensor indices of the inputs of both subgraphs.
            branches: The subgraph index if the condition holds, and the one if it does not.

        Returns:
            List of the tensor indices of the outputs.
        """
        callee = self.model.subgraphs[branches[0]]
        outputs = [copy_tensor(graph, callee.tensors[index], "") for index in callee.outputs]
        options = schema.IfOptionsT()
        options.thenSubgraphIndex, options.elseSubgraphIndex = branches
        self._add(graph, "IF", [condition, *arguments], outputs, options)
        return outputs

    def add_if_tree(
        self,
        graph: schema.SubGraphT,
        arguments: Sequence[int],
        callees: Mapping[int, int],
        likely: int | None = None,
    ) -> list[int]:
        """Adds operators that call one of several subgraphs: a balanced tree of `IF`.

        Args:
            graph: `schema.SubGraphT`, the caller.
            arguments: Tensor indices of the inputs of all callees. The last one is an int32, the
                number of the subgraph to call.
            callees: Dict from number, in ascending order, to the index of a subgraph.
            likely: Integer, the number that is compared first. Defaults to None: all numbers are
                equally deep in the tree.

        Returns:
            List of the tensor indices of the outputs.
        """
        numbers = list(callees)
        if likely is None:
            middle = (len(numbers) + 1) // 2
            halves = numbers[:middle], numbers[middle:] or numbers
            condition = self.compare(graph, "LESS", arguments[-1], halves[1][0])
        else:
            halves = [likely], [number for number in numbers if number != likely] or numbers
            condition = self.compare(graph, "EQUAL", arguments[-1], likely)
        then, otherwise = (
            self._tree_subgraph(graph, arguments, {number: callees[number] for number in half})
            for half in halves
        )
        return self.add_if(graph, condition, arguments, (then, otherwise))

    def _tree_subgraph(self, caller, arguments, callees):
        """Returns the index of a subgraph that calls one of the callees, or of the only one."""
        if len(callees) == 1:
            return next(iter(callees.values()))
        graph = schema.SubGraphT()
        graph.name = caller.name + f"_from_{'_'.join(map(str, callees))}".encode()
        graph.tensors, graph.operators = [], []
        graph.inputs = [copy_tensor(graph, caller.tensors[index], "") for index in arguments]
        graph.outputs = self.add_if_tree(graph, graph.inputs, callees)
        return self.add_subgraph(graph)

    def concatenate(self, graph: schema.SubGraphT, indices: Sequence[int]) -> int:
        """Concatenates tensors `[1, ...]` of one shape; returns the output's tensor index."""
        if len(indices) == 1:
            return indices[0]
        output = copy_tensor(graph, graph.tensors[indices[0]], "joined")
        graph.tensors[output].shape = [len(indices), *graph.tensors[output].shape[1:]]
        self._add(graph, "CONCATENATION", list(indices), [output], schema.ConcatenationOptionsT())
        return output

    def gather(self, graph: schema.SubGraphT, index: int, rows: int) -> int:
        """Gathers rows of a tensor by an int32 tensor; returns the output's tensor index."""
        output = copy_tensor(graph, graph.tensors[index], "picked")
        shape = list(graph.tensors[rows].shape)
        graph.tensors[output].shape = shape + list(graph.tensors[output].shape[1:])
        self._add(graph, "GATHER", [index, rows], [output], schema.GatherOptionsT())
        return output

    def add_sum(self, graph: schema.SubGraphT, first: int, second: int) -> int:
        """Adds two tensors of one shape; returns the output's tensor index."""
        output = copy_tensor(graph, graph.tensors[first], "sum")
        self._add(graph, "ADD", [first, second], [output], schema.AddOptionsT())
        return output

    def maximum(self, graph: schema.SubGraphT, first: int, second: int) -> int:
        """Adds the larger of two tensors of one shape; returns the output's tensor index."""
        output = copy_tensor(graph, graph.tensors[first], "maximum")
        options = schema.MaximumMinimumOptionsT()
        self._add(graph, "MAXIMUM", [first, second], [output], options)
        return output

    def less_equal(self, graph: schema.SubGraphT, first: int, second: int) -> int:
        """Adds a comparison of two tensors of one shape; returns the condition's tensor index."""
        condition = add_tensor(graph, "condition", TensorType.BOOL, graph.tensors[first].shape)
        options = schema.LessEqualOptionsT()
        self._add(graph, "LESS_EQUAL", [first, second], [condition], options)
        return condition

    def select(self, graph: schema.SubGraphT, condition: int, then: int, otherwise: int) -> int:
        """Adds a choice between two tensors of one shape; returns the output's tensor index.

        Args:
            graph: `schema.SubGraphT`.
            condition: Tensor index of a bool `[1]`.
            then: Tensor index of the values if the condition holds.
            otherwise: Tensor index of the values if it does not.
        """
        output = copy_tensor(graph, graph.tensors[otherwise], "selected")
        inputs = [condition, then, otherwise]
        self._add(graph, "SELECT_V2", inputs, [output], schema.SelectV2OptionsT())
        return output

    def _add(self, graph, name, inputs, outputs, options):
        operator = add_operator(graph, self.builtin(name), inputs, outputs)
        kind = type(options).__name__.removesuffix("T")
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        operator.builtinOptions = options

    def add_signature(
        self, key: str, subgraph: int, inputs: Mapping[str, int], outputs: Mapping[str, int]
    ) -> None:
        """Adds a signature of a subgraph. Inputs and outputs map names to tensor indices."""
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = key.encode(), subgraph
        signature.inputs, signature.outputs = (
            [_tensor_map(name, index) for name, index in side.items()] for side in (inputs, outputs)
        )
        self.model.signatureDefs.append(signature)


def _tensor_map(name, index):
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name.encode(), index
    return entry


def add_tensor(graph: schema.SubGraphT, name: str, kind: int, shape: Iterable[int]) -> int:
    """Adds a tensor without values to a subgraph and returns its index."""
    tensor = schema.TensorT()
    tensor.name, tensor.type, tensor.shape, tensor.buffer = name.encode(), kind, list(shape), 0
    tensor.hasRank = True
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def copy_tensor(graph: schema.SubGraphT, tensor: schema.TensorT, name: str) -> int:
    """Adds a tensor with the type, shape and quantization of another; returns its index."""
    tensor = copy.deepcopy(tensor)
    tensor.name, tensor.buffer = name.encode(), 0
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def add_operator(
    graph: schema.SubGraphT, op_code: int, inputs: list[int], outputs: list[int]
) -> schema.OperatorT:
    """Adds an operator at the end of a subgraph and returns it."""
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = op_code, inputs, outputs
    graph.operators.append(operator)
    return operator


def inline(
    graph: schema.SubGraphT, other: schema.SubGraphT, inputs: Mapping[int, int]
) -> dict[int, int]:
    """Appends the tensors and operators of another subgraph to a subgraph.

    Args:
        graph: `schema.SubGraphT`.
        other: `schema.SubGraphT`. Its tensors and operators are reused, not copied.
        inputs: Dict from tensor indices of `other` to the tensors of `graph` that replace them.

    Returns:
        Dict from tensor indices of `other` to those of `graph`.
    """
    moved = dict(inputs)
    for index, tensor in enumerate(other.tensors):
        if index not in moved:
            moved[index] = len(graph.tensors)
            graph.tensors.append(tensor)
    for operator in other.operators:
        operator.inputs = [moved.get(index, index) for index in operator.inputs]
        operator.outputs = [moved[index] for index in operator.outputs]
        graph.operators.append(operator)
    return moved


def separate_buffers(model: schema.ModelT) -> None:
    """Gives quantised operators buffers that identify their packed weights.

    XNNPACK packs an operator's weights, bias and scales together, and its weight cache identifies
    the packed result by the buffers of weights and bias only. Operators that share both buffers but
    have other scales would get the values of the first one packed. Each of them gets a separate
    buffer for its bias here, which is small; an operator without a bias gets a bias of zeros.
    Operators with float weights are left unchanged: their buffers identify all that is packed.

    Args:
        model: `schema.ModelT`. It is changed.
    """
    owners: dict = {}
    copies: dict = {}
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = builtin_code(model.operatorCodes[operator.opcodeIndex])
            if code not in _PACKED_OPERATORS or len(operator.inputs) < 2:
                continue
            weights = graph.tensors[operator.inputs[1]]
            if weights.type not in _PACKED_TYPES or not _is_constant(model, weights):
                continue
            bias = _bias(graph, operator)
            if bias is not None and not _is_constant(model, bias):
                continue
            pair = weights.buffer, bias.buffer if bias is not None else 0
            packed = code, *_scales(graph, operator)
            if owners.setdefault(pair, packed) == packed:
                continue
            if (pair, packed) not in copies:
                zeros = np.zeros(4 * _bias_size(weights, code), "uint8")
                data = zeros if bias is None else model.buffers[bias.buffer].data
                copies[pair, packed] = append_buffer(model, data)
            if bias is None:
                operator.inputs = [*operator.inputs[:2], _add_zero_bias(graph, operator, code)]
            _replace_bias(graph, operator, copies[pair, packed])


def _bias(graph, operator):
    """Returns the tensor of an operator's bias, or None."""
    has_bias = len(operator.inputs) > 2 and operator.inputs[2] >= 0
    return graph.tensors[operator.inputs[2]] if has_bias else None


def _is_constant(model, tensor):
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def _scales(graph, operator):
    """Returns everything but weights and bias that the packed weights depend on."""
    tensors = [graph.tensors[index] for index in (*operator.inputs[:2], operator.outputs[0])]
    steps = []
    for tensor in tensors:
        quantization = tensor.quantization
        scale, zero = (), ()
        if quantization is not None:
            scale = () if quantization.scale is None else tuple(map(float, quantization.scale))
            zero = () if quantization.zeroPoint is None else tuple(map(int, quantization.zeroPoint))
        steps.append((tensor.type, scale, zero))
    return (tuple(map(int, tensors[1].shape)), *steps)


def append_buffer(model: schema.ModelT, data: np.ndarray) -> int:
    """Appends a buffer of bytes, which may equal another one, and returns its index."""
    buffer = schema.BufferT()
    buffer.data = data
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def _bias_size(weights, code):
    """Returns the number of values of a bias. Zeros are the same bytes in int32 and float32."""
    return int(weights.shape[-1 if code == Builtin.DEPTHWISE_CONV_2D else 0])


def _add_zero_bias(graph, operator, code):
    """Adds the tensor of a bias and returns its index."""
    features, weights = (graph.tensors[index] for index in operator.inputs[:2])
    is_float = features.type == TensorType.FLOAT32
    kind = TensorType.FLOAT32 if is_float else TensorType.INT32
    index = add_tensor(graph, "bias", kind, [_bias_size(weights, code)])
    if not is_float:
        quantization = schema.QuantizationParametersT()
        scale = np.asarray(features.quantization.scale) * np.asarray(weights.quantization.scale)
        quantization.scale = scale.astype("float32")
        quantization.zeroPoint = np.zeros(len(scale), "int64")
        graph.tensors[index].quantization = quantization
    return index


def _replace_bias(graph, operator, buffer):
    """Moves an operator's bias, whose values are equal, to another buffer."""
    index = operator.inputs[2]
    # Other operators may have the same tensor.
    if sum(list(other.inputs).count(index) for other in graph.operators) > 1:
        graph.tensors.append(copy.copy(graph.tensors[index]))
        index = len(graph.tensors) - 1
        operator.inputs = [*operator.inputs[:2], index]
    graph.tensors[index].buffer = buffer
