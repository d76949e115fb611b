"""Puts the parts of a routed network together into one TFLite file."""

import copy
import json

from keras_dsnet.export.dynamic_interpreter import METADATA_NAME
from keras_dsnet.export.file_builder import FileBuilder
from keras_dsnet.export.flatbuffer import pack, parse
from keras_dsnet.export.graph_builder import (
    TensorType,
    add_tensor,
    give_quantized,
    inline,
    multiply_directly,
    take_quantized,
)
from keras_dsnet.export.metadata import add_metadata, add_runtime, describe
from keras_dsnet.export.routed_section import RoutedSection
from keras_dsnet.export.separate_buffers import separate_buffers

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
