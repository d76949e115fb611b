"""Assembles the graphs of a routed network into one TFLite file."""

import copy
import dataclasses
import json

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_dsnet.export.dynamic_interpreter import METADATA_NAME, read_metadata, routes_of
from keras_dsnet.export.metadata import add_metadata, add_runtime, describe
from keras_dsnet.export.tflite_model import (
    FileBuilder,
    TensorType,
    add_tensor,
    builtin_code,
    copy_tensor,
    give_quantized,
    inline,
    multiply_directly,
    pack,
    parse,
    take_quantized,
)

BOUNDED = "bounded"
SERVING = "serving_default"
BOUNDS = ("min_width", "max_width")


class RoutedFile:
    """A TFLite file whose main graph calls, behind every gate, the graph of the chosen width.

    Each part was converted as a graph with a signature of its own. Here the front becomes the main
    graph. It chooses at every gate, and has an `IF` for each graph of what follows: one of them
    runs, and a graph without operators stands for each of the others, which leaves its outputs
    alone. The features of every width are tensors of their own shapes, so none is padded, and an
    `IF` hands tensors on without a copy; see `RoutedSection`. What a gate may choose is a mask over
    the routes: in "serving_default" a constant, in "bounded" what it makes of its bounds before all
    else.

    Why not one `IF` in the other, along the path: what an `IF` can reach is prepared anew whenever
    it runs, and along the paths that is nearly the whole file.

    Args:
        parts: list of `RoutedPart`, each before those that take its features.
        choices: list of `RoutedPart`: the bounds, then the choice of each gate.
        contents: list of bytes: files with a signature for each of them.
        routes: tuple of widths.
        network: the `DynamicSlimmableNetwork`.
        metadata: what the file says of itself, for JSON; `input_type` and `quantize` among it.
    """

    def __init__(self, parts, choices, contents, routes, network, metadata):
        self._file = FileBuilder()
        self._parts = parts
        self._taken = {}
        for content in contents:
            self._taken |= self._file.take(parse(content))
        for taken in self._taken.values():
            multiply_directly(taken.graph, self.model, self._file.builtin("MUL"))
        # Subgraph 0 is what an interpreter runs that asks for no signature.
        self._file.model.subgraphs = [None, self._taken["front"].graph]
        self._routes = routes
        self._connect()
        self._build(*choices)
        separate_buffers(self.model)
        add_metadata(self.model, METADATA_NAME.decode(), json.dumps(metadata).encode())
        describe(self.model, network, metadata["input_type"])
        add_runtime(self.model, metadata["quantize"])

    @property
    def model(self):
        """The file as a `schema.ModelT`."""
        return self._file.model

    def content(self):
        """Returns the bytes of the file."""
        return pack(self._file.model)

    def _connect(self):
        """Lets graphs take and give int8 features as they are."""
        for part in self._parts[1:]:
            taken = self._taken[part.name]
            taken.features = [
                take_quantized(taken.graph, index, self.model) for index in taken.features
            ]
        for part in self._parts:
            if part.next:
                taken, following = self._taken[part.name], self._taken[part.next[0]]
                taken.results = [
                    give_quantized(
                        taken.graph,
                        index,
                        following.graph.tensors[wanted],
                        self.model,
                        self._file.builtin("QUANTIZE"),
                    )
                    for index, wanted in zip(taken.results, following.features)
                ]

    def _build(self, bounds, *choices):
        front = self._taken["front"]
        main, scores = front.graph, front.outputs["scores"]
        allowed = {
            name: add_tensor(main, name, TensorType.BOOL, [len(self._routes)])
            # Not in the order of the signature, where gate 10 is before gate 2.
            for name in (f"allowed_{gate}" for gate in range(1, len(choices) + 1))
        }
        called, positions = None, []
        for gate, (choice, mask) in enumerate(zip(choices, allowed.values()), start=1):
            chosen = self._taken[choice.name]
            taken = {chosen.inputs["scores"]: scores, chosen.inputs["allowed"]: mask}
            position = inline(main, chosen.graph, taken)[chosen.outputs["position"]]
            positions.append(position)
            parts = [part for part in self._parts if part.section == gate]
            section = RoutedSection(self._file, main, parts, self._taken)
            if gate == 1:
                called = section.call_first(position, front.results)
            else:
                called = section.call(position, called)
            results = self._file.concat(main, called.results)
            scores = self._file.gather(main, results, called.number)
        main.inputs, main.outputs = [front.inputs["image"]], [scores, self._path(main, positions)]
        # Some runtimes know outputs by the names of their tensors only.
        for name, index in zip(("output", "path"), main.outputs):
            main.tensors[index].name = name.encode()
        serving = copy.deepcopy(main)
        for index in allowed.values():
            self._file.set_constant(serving.tensors[index], True)
        self._bound(main, self._taken[bounds.name], allowed)
        self.model.subgraphs[0] = serving
        for subgraph, graph, key in ((0, serving, SERVING), (1, main, BOUNDED)):
            graph.name = key.encode()
            names = dict(zip(("image", *BOUNDS), graph.inputs))
            self._file.add_signature(
                key, subgraph, names, dict(zip(("output", "path"), graph.outputs))
            )

    def _path(self, main, positions):
        """Adds operators that make widths of places among the routes; returns the path."""
        routes = self._file.constant(main, self._routes)
        return self._file.gather(main, routes, self._file.concat(main, positions))

    def _bound(self, main, bounds, allowed):
        """Lets the main graph begin with what its bounds allow."""
        taken = {bounds.outputs[name]: index for name, index in allowed.items()}
        for name in BOUNDS:
            index = add_tensor(main, name, TensorType.INT32, [len(allowed)])
            taken[bounds.inputs[name]] = index
            main.inputs.append(index)
        operators, main.operators = main.operators, []
        inline(main, bounds.graph, taken)
        main.operators += operators


