"""The TFLite graphs that a routed file is assembled from.

`RoutedParts` defines the functions that a file needs, and `convert_graphs.convert_parts` converts
them to TFLite graphs. Both return `RoutedGraphs`, which know the place of each graph in the file.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_dsnet.export.block_executor import BlockExecutor
from keras_dsnet.export.confidence import ConfidencePlan
from keras_dsnet.export.conversion import normalise_pixels
from keras_dsnet.export.file_task import task_of
from keras_dsnet.export.partition import SectionPlan
from keras_dsnet.models.dynamic_slimmable_network import DynamicSlimmableNetwork
from keras_dsnet.models.path import Path

LOWEST = np.finfo("float32").min


@dataclasses.dataclass(frozen=True)
class SectionGraphs:
    """The graphs of one section: of the layers between two gates, or after the last gate.

    Args:
        entries: Dict from `(width before, width)` to the graph of the first convolutions. It is
            empty for the first section, which has the same channels before it at every width.
        rest: Dict from width to the graph of the other layers.
    """

    entries: dict
    rest: dict

    def map(self, function: Callable) -> "SectionGraphs":
        """Applies a function to each graph, and returns the results in the same arrangement."""
        return SectionGraphs(
            entries={widths: function(graph) for widths, graph in self.entries.items()},
            rest={width: function(graph) for width, graph in self.rest.items()},
        )


@dataclasses.dataclass(frozen=True)
class RoutedGraphs:
    """The graphs of a routed file: a `Part` each before conversion, then an `ImportedGraph` each.

    The front ends with the first gate. A section follows each gate, with a graph for every width.
    From the second section on, the first convolutions depend on the width before, too, so they have
    separate graphs for every pair of widths. So the file can run every path without a graph per
    path.

    Args:
        front: The graph from the image to the first gate.
        sections: Tuple with a `SectionGraphs` for each gate.
        allow: The graph that turns the bounds of the gates into masks, or None.
        choices: Tuple with the graph that chooses a route, for each gate. It is empty in a file
            that routes by confidence without gates, which has one section for all layers after the
            front.
        tune: The graph that turns thresholds into limits of confidence. None in a file that routes
            only by its gates.
        confidence: The graph that computes the confidence from logits, or None.
    """

    front: Any
    sections: tuple
    allow: Any
    choices: tuple
    tune: Any = None
    confidence: Any = None

    def running(self) -> Iterator:
        """Yields the graphs that run layers, each after those whose features it takes."""
        yield self.front
        for section in self.sections:
            yield from section.entries.values()
            yield from section.rest.values()

    def consumers(self) -> Iterator[tuple[Any, list]]:
        """Yields each graph that has features as outputs, with the graphs that take them."""
        yield self.front, list(self.sections[0].rest.values())
        for section, following in itertools.zip_longest(self.sections, self.sections[1:]):
            for (_, width), entry in section.entries.items():
                yield entry, [section.rest[width]]
            if following:
                for width, rest in section.rest.items():
                    entries = following.entries.items()
                    yield rest, [entry for (before, _), entry in entries if before == width]

    def deciding(self) -> list:
        """Returns the graphs that run no layers but decide which of the others run."""
        graphs = (self.allow, *self.choices, self.tune, self.confidence)
        return [graph for graph in graphs if graph is not None]

    def map(self, function: Callable) -> "RoutedGraphs":
        """Applies a function to each graph, and returns the results in the same arrangement."""
        allow, tune, confidence = (
            None if graph is None else function(graph)
            for graph in (self.allow, self.tune, self.confidence)
        )
        return RoutedGraphs(
            front=function(self.front),
            sections=tuple(section.map(function) for section in self.sections),
            allow=allow,
            choices=tuple(map(function, self.choices)),
            tune=tune,
            confidence=confidence,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A function that becomes a graph of a routed file.

    Args:
        name: String, unique name of the graph.
        function: Function of the inputs by name. It returns a dict of tensors and tuples of
            tensors.
        inputs: Dict of `tf.TensorSpec`, or None: the only input is `features`, a tuple of tensors
            that other parts give.
    """

    name: str
    function: Callable
    inputs: dict | None = None


