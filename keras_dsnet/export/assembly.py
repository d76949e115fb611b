"""Assembly of a routed TFLite file from its graphs.

The front becomes the main graph. At every gate it chooses a route, and it has an `IF` for each
graph of the section that follows: one of them runs, and a subgraph without operators is the other
branch of each `IF`, which leaves the outputs unchanged. The features of every width are separate
tensors with different shapes, so none is padded, and an `IF` passes tensors on without a copy. The
routes that a gate may choose are a mask, one of the control tensors: constants in the signature
"serving_default", computed from the bounds before everything else in "bounded". Where a file routes
by confidence, the limits of confidence are a control tensor too, which the signature "tuned"
computes from thresholds; see the module `confidence`.

`IF`s are not nested along the path: LiteRT re-prepares every subgraph reachable from an `IF` on
each run, and along the paths that is nearly the whole file.
"""

import copy
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_dsnet.export.confidence import (
    NEVER,
    ConfidencePlan,
    add_steps,
    append_confidence,
    reached_by_start,
)
from keras_dsnet.export.dynamic_interpreter import METADATA_NAME, read_metadata, routes_of
from keras_dsnet.export.graphs import RoutedGraphs, SectionGraphs
from keras_dsnet.export.metadata import add_metadata, add_runtime, describe
from keras_dsnet.export.packing import pack
from keras_dsnet.export.quantized_features import connect_quantized
from keras_dsnet.export.tflite_model import (
    ModelBuilder,
    TensorType,
    add_tensor,
    append_buffer,
    append_graph,
    copy_tensor,
    inline,
    parse,
    separate_buffers,
)
from keras_dsnet.models.dynamic_slimmable_network import DynamicSlimmableNetwork

BOUNDED = "bounded"
SERVING = "serving_default"
BOUNDS = ("min_width", "max_width")
TUNED = "tuned"
THRESHOLDS = "thresholds"
# Control tensors have these names. Masks of the routes that a gate may choose are counted from 1.
_MASK = "allowed_{}"
_START = "start"
_LIMITS = "limits"


def assemble_file(
    builder: ModelBuilder,
    graphs: RoutedGraphs,
    routes: Sequence[int],
    network: DynamicSlimmableNetwork,
    metadata: dict[str, Any],
    confidence: ConfidencePlan | None = None,
) -> schema.ModelT:
    """Assembles the graphs of a routed network into one model.

    Args:
        builder: `ModelBuilder` that imported the graphs.
        graphs: `RoutedGraphs` of `ImportedGraph`s. They are changed.
        routes: Tuple of the widths of the file, ascending.
        network: `DynamicSlimmableNetwork`, which TFLite Metadata describe.
        metadata: Dict for JSON, which `DynamicInterpreter` reads; `input_type` and `quantize` are
            among its keys.
        confidence: `ConfidencePlan`. Defaults to None for a file that routes only by its gates.

    Returns:
        `schema.ModelT`.
    """
    model = builder.model
    connect_quantized(builder, graphs)
    if confidence:
        for part in graphs.sections[-1].rest.values():
            append_confidence(part, graphs.confidence)
    main = graphs.front.graph
    # An interpreter that asks for no signature runs subgraph 0, which will be "serving_default".
    model.subgraphs = [None, main]
    controls = _add_controls(main, graphs, routes, confidence)
    calls, positions = _add_start(builder, graphs, controls)
    names = _result_names(next(iter(graphs.sections[-1].rest.values())))
    if confidence is None:
        outputs = _pick(builder, main, names, calls[-1].results, calls[-1].number)
        widths = builder.add_constant(main, routes)
        outputs["path"] = builder.gather(main, widths, builder.concatenate(main, positions))
    else:
        positions *= network.num_gates // len(positions)
        start = reached_by_start(builder, main, calls[-1], positions, routes)
        reached = add_steps(builder, main, confidence, controls["limits"][0], calls, start)
        outputs = _pick(builder, main, names, reached.results, reached.number)
        outputs |= {"path": reached.path, "confidence": reached.confidence}
    stored = confidence.stored() if confidence else {"allowed": True}
    _add_signatures(builder, graphs, controls, outputs, stored)
    separate_buffers(model)
    add_metadata(model, METADATA_NAME.decode(), json.dumps(metadata).encode())
    describe(model, network, metadata["input_type"])
    add_runtime(model, metadata["quantize"])
    return model


def _pick(builder, main, names, results, number):
    """Adds the choice of one of several results; returns a dict from name to tensor index."""
    return {
        name: builder.gather(main, builder.concatenate(main, column), number)
        for name, column in zip(names, zip(*results))
    }