@dataclasses.dataclass(frozen=True)
class CalledGraphs:
    """What the main graph has of the graphs behind a gate, in the order of their numbers.

    Args:
        number: index of the number of the graph that runs.
        narrow: number of the graph of the images that took the narrowest width at every gate.
        widths: of each graph.
        features: for each graph the indices of the features that it gives.
        results: for each graph the index of the next gate's scores, or of the output.
    """

    number: int
    narrow: int
    widths: list
    features: list
    results: list


class RoutedSection:
    """Adds a graph for every width behind a gate, and an `IF` for each of them to the main graph.

    A graph that sees the width before begins with the tree of `IF`s that runs the layers of that
    pair of widths; the first asks whether the width has stayed the same.

    From the second gate on, images that took the narrowest width at every gate have a graph of
    their own, which has these layers in itself: what the tree costs counts most on the shortest
    path. The file holds the constants once; XNNPACK packs one more copy of the narrowest kernels.

    Graphs are numbered by the places of their widths; the one for narrow images comes last.

    Args:
        file: a `FileBuilder`.
        main: the main graph.
        parts: list of the `RoutedPart` of this section.
        taken: dict from the name of a part to its `TakenGraph`.
    """

    def __init__(self, file, main, parts, taken):
        self._file = file
        self._main = main
        self._rest = {p.width: taken[p.name] for p in parts if p.before is None}
        self._entries = {(p.before, p.width): taken[p.name] for p in parts if p.before is not None}

    def call_first(self, position, features):
        """Adds the calls behind the first gate.

        Args:
            position: index of the place among the routes that is chosen here.
            features: indices of what the front gives.

        Returns:
            A `CalledGraphs`.
        """
        graphs = []
        for taken in self._rest.values():
            taken.graph.inputs, taken.graph.outputs = list(taken.features), _outputs(taken)
            graphs.append(taken.graph)
        return self._call(graphs, position, features, [*self._rest], narrow=0)

    def call(self, position, before):
        """Adds the calls behind a later gate.

        Args:
            position: index of the place among the routes that is chosen here.
            before: the `CalledGraphs` of the gate before.

        Returns:
            A `CalledGraphs`.
        """
        routes = [*self._rest]
        arguments = [*(index for groups in before.features for index in groups), before.number]
        narrow = self._narrow_graph(routes[0], arguments, before)
        if len(routes) == 1:
            return self._call([narrow], position, arguments, routes, narrow=0)
        graphs = [self._graph(width, arguments, before) for width in routes]
        number = self._number(position, before)
        widths = [*routes, routes[0]]
        return self._call([*graphs, narrow], number, arguments, widths, narrow=len(routes))

    def _call(self, graphs, number, arguments, widths, narrow):
        """Adds an `IF` for each graph; the other side leaves its outputs alone."""
        features, results = [], []
        for place, graph in enumerate(graphs):
            condition = self._file.compare(self._main, "EQUAL", number, place)
            sides = self._file.add_graph(graph), self._file.idle(graph)
            outputs = self._file.add_if(self._main, condition, arguments, sides)
            features.append(outputs[:-1])
            results.append(outputs[-1])
        return CalledGraphs(number, narrow, widths, features, results)

    def _number(self, position, before):
        """Returns the index of the number of the graph to run: by the graph before and the place.

        It is the place itself, but for images that stay narrow.
        """
        count = len(self._rest)
        table = [*range(count)] * len(before.widths)
        table[before.narrow * count] = count
        rows = self._file.constant(self._main, range(0, len(table), count))
        row = self._file.gather(self._main, rows, before.number)
        index = self._file.add_numbers(self._main, row, position)
        return self._file.gather(self._main, self._file.constant(self._main, table), index)

    def _graph(self, width, arguments, before):
        """Returns the graph of a width, which begins with a tree of its entries.

        Args:
            width: int.
            arguments: indices of what all graphs of this section are called with.
            before: the `CalledGraphs` of the gate before.
        """
        taken = copy.deepcopy(self._rest[width])
        graph, operators = taken.graph, taken.graph.operators
        places, same = {}, None
        for number, own_width in enumerate(before.widths):
            if number == before.narrow and width == min(self._rest):
                continue  # Narrow images that stay so have a graph of their own.
            entry = self._entry(own_width, width, arguments, before.features[number])
            entry.graph.outputs = list(entry.results)
            # The last graph before, of narrow images, is none of those that have a width each.
            if number == len(self._rest):
                entry.graph.name += b"_narrow"
            elif own_width == width:
                same = number
            places[number] = self._file.add_graph(entry.graph)
        graph.inputs = [copy_tensor(graph, self._main.tensors[i], "before") for i in arguments]
        graph.outputs, graph.operators = _outputs(taken), []
        outputs = self._file.add_tree(graph, graph.inputs, places, likely=same)
        # The entry's operators first, then those that read what it gives.
        renamed = dict(zip(taken.features, outputs))
        for operator in operators:
            operator.inputs = [renamed.get(index, index) for index in operator.inputs]
        graph.operators += operators
        return graph

    def _narrow_graph(self, width, arguments, before):
        """Returns the graph of the narrowest width behind itself, entry and all."""
        taken = copy.deepcopy(self._rest[width])
        entry = self._entry(width, width, arguments, before.features[before.narrow])
        graph = entry.graph
        for given, wanted in zip(entry.results, taken.features):
            # As if handed on: in int8 both have been measured, and may differ by a thousandth.
            graph.tensors[given].quantization = taken.graph.tensors[wanted].quantization
        places = inline(graph, taken.graph, dict(zip(taken.features, entry.results)))
        graph.outputs = [places[index] for index in _outputs(taken)]
        graph.name = taken.graph.name + b"_narrow"
        return graph

    def _entry(self, before, width, arguments, groups):
        """Returns the entry of a pair of widths, called with `arguments`, `groups` among them."""
        entry = copy.deepcopy(self._entries[before, width])
        own = dict(zip(groups, entry.features))
        entry.graph.inputs = [
            own[index]
            if index in own
            else copy_tensor(entry.graph, self._main.tensors[index], "unused")
            for index in arguments
        ]
        return entry


