"""Conversion of the parts of a routed file to TFLite graphs."""

import collections
import re
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from keras_dsnet.export import conversion
from keras_dsnet.export.activation_ranges import range_of
from keras_dsnet.export.conversion import convert_traced, trace
from keras_dsnet.export.graphs import Part, RoutedGraphs
from keras_dsnet.export.tflite_model import ImportedGraph, ModelBuilder, parse

# A conversion begins when the graphs that wait for it have more bytes of constants than this.
MOST_CONSTANTS = 6e7


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
    ranges: dict[Part, dict] = collections.defaultdict(dict)
    for number, part in enumerate(running, start=1):
        inputs = _flatten(specs.pop(part))
        traced[part] = trace(_flat(part.function), inputs)
        results = None
        if images:
            made = measured.pop(part)
            arrays = _take_turns(made)
            samples[part] = _samples(inputs, arrays)
            if part is not parts.front and len(made) > 1:
                ranges[part] |= _named("inputs", map(range_of, arrays))
            results = _run(part, inputs, arrays) if part in consumers else None
            if results is not None:
                found = [range_of(group) for group in results]
                ranges[part] |= _named("outputs", found)
        for consumer in consumers.get(part, ()):
            specs[consumer] = _features_specs(traced[part])
            if images:
                measured[consumer].append(results)
                # Replaced where several parts give its features.
                ranges[consumer] |= _named("inputs", found)
        if number == len(running) or sum(map(_constant_bytes, traced.values())) > MOST_CONSTANTS:
            imported |= _convert(builder, traced, quantize, samples, ranges)
            log(f"converted {number} of {len(running)} graphs")
            traced, samples = {}, {}
    if deciding := parts.deciding():
        imported |= _convert(builder, {p: trace(_flat(p.function), p.inputs) for p in deciding})
    for converted in imported.values():
        conversion.restore_multiplications(converted.graph, builder)
    return builder, parts.map(imported.__getitem__)


def _convert(builder, traced, quantize=None, samples=None, ranges=None):
    """Converts traced parts together; returns a dict from `Part` to `ImportedGraph`."""
    content = convert_traced(
        {part.name: function for part, function in traced.items()},
        quantize,
        {part.name: function for part, function in samples.items()} if samples else None,
        {part.name: ranges[part] for part in traced} if ranges else None,
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


def _named(kind, ranges):
    """Returns the ranges of groups of features as `narrow_ranges` takes them."""
    return {(kind, f"features_{index}"): each for index, each in enumerate(ranges)}


def _take_turns(results):
    """Takes the inputs of every image from one of several parts, in turn."""
    if len(results) == 1:
        return results[0]
    count = len(results[0][0])
    return [
        np.stack([results[index % len(results)][group][index] for index in range(count)])
        for group in range(len(results[0]))
    ]