def _add_controls(main, graphs, routes, confidence):
    """Adds the control tensors to the main graph; returns a dict of tuples of tensor indices."""
    controls = {}
    if graphs.choices:
        controls["allowed"] = [
            add_tensor(main, _MASK.format(gate), TensorType.BOOL, [len(routes)])
            for gate in range(1, len(graphs.choices) + 1)
        ]
    else:
        controls["start"] = [add_tensor(main, _START, TensorType.INT32, [1])]
    if confidence:
        shape = [len(confidence.targets) * len(routes)]
        controls["limits"] = [add_tensor(main, _LIMITS, TensorType.FLOAT32, shape)]
    return controls


def _add_start(builder, graphs, controls):
    """Adds the choice of every gate and the calls of the section after it to the main graph.

    Without gates in the file the control tensor `start` is the choice.

    Returns:
        Tuple of a list with the `CalledGraphs` of each section, and the tensor indices of the
        positions of the chosen widths.
    """
    main, features = graphs.front.graph, graphs.front.outputs["features"]
    scores = graphs.front.outputs.get("scores")
    calls: list = []
    positions: list = []
    for index, section in enumerate(graphs.sections):
        if calls:
            picked = _pick(builder, main, ("scores",), calls[-1].results, calls[-1].number)
            scores = picked["scores"]
        if graphs.choices:
            choice, mask = graphs.choices[index], controls["allowed"][index]
            arguments = {choice.inputs["scores"]: scores, choice.inputs["allowed"]: mask}
            position = inline(main, choice.graph, arguments)[choice.outputs["position"]]
        else:
            position = controls["start"][index]
        positions.append(position)
        section_calls = SectionCalls(builder, main, section)
        if calls:
            calls.append(section_calls.add(position, calls[-1]))
        else:
            calls.append(section_calls.add_first(position, features))
    return calls, positions


def _add_signatures(builder, graphs, controls, outputs, stored):
    """Adds the signatures: copies of the main graph with other sources of the control tensors.

    Args:
        builder: `ModelBuilder`.
        graphs: `RoutedGraphs`, the front of which has become the main graph.
        controls: Dict of tuples of the control tensors, and `stored` of their values.
        outputs: Dict from the name of an output to its tensor index.
        stored: See `controls`.
    """
    model, main = builder.model, graphs.front.graph
    main.inputs = [graphs.front.inputs["image"]]
    # Some runtimes identify outputs only by the names of their tensors.
    for name, index in outputs.items():
        main.tensors[index].name = name.encode()
    tuned = copy.deepcopy(main) if graphs.tune else None
    serving = copy.deepcopy(main)
    _set_controls(builder, serving, controls, stored)
    _prepend(main, graphs.allow, BOUNDS, controls)
    model.subgraphs[0] = serving
    signatures = {SERVING: (0, serving, ()), BOUNDED: (1, main, BOUNDS)}
    if tuned:
        others = {name: each for name, each in controls.items() if name != "limits"}
        _set_controls(builder, tuned, others, stored)
        _prepend(tuned, graphs.tune, (THRESHOLDS,), controls)
        signatures[TUNED] = (builder.add_subgraph(tuned), tuned, (THRESHOLDS,))
    for key, (subgraph, graph, names) in signatures.items():
        # Only "tuned" returns the confidence.
        kept = [name for name in outputs if key == TUNED or name != "confidence"]
        graph.outputs = [outputs[name] for name in kept]
        graph.name = key.encode()
        inputs = dict(zip(("image", *names), graph.inputs))
        builder.add_signature(key, subgraph, inputs, dict(zip(kept, graph.outputs)))


def _set_controls(builder, graph, controls, stored):
    """Makes control tensors of a copy of the main graph constants."""
    for name, indices in controls.items():
        for index in indices:
            builder.set_constant(graph.tensors[index], stored[name])


def _prepend(main, part, names, controls):
    """Makes the main graph begin with a part that computes control tensors from new inputs.

    Args:
        main: `schema.SubGraphT`, a copy of the main graph.
        part: `ImportedGraph`.
        names: Names of its inputs, in their order.
        controls: Dict of tuples of the control tensors.
    """
    tensors: dict = {}
    for name, results in part.outputs.items():
        for index, control in zip(results, controls[name]):
            tensors[index] = control
            # Where the bounds change nothing, the converter makes a result a constant.
            main.tensors[control].buffer = part.graph.tensors[index].buffer
    for name in names:
        wanted = part.graph.tensors[part.inputs[name]]
        index = add_tensor(main, name, wanted.type, wanted.shape)
        tensors[part.inputs[name]] = index
        main.inputs.append(index)
    operators, main.operators = main.operators, []
    inline(main, part.graph, tensors)
    main.operators += operators