def _outputs(taken):
    """Returns the indices of what a graph gives: its features, then the scores or the output."""
    return [*taken.results, taken.outputs["output" if "output" in taken.outputs else "scores"]]


def force_route(content, path):
    """Returns a routed file whose signature "serving_default" always takes one path.

    What its gates may choose, constants in that signature, becomes that path. Every operator runs
    as before, the gate's among them.

    Args:
        content: bytes of the file.
        path: int, a width for every gate, or a sequence with one per gate.

    Raises:
        ValueError: a width is no route of the file, there are more or fewer widths than gates, or
            the file is of an earlier version.
    """
    metadata = read_metadata(content)
    routes, gates = np.array(routes_of(metadata)), len(metadata["routes"][0]["path"])
    model = parse(content)
    (serving,) = (s for s in model.signatureDefs if s.signatureKey == b"serving_default")
    tensors = {t.name.decode(): t for t in model.subgraphs[serving.subgraphIndex].tensors}
    if "allowed_1" not in tensors:
        raise ValueError("The file is of an earlier version of keras_dsnet; export it again")
    if np.size(path) not in (1, gates):
        raise ValueError(f"The file has {gates} gates. Received: {path}")
    for gate, width in enumerate(np.broadcast_to(path, gates), start=1):
        tensor = tensors[f"allowed_{gate}"]
        if width not in routes:
            raise ValueError(f"The routes of the file are {[*map(int, routes)]}. Received: {path}")
        buffer = schema.BufferT()
        buffer.data = np.frombuffer((routes == width).tobytes(), "uint8")
        tensor.buffer = len(model.buffers)
        model.buffers.append(buffer)
    return pack(model)


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
