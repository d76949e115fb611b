"""The TFLite graphs that a routed file is assembled from.

`RoutedParts` defines the functions that a file needs, and `convert_parts` converts them to TFLite
graphs. Both return `RoutedGraphs`, which know the place of each graph in the file.
"""

import collections
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_dsnet.export import conversion
from keras_dsnet.export.block_executor import BlockExecutor
from keras_dsnet.export.confidence import ConfidencePlan, confidence_of
from keras_dsnet.export.conversion import convert_traced, normalise_pixels, trace
from keras_dsnet.export.partition import SectionPlan
from keras_dsnet.export.tflite_model import ImportedGraph, ModelBuilder, parse
from keras_dsnet.models.costs import features_shape
from keras_dsnet.models.dynamic_slimmable_network import DynamicSlimmableNetwork
from keras_dsnet.models.executors import activate
from keras_dsnet.models.path import Path

LOWEST = np.finfo("float32").min
# A conversion begins when the graphs that wait for it have more bytes of constants than this.
MOST_CONSTANTS = 6e7


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
        logits = tf.TensorSpec((1, self._network.classes))
        return (
            Part("tune", self._confidence.tune, {"thresholds": thresholds}),
            Part("confidence", confidence_of, {"logits": logits}),
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
            Dict of `features`, a tuple of one tensor `[1, height, width, channels]`, and `scores`
            `[1, choices]`. Without gates in the file it has no scores.
        """
        if self._raw:
            image = normalise_pixels(image, self._network.normalization, self._integer)
        executor = BlockExecutor(self._network.resolve_path(0), None, self._integer)
        features = executor.run(self._network.sections[0], (image,))
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
            shortcut come last.
        """
        executor = self._executor({section - 1: before, section: width}, entry=section)
        steps = self._network.sections[section]
        groups = [executor.run_first(branch, features) for branch in _branches(steps)]
        return {"features": tuple(itertools.chain.from_iterable(groups))}

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
            Dict of `features` and the `scores` of the next gate, or of `output` and, in a file that
            routes by confidence, of `logits`.
        """
        executor = self._executor({section: width})
        steps = self._network.sections[section]
        if section == 1:
            features = executor.run(steps, features)
        else:
            groups = len(self._plans[section - 1].entry[width])
            features = _run_after_entry(executor, steps, features, groups)
        if section == self._network.num_gates:
            logits = {"logits": features[0]} if self._confidence else {}
            return {"output": self._output(features), **logits}
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
        return BlockExecutor(Path(path, path), group_ends, self._integer, folded_with)

    def _output(self, features):
        network = self._network
        if network.include_top:
            return activate(network.classifier_activation, features[0])
        # Both branches of an `IF` must have outputs of one shape.
        widest = network.resolve_path((self._routes[-1],) * network.num_gates)
        shape = features_shape(network.sections, widest, network.input_shape[1:])
        missing = shape[-1] - sum(group.shape[-1] for group in features)
        features = tf.concat(features, -1)
        return tf.pad(features, [[0, 0]] * (features.shape.rank - 1) + [[0, missing]])


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
    x = executor.run(steps[1:rest], x)
    return executor.run(steps[rest:], executor.regroup(steps[0], x))


def convert_parts(
    parts: RoutedGraphs,
    quantize: str | None = None,
    images: Sequence[np.ndarray] | None = None,
    log: Callable = lambda message: None,
) -> tuple[ModelBuilder, RoutedGraphs]:
    """Converts every part to a TFLite graph.

    Converting graphs together halves the time but multiplies peak memory, so batches are capped by
    the bytes of their constants.

    Args:
        parts: `RoutedGraphs` of `Part`s.
        quantize: String or None, as of `convert`.
        images: For "int8", list of arrays `[1, height, width, 3]`. The ranges of a part are
            measured on the features that earlier parts make of each image; where several parts give
            its features, they take turns.
        log: Function that is called with a message after each conversion.

    Returns:
        Tuple of the `ModelBuilder` that imported the graphs, and `RoutedGraphs` of
        `ImportedGraph`s.
    """
    builder = ModelBuilder()
    imported: dict[Part, ImportedGraph] = {}
    running, consumers = list(parts.running()), dict(parts.consumers())
    specs = {parts.front: parts.front.inputs}
    # For int8, the arrays that each producer of a part's features has made.
    measured: dict[Part, list] = collections.defaultdict(list)
    if images:
        measured[parts.front].append([np.concatenate(images)])
    traced, samples = {}, {}
    for number, part in enumerate(running, start=1):
        inputs = _flatten(specs.pop(part))
        traced[part] = trace(_flat(part.function), inputs)
        results = None
        if images:
            arrays = _take_turns(measured.pop(part))
            samples[part] = _samples(inputs, arrays)
            results = _run(part, inputs, arrays) if part in consumers else None
        for consumer in consumers.get(part, ()):
            specs[consumer] = _features_specs(traced[part])
            if images:
                measured[consumer].append(results)
        if number == len(running) or sum(map(_constant_bytes, traced.values())) > MOST_CONSTANTS:
            imported |= _convert(builder, traced, quantize, samples)
            log(f"converted {number} of {len(running)} graphs")
            traced, samples = {}, {}
    if deciding := parts.deciding():
        imported |= _convert(builder, {p: trace(_flat(p.function), p.inputs) for p in deciding})
    for converted in imported.values():
        conversion.restore_multiplications(converted.graph, builder)
    return builder, parts.map(imported.__getitem__)


def _convert(builder, traced, quantize=None, samples=None):
    """Converts traced parts together; returns a dict from `Part` to `ImportedGraph`."""
    content = convert_traced(
        {part.name: function for part, function in traced.items()},
        quantize,
        {part.name: function for part, function in samples.items()} if samples else None,
    )
    graphs = builder.import_model(parse(content))
    for converted in graphs.values():
        converted.inputs, converted.outputs = _nest(converted.inputs), _nest(converted.outputs)
    return {part: graphs[part.name] for part in traced}


def _flat(function):
    """Returns a function whose arguments and results are flat, as those of a signature must be."""

    def run(**tensors):
        return _flatten(function(**_nest(tensors)))

    return run


def _flatten(tensors):
    """Replaces each tuple in a dict by entries `name_0`, `name_1`, ...; see `_nest`."""
    flat = {}
    for name, value in tensors.items():
        if isinstance(value, tuple):
            flat |= {f"{name}_{index}": element for index, element in enumerate(value)}
        else:
            flat[name] = value
    return flat


def _nest(tensors):
    """Undoes `_flatten`."""
    nested, tuples = {}, collections.defaultdict(dict)
    for name, value in tensors.items():
        if match := re.fullmatch(r"(.+)_(\d+)", name):
            tuples[match[1]][int(match[2])] = value
        else:
            nested[name] = value
    for name, elements in tuples.items():
        nested[name] = tuple(elements[index] for index in sorted(elements))
    return nested


def _features_specs(traced):
    """Returns the inputs of a part that takes the features of a traced one."""
    features = _nest(traced.structured_outputs)["features"]
    return {"features": tuple(tf.TensorSpec(group.shape) for group in features)}


def _constant_bytes(traced):
    """Returns the number of bytes of a traced function's constants."""
    operations = traced.graph.get_operations()
    tensors = [operation.outputs[0] for operation in operations if operation.type == "Const"]
    return sum(tensor.shape.num_elements() * tensor.dtype.size for tensor in tensors)


def _samples(inputs, arrays):
    """Returns a function that yields the inputs of a part, image by image."""

    def samples():
        for index in range(len(arrays[0])):
            yield {name: array[index : index + 1] for name, array in zip(inputs, arrays)}

    return samples


def _run(part, inputs, arrays):
    """Returns the features that a part makes of all images, as arrays."""
    # Not traced: TensorFlow's graph optimiser crashes the process on some of these graphs.
    tensors = {name: tf.constant(array) for name, array in zip(inputs, arrays)}
    return [group.numpy() for group in part.function(**_nest(tensors))["features"]]


def _take_turns(results):
    """Takes the inputs of every image from one of several parts, in turn."""
    if len(results) == 1:
        return results[0]
    count = len(results[0][0])
    return [
        np.stack([results[index % len(results)][group][index] for index in range(count)])
        for group in range(len(results[0]))
    ]
