"""The graphs behind one gate of a routed file, and the operators that call them."""

import copy
import dataclasses

from keras_dsnet.export.graph_builder import copy_tensor, inline


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
