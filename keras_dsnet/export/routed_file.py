"""Puts the parts of a routed network together into one TFLite file."""

import copy
import json

from keras_dsnet.export.dynamic_interpreter import METADATA_NAME
from keras_dsnet.export.file_builder import FileBuilder
from keras_dsnet.export.flatbuffer import pack, parse
from keras_dsnet.export.graph_builder import (
    TensorType,
    add_tensor,
    copy_tensor,
    give_quantized,
    inline,
    multiply_directly,
    take_quantized,
)

BOUNDED = "bounded"
SERVING = "serving_default"
BOUNDS = ("min_width", "max_width")


class RoutedFile:
    """A TFLite file whose main graph calls, behind every gate, the graph of the chosen width.

    Each part was converted as a graph with a signature of its own. Here the front becomes the main
    graph. It chooses at every gate, and has an `IF` for each width of what follows: one graph runs,
    and a graph without operators stands for each of the others, which leaves its outputs alone. The
    features of every width are tensors of their own shapes, so none is padded, and an `IF` hands
    tensors on without a copy. A graph that sees the width before begins with the tree of `IF`s that
    runs the layers of that pair of widths; the first asks whether the width has stayed the same.
    What a gate may choose is a mask over the routes: in "serving_default" a constant, in "bounded"
    what it makes of its bounds before all else.

    Why not one `IF` in the other, along the path: what an `IF` can reach is prepared anew whenever
    it runs, and along the paths that is nearly the whole file.

    Args:
        parts: list of `RoutedPart`, each before those that take its features.
        choices: list of `RoutedPart`: the bounds, then the choice of each gate.
        contents: list of bytes: files with a signature for each of them.
        routes: tuple of widths.
        metadata: what the file says of itself, for JSON.
    """

    def __init__(self, parts, choices, contents, routes, metadata):
        self._file = FileBuilder()
        self._parts = {part.name: part for part in parts}
        self._taken = {}
        for content in contents:
            self._taken |= self._file.take(parse(content))
        for taken in self._taken.values():
            multiply_directly(taken.graph, self.model, self._file.builtin("MUL"))
        # Subgraph 0 is what an interpreter runs that asks for no signature.
        self._file.model.subgraphs = [None, self._taken["front"].graph]
        self._routes = routes
        self._connect(parts)
        self._build(*choices)
        self._file.add_metadata(METADATA_NAME, json.dumps(metadata).encode())

    @property
    def model(self):
        """The file as a `schema.ModelT`."""
        return self._file.model

    def content(self):
        """Returns the bytes of the file."""
        return pack(self._file.model)

    def _connect(self, parts):
        """Lets graphs take and give int8 features as they are."""
        for part in parts[1:]:
            taken = self._taken[part.name]
            taken.features = [
                take_quantized(taken.graph, index, self.model) for index in taken.features
            ]
        for part in parts:
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
        features, position, positions = [front.results], None, []
        for gate, (choice, mask) in enumerate(zip(choices, allowed.values()), start=1):
            chosen = self._taken[choice.name]
            taken = {chosen.inputs["scores"]: scores, chosen.inputs["allowed"]: mask}
            places = inline(main, chosen.graph, taken)
            before, position = position, places[chosen.outputs["position"]]
            positions.append(position)
            features, results = self._section(main, gate, features, before, position)
            scores = self._file.gather(main, self._file.concat(main, results), position)
        main.inputs, main.outputs = [front.inputs["image"]], [scores, self._path(main, positions)]
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
        routes = add_tensor(main, "routes", TensorType.INT32, [len(self._routes)])
        self._file.set_constant(main.tensors[routes], self._routes)
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

    def _section(self, main, section, features, before, position):
        """Adds an `IF` for each width of a section to the main graph.

        Args:
            main: the main graph.
            section: int.
            features: for each width before, the features that it gave.
            before: index of the place that the gate before chose; None: there was none.
            position: index of the place that is chosen here.

        Returns:
            The features of every width, and of every width the scores or the output.
        """
        arguments = [index for groups in features for index in groups]
        arguments += [] if before is None else [before]
        given, results = [], []
        parts = [p for p in self._parts.values() if p.section == section and p.before is None]
        for place, part in enumerate(parts):
            taken = self._taken[part.name]
            graph, last = taken.graph, "output" in taken.outputs
            if before is not None:
                self._add_entries(part, main, arguments, features)
            else:
                graph.inputs = list(taken.features)
            result = taken.outputs["output" if last else "scores"]
            graph.outputs = [*taken.results, result]
            condition = self._file.compare(main, "EQUAL", position, place)
            sides = self._file.add_graph(graph), self._file.idle(graph)
            outputs = self._file.add_if(main, condition, arguments, sides)
            given.append(outputs[:-1])
            results.append(outputs[-1])
        return given, results

    def _add_entries(self, part, main, arguments, features):
        """Lets a graph begin with its entry, for the width before that was chosen."""
        taken = self._taken[part.name]
        graph, operators = taken.graph, taken.graph.operators
        entries = [entry for entry in self._parts.values() if part.name in entry.next]
        first = 0
        for entry, groups in zip(entries, features):
            own = self._taken[entry.name]
            own.graph.inputs = [
                own.features[index - first]
                if first <= index < first + len(groups)
                else copy_tensor(own.graph, main.tensors[argument], "unused")
                for index, argument in enumerate(arguments)
            ]
            own.graph.outputs = list(own.results)
            first += len(groups)
        graph.inputs = [copy_tensor(graph, main.tensors[index], "before") for index in arguments]
        graph.operators = []
        places = {
            number: self._file.add_graph(self._taken[entry.name].graph)
            for number, entry in enumerate(entries)
        }
        same = [entry.before for entry in entries].index(part.width)
        outputs = self._file.add_tree(graph, graph.inputs, places, likely=same)
        # The entry's operators first, then those that read what it gives.
        renamed = dict(zip(taken.features, outputs))
        for operator in operators:
            operator.inputs = [renamed.get(index, index) for index in operator.inputs]
        graph.operators += operators
