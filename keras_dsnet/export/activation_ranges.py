"""Ranges of the activations of an int8 file.

The converter's own ranges go from the least to the largest value of all images. Few values are near
these ends, and a wide range makes the 255 steps of int8 coarse for all others. `narrow_ranges`
narrows each range to the one with the least mean absolute error. The squared error would count the
few large values most, so that a network with heavy tails kept coarse steps for all others.
"""

import collections
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from keras_dsnet.export.packing import pack
from keras_dsnet.export.tflite_model import Builtin, builtin_code, parse

# More images change the ranges little and take longer.
MOST_IMAGES = 128
# Values of an activation that are kept of each image.
_VALUES = 2048
# Each of the 255 steps has several bins, also where the range is a fiftieth of the measured one.
_BINS = 65536
_STEPS = 255
# The shares of an end of the measured range that are tried.
_SHARES = np.geomspace(1, 0.02, 80)
# A wider range is preferred up to this factor of the least error: other images have other values.
_SLACK = 1.05
# The converter gives the inputs and outputs of these operators one range.
_SAME_RANGE = {
    Builtin.CONCATENATION,
    Builtin.MAX_POOL_2D,
    Builtin.PAD,
    Builtin.RESHAPE,
    Builtin.RESIZE_BILINEAR,
    Builtin.SLICE,
    Builtin.SPLIT,
    Builtin.SPLIT_V,
    Builtin.SQUEEZE,
    Builtin.STRIDED_SLICE,
    Builtin.TRANSPOSE,
}


def narrow_ranges(
    content: bytes,
    samples: dict[str, Callable[[], Iterable[dict]]],
    passed: Mapping[str, Mapping[tuple[str, str], tuple[float, float]]] | None = None,
) -> bytes:
    """Narrows the ranges of activations where that lowers their mean absolute error.

    The error is that of rounding and of cutting off values. Where only Swish reads an activation,
    the error is that of Swish. Inputs and outputs of a graph keep their ranges, except for those
    that graphs pass on to each other, on whose ranges both must agree.

    Args:
        content: Bytes of a calibrated TFLite file, still in float.
        samples: Dict from signature to a function that returns an iterator of its inputs, dicts of
            arrays. At most 128 of them are run.
        passed: Dict from signature to the ranges `(low, high)` of what graphs pass on to each
            other, by `("inputs", name)` or `("outputs", name)`. Defaults to none.

    Returns:
        The bytes of the changed file.
    """
    passed = passed or {}
    model = parse(content)
    for signature in model.signatureDefs:
        name = signature.signatureKey.decode()
        graph = model.subgraphs[signature.subgraphIndex]
        ends = {
            end.tensorIndex: passed.get(name, {}).get((kind, end.name.decode()))
            for kind in ("inputs", "outputs")
            for end in getattr(signature, kind)
        }
        groups = _groups(graph, model, {index for index, given in ends.items() if given is None})
        values = _values(content, name, signature.subgraphIndex, groups, samples[name])
        readers = _readers(graph, model)
        for group, sources in groups:
            if given := [ends[index] for index in group if index in ends]:
                lows, highs = zip(*given)
                _set_range(graph, group, min(lows), max(highs))
                continue
            kinds = {kind for index in group for kind in readers[index]}
            is_swish = kinds == {Builtin.LOGISTIC, Builtin.MUL}
            _narrow(graph, group, [values[index] for index in sources], is_swish)
    return pack(model)


def range_of(images: np.ndarray) -> tuple[float, float]:
    """Returns the range of features that graphs pass on to each other.

    Args:
        images: Array `[images, ...]` of the features of each image.

    Returns:
        Tuple `(low, high)`, as of `best_range`.
    """
    places = _places(len(images))
    values = np.concatenate([_some_values(images[place], place) for place in places])
    low, high = min(0.0, float(images.min())), max(0.0, float(images.max()))
    return best_range(values, low, high) if low < high else (low, high)


def _groups(graph, model, ends):
    """Returns the activations that have one range together, without those of some ends.

    Args:
        graph: `schema.SubGraphT`.
        model: `schema.ModelT`.
        ends: Set of tensor indices, inputs and outputs whose ranges stay.

    Returns:
        List of tuples: the tensor indices of a group, and those among them that are not made from
        others of the group.
    """
    parents = {
        index: index for index, tensor in enumerate(graph.tensors) if _is_measured(tensor, model)
    }

    def root(index):
        while parents[index] != index:
            index = parents[index]
        return index

    made = set()
    for operator in graph.operators:
        if builtin_code(model.operatorCodes[operator.opcodeIndex]) in _SAME_RANGE:
            made.update(operator.outputs)
            tensors = [i for i in (*operator.outputs, *operator.inputs) if i in parents]
            for index in tensors[1:]:
                parents[root(index)] = root(tensors[0])
    groups = collections.defaultdict(list)
    for index in parents:
        groups[root(index)].append(index)
    return [
        (group, [index for index in group if index not in made])
        for group in groups.values()
        if not ends.intersection(group)
    ]