@dataclasses.dataclass(frozen=True)
class CalledGraphs:
    """The graphs that the main graph calls after a gate, in the order of their numbers.

    Args:
        number: Tensor index of the number of the graph that runs.
        narrow: Integer, number of the graph for images that took the narrowest width at every gate.
        widths: List of the graphs' widths.
        features: List with the tensor indices of each graph's features. After the last section of
            a file that routes by confidence it has each graph's confidence.
        arguments: Tensor indices of the arguments that all graphs take.
        branches: List with the subgraph indices of the two branches of each graph's `IF`.
        results: List with the results of each graph, a tuple of tensor indices: the scores of the
            next gate or, after the last gate, what the file returns.
    """

    number: int
    narrow: int
    widths: list
    features: list
    arguments: list
    branches: list
    results: list


class SectionCalls:
    """Adds a subgraph for every width after a gate, and an `IF` for each to the main graph.

    A subgraph that depends on the width before begins with a tree of `IF`s, which runs the
    section's entry for that pair of widths. The first `IF` asks whether the width has stayed the
    same.

    From the second gate on, images that took the narrowest width at every gate have another
    subgraph, which contains the entry: the tree costs most on the shortest path. The file stores
    the constants once, but XNNPACK packs one more copy of the narrowest kernels.

    Subgraphs are numbered by the positions of their widths; the one for narrow images comes last.

    Args:
        builder: `ModelBuilder`.
        main: `schema.SubGraphT`, the main graph.
        section: `SectionGraphs` of `ImportedGraph`s.
    """

    def __init__(self, builder: ModelBuilder, main: schema.SubGraphT, section: SectionGraphs):
        self._builder = builder
        self._main = main
        self._rest = section.rest
        self._entries = section.entries

    def add_first(self, position: int, features: Sequence[int]) -> CalledGraphs:
        """Adds the calls after the first gate.

        Args:
            position: Tensor index of the chosen position among the routes.
            features: Tensor indices of the front's features.
        """
        for rest in self._rest.values():
            rest.graph.inputs, rest.graph.outputs = list(rest.inputs["features"]), _outputs(rest)
        graphs = [rest.graph for rest in self._rest.values()]
        return self._call(graphs, position, features, [*self._rest], narrow=0)

    def add(self, position: int, before: CalledGraphs) -> CalledGraphs:
        """Adds the calls after a later gate.

        Args:
            position: Tensor index of the chosen position among the routes.
            before: `CalledGraphs` of the gate before.
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
        """Adds an `IF` for each graph, whose other branch leaves the outputs unchanged."""
        features, results, calls = [], [], []
        count = len(_result_names(next(iter(self._rest.values()))))
        for place, graph in enumerate(graphs):
            condition = self._builder.compare(self._main, "EQUAL", number, place)
            branches = self._builder.add_subgraph(graph), self._builder.add_noop_subgraph(graph)
            outputs = self._builder.add_if(self._main, condition, arguments, branches)
            features.append(outputs[:-count])
            results.append(tuple(outputs[-count:]))
            calls.append(branches)
        return CalledGraphs(number, narrow, widths, features, [*arguments], calls, results)

    def _number(self, position, before):
        """Returns the tensor index of the number of the graph to run.

        The number is the position of the width, except for images that stay narrow.
        """
        count = len(self._rest)
        table = [*range(count)] * len(before.widths)
        table[before.narrow * count] = count
        rows = self._builder.add_constant(self._main, range(0, len(table), count))
        row = self._builder.gather(self._main, rows, before.number)
        index = self._builder.add_sum(self._main, row, position)
        numbers = self._builder.add_constant(self._main, table)
        return self._builder.gather(self._main, numbers, index)

    def _graph(self, width, arguments, before):
        """Returns the graph of a width, which begins with a tree of its entries.

        Args:
            width: Integer.
            arguments: Tensor indices of the arguments of all graphs of this section.
            before: `CalledGraphs` of the gate before.
        """
        rest = copy.deepcopy(self._rest[width])
        graph, operators = rest.graph, rest.graph.operators
        callees, same = {}, None
        for number, width_before in enumerate(before.widths):
            if number == before.narrow and width == min(self._rest):
                # Another graph runs images that stay narrow.
                continue
            entry = self._entry(width_before, width, arguments, before.features[number])
            entry.graph.outputs = list(entry.outputs["features"])
            # The graph of narrow images comes last. It repeats the narrowest width, so its entry
            # needs another name.
            if number == len(self._rest):
                entry.graph.name += b"_narrow"
            elif width_before == width:
                same = number
            callees[number] = self._builder.add_subgraph(entry.graph)
        graph.inputs = [copy_tensor(graph, self._main.tensors[i], "before") for i in arguments]
        graph.operators = []
        outputs = self._builder.add_if_tree(graph, graph.inputs, callees, likely=same)
        # The entries run first, then the operators that read their outputs.
        renamed = dict(zip(rest.inputs["features"], outputs))
        graph.outputs = [renamed.get(index, index) for index in _outputs(rest)]
        for operator in operators:
            operator.inputs = [renamed.get(index, index) for index in operator.inputs]
        graph.operators += operators
        return graph

    def _narrow_graph(self, width, arguments, before):
        """Returns the graph of the narrowest width after itself, which contains its entry."""
        rest = copy.deepcopy(self._rest[width])
        entry = self._entry(width, width, arguments, before.features[before.narrow])
        graph = entry.graph
        moved = append_graph(entry, rest)
        graph.outputs = [moved[index] for index in _outputs(rest)]
        graph.name = rest.graph.name + b"_narrow"
        return graph

    def _entry(self, before, width, arguments, features):
        """Returns the entry of a pair of widths, which takes `features` out of `arguments`."""
        entry = copy.deepcopy(self._entries[before, width])
        inputs = dict(zip(features, entry.inputs["features"]))
        entry.graph.inputs = [
            inputs[index]
            if index in inputs
            else copy_tensor(entry.graph, self._main.tensors[index], "unused")
            for index in arguments
        ]
        return entry


def _outputs(rest):
    """Returns the tensor indices of a graph's features, then of its results.

    The last graphs of a file that routes by confidence have their confidence as features.
    """
    last = [rest.outputs["confidence"]] if "confidence" in rest.outputs else ()
    features = rest.outputs.get("features", last)
    return [*features, *(rest.outputs[name] for name in _result_names(rest))]


def _result_names(rest):
    """Returns the names of a graph's results: "scores" for the next gate, or those of the file."""
    return sorted(rest.outputs.keys() - {"features", "confidence", "logits"})