class RoutedParts:
    """The functions of a routed file, for one network.

    Args:
        network: `DynamicSlimmableNetwork`.
        routes: Tuple of candidate widths, ascending.
        plans: Tuple with a `SectionPlan` for each gate. Defaults to None, with which the functions
            of the sections cannot be called.
        integer: Boolean, whether the file is int8. Defaults to `False`.
        raw: Boolean, whether images are uint8 pixels, which the front normalises. Defaults to
            `False`.
        shape: `(height, width, 3)`. Defaults to the network's.
        confidence: `ConfidencePlan`. Defaults to None for a file that routes only by its gates.
    """

    def __init__(
        self,
        network: DynamicSlimmableNetwork,
        routes: Sequence[int],
        plans: Sequence[SectionPlan] | None = None,
        integer: bool = False,
        raw: bool = False,
        shape: Sequence[int] | None = None,
        confidence: ConfidencePlan | None = None,
    ):
        self._network = network
        self._routes = routes
        self._plans = plans
        self._integer = integer
        self._raw = raw
        self._shape = shape or network.input_shape[1:]
        self._confidence = confidence
        self._task = task_of(network)
        self._has_gates = confidence is None or bool(confidence.gate_routes)

    def graphs(self) -> RoutedGraphs:
        """Returns the `RoutedGraphs` of the file, with a `Part` for each graph."""
        num_gates, num_routes = self._network.num_gates, len(self._routes)
        image = tf.TensorSpec((1, *self._shape), tf.uint8 if self._raw else tf.float32)
        bound = tf.TensorSpec((num_gates,), tf.int32)
        mask = tf.TensorSpec((num_routes,), tf.bool)
        allow = Part("allow", self.allow, {"min_width": bound, "max_width": bound})
        front = Part("front", self.front, {"image": image})
        if not self._has_gates:
            return RoutedGraphs(front, (self._steps(),), allow, (), *self._confidence_parts())
        choices = []
        for gate, layer in enumerate(self._network.slimming_gates):
            scores = tf.TensorSpec((1, layer.w2.shape[1]))
            inputs = {"scores": scores, "allowed": mask}
            choose = functools.partial(self.choose, gate)
            choices.append(Part(f"choose_{gate + 1}", choose, inputs))
        return RoutedGraphs(
            front,
            tuple(self._section(section) for section in range(1, num_gates + 1)),
            allow,
            tuple(choices),
            *self._confidence_parts(),
        )

    def _confidence_parts(self):
        """Returns the `Part`s `tune` and `confidence`, or nothing without a `ConfidencePlan`."""
        if self._confidence is None:
            return ()
        thresholds = tf.TensorSpec((len(self._confidence.steps) - 1,))
        return (
            Part("tune", self._confidence.tune, {"thresholds": thresholds}),
            Part("confidence", self._task.confidence_of, self._task.confidence_inputs),
        )

    def _steps(self):
        """Returns the `Part`s of all layers after the front, each with one width throughout."""
        return SectionGraphs(
            entries={},
            rest={
                width: Part(f"route_{place}", functools.partial(self._run_step, width))
                for place, width in enumerate(self._routes)
            },
        )

    def _section(self, section):
        """Returns the `Part`s of a section."""
        # The graphs of one gate are `route_0`, ..., those of several gates `gate_2_route_0`, ...
        prefix = "" if self._network.num_gates == 1 else f"gate_{section}_"
        entries, rest = {}, {}
        for place, width in enumerate(self._routes):
            run = functools.partial(self._run_rest, section, width)
            rest[width] = Part(f"{prefix}route_{place}", run)
        if section > 1:
            pairs = itertools.product(enumerate(self._routes), repeat=2)
            for (place_before, before), (place, width) in pairs:
                run = functools.partial(self._run_entry, section, before, width)
                name = f"{prefix}route_{place_before}_to_{place}"
                entries[before, width] = Part(name, run)
        return SectionGraphs(entries, rest)

    def front(self, image: tf.Tensor) -> dict:
        """Runs everything up to the first gate, and the gate.

        Args:
            image: `[1, height, width, 3]`, float32 and preprocessed, or uint8 if `raw`.

        Returns:
            Dict of `features`, a tuple of tensors `[1, height, width, channels]`, and `scores`
            `[1, choices]`. Without gates in the file it has no scores.
        """
        if self._raw:
            image = normalise_pixels(image, self._network.normalization, self._integer)
        executor = BlockExecutor(self._network.resolve_path(0), None, self._integer)
        features = self._task.run_section(executor, 0, (image,))
        if not self._has_gates:
            return {"features": features}
        return {"features": features, "scores": executor.scores[0]}

    def allow(self, min_width: tf.Tensor, max_width: tf.Tensor) -> dict:
        """Computes which routes each gate may choose.

        Bounds without a route between them allow the nearest route above, else the widest.

        Args:
            min_width: int32 `[num_gates]`.
            max_width: int32 `[num_gates]`.

        Returns:
            Dict of `allowed`, a tuple with a mask, bool `[routes]`, for each gate. In a file that
            routes by confidence, see `ConfidencePlan.bound`.
        """
        if self._confidence:
            return self._confidence.bound(min_width, max_width)
        low, high = min_width[:, None], max_width[:, None]
        routes = tf.constant(self._routes, tf.int32)
        allowed = tf.logical_and(routes >= low, routes <= high)
        below = tf.reduce_sum(tf.cast(routes < low, tf.int32), 1, keepdims=True)
        nearest = tf.range(len(self._routes)) == tf.minimum(below, len(self._routes) - 1)
        allowed = tf.where(tf.reduce_any(allowed, 1, keepdims=True), allowed, nearest)
        return {"allowed": tuple(tf.unstack(allowed, self._network.num_gates))}

    def choose(self, gate: int, scores: tf.Tensor, allowed: tf.Tensor) -> dict:
        """Chooses a route at a gate.

        Args:
            gate: Integer.
            scores: `[1, choices]`.
            allowed: Boolean tensor `[routes]`.

        Returns:
            Dict of `position`, the index of the chosen one among the routes, int32 `[1]`.
        """
        layer = self._network.slimming_gates[gate]
        scores = layer.route_scores(tf.cast(scores, tf.float32), self._routes)
        scores = tf.where(allowed, scores, LOWEST)
        return {"position": tf.argmax(scores, 1, output_type=tf.int32)}

    def _run_entry(self, section, before, width, features):
        """Runs the first convolutions of a section on the features of the width before.

        Returns:
            Dict of `features`: the groups of all that the rest of the section needs. Those of a
            shortcut come after those of the branch. What later sections need comes last.
        """
        executor = self._executor({section - 1: before, section: width}, entry=section)
        steps = self._network.sections[section]
        end = len(features) - self._task.num_passed(section)
        groups = [executor.run_first(branch, features[:end]) for branch in _branches(steps)]
        return {"features": (*itertools.chain.from_iterable(groups), *features[end:])}

    def _run_step(self, width, features):
        """Runs all layers after the front at one width; returns what `_run_rest` returns last."""
        results = self._run_rest(1, width, features)
        for section in range(2, self._network.num_gates + 1):
            entered = self._run_entry(section, width, width, results["features"])
            results = self._run_rest(section, width, entered["features"])
        return results

    def _run_rest(self, section, width, features):
        """Runs the layers of a section, after its entry if it has one.

        Returns:
            Dict of `features` and the `scores` of the next gate, or of the results of the task.
        """
        executor = self._executor({section: width})
        if section > 1:
            executor.entered = len(self._plans[section - 1].entry[width])
        features = self._task.run_section(executor, section, features)
        if section == self._network.num_gates:
            by_confidence = self._confidence is not None
            raw_int8 = self._raw and self._integer
            return self._task.finish(features, self._routes[-1], by_confidence, raw_int8)
        return {"features": features, "scores": executor.scores[0]}

    def _executor(self, widths, entry=None):
        """Returns the executor of sections at the given widths.

        Args:
            widths: Dict from section to width.
            entry: Integer, the section of which only the first convolutions will run, or None.
        """
        sections = range(1, self._network.num_gates + 1)
        path = (0, *(widths.get(section, 0) for section in sections))
        group_ends, folded_with = {}, {}
        for section, width in widths.items():
            plan = self._plans[section - 1]
            group_ends |= plan.of_layers(width, section == entry)
            folded_with |= plan.folded_with(width, section == entry)
        return _SectionExecutor(Path(path, path), group_ends, self._integer, folded_with)