def _is_measured(tensor, model):
    """Returns whether a tensor is a float activation whose range has been measured."""
    quantization, data = tensor.quantization, model.buffers[tensor.buffer].data
    has_range = quantization is not None and quantization.min is not None
    is_constant = data is not None and len(data) > 0
    return tensor.type == schema.TensorType.FLOAT32 and has_range and not is_constant


def _readers(graph, model):
    """Returns a dict from tensor index to the kinds of the operators that read the tensor."""
    readers: dict[int, set] = collections.defaultdict(set)
    for operator in graph.operators:
        for index in operator.inputs:
            readers[index].add(builtin_code(model.operatorCodes[operator.opcodeIndex]))
    return readers


def _values(content, name, number, groups, samples):
    """Runs a signature; returns a dict from tensor index to an array of some of its values."""
    # Delegates hide the activations between their operators. An interpreter of its own for each
    # signature frees the memory of the signature before.
    interpreter = Interpreter(
        model_content=content,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    runner = interpreter.get_signature_runner(name)
    values: dict[int, list] = {index: [] for _, sources in groups for index in sources}
    samples = list(samples())
    for place in _places(len(samples)):
        runner(**samples[place])
        for index, kept in values.items():
            kept.append(_some_values(interpreter.get_tensor(index, number), place))
    return {index: np.concatenate(kept) for index, kept in values.items()}


def _places(count):
    """Returns the places of the images that are looked at, evenly: they may be sorted by class."""
    return np.unique(np.linspace(0, count - 1, MOST_IMAGES).astype(int))


def _some_values(activation, place):
    values = activation.ravel()
    if len(values) <= _VALUES:
        return values
    generator = np.random.default_rng([place, len(values)])
    return values[generator.integers(0, len(values), _VALUES)]


def _narrow(graph, group, values, is_swish):
    """Sets the range of a group of tensors."""
    ranges = [graph.tensors[index].quantization for index in group]
    low = min(0.0, *(float(each.min[0]) for each in ranges))
    high = max(0.0, *(float(each.max[0]) for each in ranges))
    if not values or not low < high or not np.isfinite([low, high]).all():
        return
    _set_range(graph, group, *best_range(np.concatenate(values), low, high, is_swish))


def _set_range(graph, group, low, high):
    for index in group:
        quantization = graph.tensors[index].quantization
        quantization.min, quantization.max = np.float32([low]), np.float32([high])


def best_range(
    values: np.ndarray, low: float, high: float, is_swish: bool = False
) -> tuple[float, float]:
    """Returns a range of int8 with nearly the least mean absolute error of some values.

    Args:
        values: Array of floats.
        low: Least end of the range, at most 0.
        high: Largest end of the range, at least 0.
        is_swish: Boolean, whether the error is that of Swish of the values. Defaults to `False`.

    Returns:
        Tuple `(low, high)`, a range that contains 0.
    """
    lowest, highest = low, high
    counts, edges = np.histogram(values, _BINS, (low, high))
    occupied = counts > 0
    if not occupied.any():
        return low, high
    centres = ((edges[1:] + edges[:-1]) / 2)[occupied]
    shares = counts[occupied] / counts.sum()
    function = _swish if is_swish else _identity
    results = function(centres)

    def error(low, high):
        step = (high - low) / _STEPS
        zero = np.rint(low / step)
        # Many activations are near zero, which int8 holds exactly.
        rounded = np.clip(np.rint(centres / step), zero, zero + _STEPS) * step
        return np.abs(function(rounded) - results) @ shares

    # Each end depends little on the other.
    for _ in range(2):
        high = _widest(highest * _SHARES, [error(low, end) for end in highest * _SHARES])
        low = _widest(lowest * _SHARES, [error(end, high) for end in lowest * _SHARES])
    return float(low), float(high)


def _widest(ends, errors):
    """Returns the first of some ends of a range whose error is near the least."""
    return ends[np.argmax(np.array(errors) <= _SLACK * min(errors))]


def _identity(values):
    return values


def _swish(values):
    return values / (1 + np.exp(-np.clip(values, -50, 50)))
