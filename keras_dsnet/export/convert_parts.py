"""Converts the parts of a routed file."""

import numpy as np
import tensorflow as tf

from keras_dsnet.export.conversion import convert_traced, trace

# Bytes of constants behind which a conversion begins.
MOST_CONSTANTS = 6e7


def convert_parts(parts, image, quantize=None, images=None, say=print):
    """Returns files that hold a signature, and a graph, for each part: a list of bytes.

    One conversion of many graphs takes half the time of many conversions of one, and many times the
    memory of its constants.

    Args:
        parts: list of `RoutedPart`, each before those that take its features.
        image: `tf.TensorSpec` of the image.
        quantize: as `convert` takes it.
        images: for "int8", list of arrays `[1, height, width, 3]`. A part is measured on what those
            before it make of each of them; where there are several, they take turns.
        say: function that is told how far it is.
    """
    shapes, results, traced, samples, contents = {}, {}, {}, {}, []
    for place, part in enumerate(parts, start=1):
        function, inputs = part.function, {"image": image}
        own = [np.concatenate(images)] if images else []
        if part.name in shapes:
            function, inputs = _with_tuple(function), _features_specs(shapes.pop(part.name))
            own = _turns(results.pop(part.name)) if images else []
        traced[part.name] = trace(_flat(function), inputs)
        if images:
            samples[part.name] = _samples(inputs, own)
            given = _run(function, inputs, own) if part.next else None
        for following in part.next:
            shapes[following] = _features_shapes(traced[part.name])
            if images:
                results.setdefault(following, []).append(given)
        if place == len(parts) or sum(map(_constants, traced.values())) > MOST_CONSTANTS:
            contents.append(convert_traced(traced, quantize, samples or None))
            say(f"converted {place} of {len(parts)} graphs")
            traced, samples = {}, {}
    return contents


def convert_choices(parts, scores, routes):
    """Returns a file with a signature, and a graph, for the bounds and each gate's choice: bytes.

    Args:
        parts: list of `RoutedPart`, the bounds first.
        scores: list of how many scores each slimming head gives.
        routes: int: how many routes there are.
    """
    bounds, *choices = parts
    bound = tf.TensorSpec((len(choices),), tf.int32)
    traced = {bounds.name: trace(bounds.function, {"min_width": bound, "max_width": bound})}
    for part, count in zip(choices, scores):
        inputs = {"scores": tf.TensorSpec((1, count)), "allowed": tf.TensorSpec((routes,), tf.bool)}
        traced[part.name] = trace(part.function, inputs)
    return convert_traced(traced)


def _constants(traced):
    """Returns how many bytes the constants of a graph have."""
    operations = traced.graph.get_operations()
    tensors = [operation.outputs[0] for operation in operations if operation.type == "Const"]
    return sum(tensor.shape.num_elements() * tensor.dtype.size for tensor in tensors)


def _features_specs(shapes):
    return {f"features_{index}": tf.TensorSpec(shape) for index, shape in enumerate(shapes)}


def _features_shapes(traced):
    """Returns the shapes of the features that a part gives."""
    own = traced.structured_outputs
    count = sum(name.startswith("features") for name in own)
    return [own[f"features_{index}"].shape for index in range(count)]


def _with_tuple(function):
    """Returns the function of `features_0`, `features_1`, ... that a part is of a tuple of them."""

    def run(**tensors):
        return function(tuple(tensors[f"features_{index}"] for index in range(len(tensors))))

    return run


def _flat(function):
    """Returns a function whose results have no tuple in them: `features_0`, `features_1`, ..."""

    def run(**tensors):
        results = dict(function(**tensors))
        groups = results.pop("features", ())
        return results | {f"features_{index}": group for index, group in enumerate(groups)}

    return run


def _samples(inputs, own):
    """Returns what yields the inputs of a part, image by image."""

    def samples():
        for index in range(len(own[0])):
            yield {name: array[index : index + 1] for name, array in zip(inputs, own)}

    return samples


def _run(function, inputs, own):
    """Returns the features that a part makes of all images, as arrays."""
    # Not traced: TensorFlow's graph optimiser ends the process on some of these graphs.
    tensors = {name: tf.constant(array) for name, array in zip(inputs, own)}
    return [group.numpy() for group in function(**tensors)["features"]]


def _turns(results):
    """Takes every image from one of several callers, in turn."""
    count = len(results[0][0])
    return [
        np.stack([results[index % len(results)][group][index] for index in range(count)])
        for group in range(len(results[0]))
    ]