class _SectionExecutor(BlockExecutor):
    """Runs a section, of which the first convolutions may have run in another graph.

    Attributes:
        entered: Integer, the number of channel groups that each of these convolutions has given, or
            None if they have not run.
    """

    entered: int | None = None

    def run(self, steps, x):
        if self.entered is None:
            return super().run(steps, x)
        groups, self.entered = self.entered, None
        return _run_after_entry(self, list(steps), x, groups)


def _branches(steps):
    """Returns the lists of steps that begin with a convolution of the section's entry."""
    first = steps[0]
    return (first.branch, first.shortcut) if first.kind == "residual" else (steps,)


def _run_after_entry(executor, steps, features, groups):
    """Runs a section without its first convolutions, which gave `groups` channel groups each."""
    first = steps[0]
    if first.kind != "residual":
        return _run_after_first(executor, steps, features)
    branch = _run_after_first(executor, first.branch, features[:groups])
    shortcut = _run_after_first(executor, first.shortcut, features[groups:])
    return executor.run(steps[1:], executor.add(first, branch, shortcut))


def _run_after_first(executor, steps, x):
    """Runs all steps but the first, a convolution. Its norm still runs on the entry's groups."""
    rest = 1 + (len(steps) > 1 and steps[1].kind == "norm")
    if rest > 1 and steps[1].is_batch_norm:
        # It is folded into the convolution, which ran in the graph of the entry.
        executor.fold(steps[0].layer, steps[1])
    x = executor.run(steps[1:rest], x)
    return executor.run(steps[rest:], executor.regroup(steps[0], x))