def force_route(content: bytes, path: int | Sequence[int]) -> bytes:
    """Returns a routed file whose signature "serving_default" always takes one path.

    The masks of the routes that the gates may choose, constants in that signature, allow only that
    path. Every operator still runs, those of the gates included. In a file that routes by
    confidence, no image goes on.

    Args:
        content: Bytes of the file.
        path: Integer, a width for every gate, or a sequence with one per gate.

    Raises:
        ValueError: If a width is not a route of the file, if there are more or fewer widths than
            gates, if the file has no gates and the widths differ, or if the file is from an earlier
            version.
    """
    metadata = read_metadata(content)
    if metadata["layout"] == "staged":
        raise ValueError('A staged file has no signature "serving_default" that routes images')
    routes, gates = np.array(routes_of(metadata)), len(metadata["routes"][0]["path"])
    model = parse(content)
    (serving,) = (s for s in model.signatureDefs if s.signatureKey == SERVING.encode())
    tensors = {t.name.decode(): t for t in model.subgraphs[serving.subgraphIndex].tensors}
    has_gates = _MASK.format(1) in tensors
    if not has_gates and _START not in tensors:
        raise ValueError("The file is of an earlier version of keras_dsnet; export it again")
    if np.size(path) not in (1, gates):
        raise ValueError(f"The file has {gates} gates. Received: {path}")
    widths = np.broadcast_to(path, gates)
    if not np.isin(widths, routes).all():
        raise ValueError(f"The routes of the file are {[*map(int, routes)]}. Received: {path}")
    if not has_gates and len(set(widths.tolist())) > 1:
        raise ValueError(
            "The file routes by confidence without gates: a path has one width at all of them. "
            f"Received: {path}"
        )
    values = {_MASK.format(gate): routes == width for gate, width in enumerate(widths, start=1)}
    values[_START] = np.flatnonzero(routes == widths[0]).astype("int32")
    if _LIMITS in tensors:
        values[_LIMITS] = np.full(tensors[_LIMITS].shape, NEVER)
    for name in values.keys() & tensors.keys():
        data = np.frombuffer(values[name].tobytes(), "uint8")
        tensors[name].buffer = append_buffer(model, data)
    return pack(model)
