"""The TFLite graphs that a routed file is assembled from."""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_dsnet.export.block_executor import BlockExecutor, enter, leave
from keras_dsnet.export.conversion import convert_traced, trace
from keras_dsnet.models.costs import features_shape
from keras_dsnet.models.executors import activate
from keras_dsnet.models.path import Path

LOWEST = np.finfo("float32").min


@dataclasses.dataclass(frozen=True)
class RoutedPart:
    """A function that becomes a graph of a routed file.

    Args:
        name: str, of the graph.
        section: int.
        function: of `features`, a tuple of tensors; the front's of `image`. Returns a dict:
            `features`, a tuple of tensors, or, of the last section, `output`; and `scores` where a
            gate follows. For what choices take and return see `RoutedParts`.
        before: width of the section before, for the layers that see it; None: for all others.
        width: of the section; None: of the front and of choices, which have none.
        next: names of the parts that take the features.
    """

    name: str
    section: int
    function: Callable
    before: int | None = None
    width: int | None = None
    next: tuple = ()


class RoutedParts:
    """What a routed file is made of, for one network.

    The front ends with the first gate. What follows a gate is a section, and there is a graph for
    each width of it. From the second section on, the first layers see the width before, too: the
    section's entry has a graph for every pair of widths, and the rest of it one for every width.
    So every path can be taken, and no graph is there for a path.

    Args:
        network: a `DynamicSlimmableNetwork`.
        routes: tuple of candidate widths, ascending.
        plans: for each gate a `SectionPlan`; for the front alone, and choices, None will do.
        integer: bool: for an int8 file.
        raw: bool: images are uint8 pixels, which the front normalises.
    """

    def __init__(self, network, routes, plans=None, integer=False, raw=False):
        self._network = network
        self._routes = routes
        self._plans = plans
        self._integer = integer
        self._raw = raw

    def front(self, image):
        """Runs everything up to the first gate, and the gate.

        Args:
            image: `[1, height, width, 3]`: float32, preprocessed; or raw, uint8.

        Returns:
            Dict of `features`, a tuple of one tensor `[1, height, width, channels]`, and `scores`.
        """
        if self._raw:
            image = normalise_pixels(image, self._network.normalization, self._integer)
        executor = BlockExecutor(self._network.resolve_path(0), None, self._integer)
        features = executor.run(self._network.sections[0], (image,))
        return {"features": features, "scores": executor.scores[0]}

    def allow(self, min_width, max_width):
        """Returns which routes each gate may choose: `allowed_1`, ..., bool `[routes]`.

        Bounds that hold no route allow the nearest route above, else the widest.

        Args:
            min_width: int32 `[num_gates]`.
            max_width: int32 `[num_gates]`.
        """
        low, high = min_width[:, None], max_width[:, None]
        routes = tf.constant(self._routes, tf.int32)
        allowed = tf.logical_and(routes >= low, routes <= high)
        below = tf.reduce_sum(tf.cast(routes < low, tf.int32), 1, keepdims=True)
        nearest = tf.range(len(self._routes)) == tf.minimum(below, len(self._routes) - 1)
        allowed = tf.where(tf.reduce_any(allowed, 1, keepdims=True), allowed, nearest)
        names = [f"allowed_{gate + 1}" for gate in range(self._network.num_gates)]
        return dict(zip(names, tf.unstack(allowed, self._network.num_gates)))

    def choose(self, gate, scores, allowed):
        """Returns what a gate chooses: `position` among the routes, int32 `[1]`.

        Args:
            gate: int.
            scores: `[1, choices]`.
            allowed: bool `[routes]`.
        """
        layer = self._network.slimming_gates[gate]
        scores = layer.route_scores(tf.cast(scores, tf.float32), self._routes)
        scores = tf.where(allowed, scores, LOWEST)
        return {"position": tf.argmax(scores, 1, output_type=tf.int32)}

    def parts(self):
        """Yields every `RoutedPart` that runs layers, each before those that take its features."""
        yield RoutedPart("front", 0, self.front, next=self._names(1))
        for section in range(1, self._network.num_gates + 1):
            if section > 1:
                for before, width in itertools.product(self._routes, self._routes):
                    yield self._entry(section, before, width)
            for width in self._routes:
                yield self._rest(section, width)

    def choices(self):
        """Yields the `RoutedPart` of the bounds, then for every gate the one that chooses."""
        yield RoutedPart("allow", 0, self.allow)
        for gate in range(self._network.num_gates):
            yield RoutedPart(f"choose_{gate + 1}", gate, functools.partial(self.choose, gate))

    def _names(self, section, before=None):
        """Returns the names of the parts that a section begins with, behind a width."""
        return tuple(self._name(section, width, before) for width in self._routes)

    def _name(self, section, width, before=None):
        """Returns `route_0` with one gate, else `gate_2_route_0` or `gate_2_route_1_to_0`."""
        place = self._routes.index(width)
        name = f"route_{place}"
        if before is not None:
            name = f"route_{self._routes.index(before)}_to_{place}"
        return name if self._network.num_gates == 1 else f"gate_{section}_{name}"

    def _executor(self, widths, entry=None):
        """Returns what runs sections at these widths; the others are not run.

        Args:
            widths: dict from section to width.
            entry: the section whose first convolutions are run alone; None: none.
        """
        sections = range(1, self._network.num_gates + 1)
        path = (0, *(widths.get(section, 0) for section in sections))
        cuts, rows = {}, {}
        for section, width in widths.items():
            plan, steps = self._plans[section - 1], self._network.sections[section]
            cuts |= plan.of_layers(steps, width, section == entry)
            rows |= plan.rows_of_layers(steps, width, section == entry)
        return BlockExecutor(Path(path, path), cuts, self._integer, rows)

    def _entry(self, section, before, after):
        def run(features):
            executor = self._executor({section - 1: before, section: after}, section)
            return {"features": enter(executor, self._network.sections[section], features)}

        name = self._name(section, after, before)
        return RoutedPart(name, section, run, before, after, (self._name(section, after),))

    def _rest(self, section, width):
        network = self._network
        last = section == network.num_gates

        def run(features):
            executor = self._executor({section: width})
            steps = network.sections[section]
            if section == 1:
                features = executor.run(steps, features)
            else:
                groups = len(self._plans[section - 1].entry[width])
                features = leave(executor, steps, features, groups)
            if last:
                return {"output": self._output(features)}
            return {"features": features, "scores": executor.scores[0]}

        following = () if last else self._names(section + 1, width)
        return RoutedPart(self._name(section, width), section, run, None, width, following)

    def _output(self, features):
        network = self._network
        if network.include_top:
            return activate(network.classifier_activation, features[0])
        # Every branch of a file has outputs of the same shape.
        widest = network.resolve_path((self._routes[-1],) * network.num_gates)
        shape = features_shape(network.sections, widest, network.input_shape[1:])
        missing = shape[-1] - sum(group.shape[-1] for group in features)
        features = tf.concat(features, -1)
        return tf.pad(features, [[0, 0]] * (features.shape.rank - 1) + [[0, missing]])


def normalise_pixels(image, normalization, integer):
    """Normalises pixels by a depthwise convolution, which int8 has for three channels too.

    Args:
        image: uint8 `[1, height, width, 3]`.
        normalization: a `Normalization`.
        integer: bool: for an int8 file.

    Returns:
        float32 of the same shape.
    """
    image = tf.cast(image, tf.float32)
    if integer:
        # Pixels are int8 as they are: one step each.
        image = tf.quantization.fake_quant_with_min_max_args(image, 0, 255)
    std = np.array(normalization.std, "float32")
    offset = -np.array(normalization.mean, "float32") / std
    kernel = tf.constant((1 / (255 * std)).reshape(1, 1, 3, 1))
    return tf.nn.depthwise_conv2d(image, kernel, [1, 1, 1, 1], "VALID") + offset


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
