"""Costs of a path: multiply-adds, parameters, output shapes."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_dsnet.layers.double_headed_gate import NUM_REGIONS, region_edges
from keras_dsnet.layers.sliced_conv2d import padded_size
from keras_dsnet.layers.slicing import option_at
from keras_dsnet.models.arguments import resolve_image_shape
from keras_dsnet.models.path import Path
from keras_dsnet.models.topology import Executor


class CostCounter(Executor):
    """Runs steps over shapes `(height, width, channels)` and counts the costs of one image.

    Args:
        path: A `Path` of Python ints.

    Attributes:
        madds: Int, multiply-adds of convolutions and linear layers, without the slimming heads.
        attention: Int, the part of `madds` in the attention heads.
        pooling: Int, input elements of all average pools, which the paper's count includes.
        slimming: Int, multiply-adds of the slimming heads, with the input elements of the means of
            regions.
        parameters: Int, trainable parameters that the path uses, without the slimming heads.
    """

    def __init__(self, path: Path):
        self.path = path
        self.madds = self.attention = self.pooling = self.slimming = self.parameters = 0

    def _spatial(self, layer, shape):
        size = (layer.padding, layer.kernel_size, layer.strides)
        return tuple(padded_size(side, *size) for side in shape[:2])

    def conv(self, step, shape):
        layer = step.layer
        height, width = self._spatial(layer, shape)
        channels = option_at(layer.filters, self.path.widths[step.section])
        weights = layer.kernel_size**2 * shape[2] * channels
        self.madds += height * width * weights
        self.parameters += weights + channels * layer.use_bias
        return height, width, channels

    def depthwise(self, step, shape):
        layer = step.layer
        height, width = self._spatial(layer, shape)
        weights = layer.kernel_size**2 * shape[2]
        self.madds += height * width * weights
        self.parameters += weights + shape[2] * layer.use_bias
        return height, width, shape[2]

    def norm(self, step, shape):
        self.parameters += 2 * shape[2]
        return shape

    def gate(self, step, shape):
        layer, channels = step.layer, shape[2]
        encoder = channels * layer.hidden_units
        if layer.attention:
            self.pooling += _elements(shape)
            self.madds += 2 * encoder
            self.attention += 2 * encoder
            self.parameters += 2 * encoder + layer.hidden_units + channels
        if step.is_slimming_gate:
            scores = 1 if layer.slimming_head == "scalar" else layer.num_choices
            separate_encoder = not (layer.attention and layer.share_encoder)
            self.slimming += layer.hidden_units * scores + encoder * separate_encoder
            if not layer.attention:
                self.slimming += _elements(shape)  # else the attention head pools for both
            if layer.encoder == "regions":
                self.slimming += NUM_REGIONS * encoder + _elements_of_regions(shape)
        return shape

    def max_pool(self, step, shape):
        height, width = (-(-side // step.layer.strides[0]) for side in shape[:2])
        return height, width, shape[2]

    def stock(self, step, shape):
        # A layer of several inputs takes a list of shapes.
        batches = [(1, *each) for each in shape] if isinstance(shape, list) else (1, *shape)
        return tuple(step.layer.compute_output_shape(batches)[1:])

    def resize(self, step, shape):
        return *step.size, shape[2]

    def pool(self, step, shape):
        self.pooling += _elements(shape)
        return (shape[2],)

    def global_max_pool(self, step, shape):
        # A maximum takes comparisons and no multiply-adds.
        return (shape[2],)

    def dropout(self, step, shape):
        return shape

    def dense(self, step, shape):
        units = option_at(step.layer.units, self.path.widths[step.section])
        self.madds += shape[0] * units
        self.parameters += shape[0] * units + units * step.layer.use_bias
        return (units,)

    def add(self, step, shape, shortcut):
        if shape != shortcut:
            raise ValueError(
                "The branch and the shortcut of a residual block must have the same output shape. "
                f"Received: a residual branch gives {shape}, and its shortcut {shortcut}"
            )
        return shape


def _elements_of_regions(shape):
    edges = region_edges(*shape[:2])
    return shape[2] * sum((bottom - top) * (right - left) for top, bottom, left, right in edges)


def count_costs(sections: Sequence, path: Path, image_shape: Sequence[int]) -> CostCounter:
    """Counts the costs of one image along a path.

    Args:
        sections: Tuple of tuples of `Step`.
        path: A `Path` of Python ints.
        image_shape: `(height, width, channels)`, all ints.

    Returns:
        A `CostCounter` that has run all sections.
    """
    counter, shape = CostCounter(path), image_shape
    for steps in sections:
        shape = counter.run(steps, shape)
    return counter


def features_shape(sections: Sequence, path: Path, image_shape: Sequence) -> tuple:
    """Returns the output shape of a network without its top, for one image.

    Args:
        sections: Tuple of tuples of `Step`.
        path: A `Path` of Python ints.
        image_shape: `(height, width, channels)`. If height or width is None, it is None in the
            result too.

    Returns:
        `(height, width, channels)`, or `(channels,)` if the network pools its features.
    """
    counter, shape = CostCounter(path), (*(side or 1 for side in image_shape[:2]), image_shape[2])
    for steps in sections:
        shape = counter.run(steps, shape)
    if len(shape) == 1:
        return shape
    sides = (size if side else None for size, side in zip(shape, image_shape[:2]))
    return (*sides, shape[2])


def _elements(shape):
    height, width, channels = shape
    return height * width * channels


def section_costs(
    network: Any, routes: Sequence[int], input_shape: Sequence[int] | None = None
) -> tuple[int, list[np.ndarray]]:
    """Returns the multiply-adds of every section, as tables indexed by two neighbouring widths.

    The cost of a section depends only on its width and on the width of the section before. The sum
    of the entries along a path is exactly `network.madds(path)`, and the expected cost of soft
    choices is a product of the tables with neighbouring choices.

    Args:
        network: A `DynamicSlimmableNetwork`.
        routes: Tuple of ints, candidate widths.
        input_shape: `(height, width, 3)`. Defaults to the network's.

    Returns:
        `(front, tables)`: an int, the cost of the layers before the first gate, and for each gate
        an int64 array `[widths before, widths]`. The first table has one row, because all routes
        have the same front.

    Raises:
        ValueError: If the size of the images is open, or `input_shape` contradicts the network's.
    """
    input_shape = resolve_image_shape(input_shape, network.input_shape[1:])
    costs = [
        [_section_cost(network, section, path, input_shape) for path in paths]
        for section, paths in enumerate(_paths(network, routes))
    ]
    tables = []
    for section in range(1, network.num_gates + 1):
        shape = (1 if section == 1 else len(routes), len(routes))
        tables.append(np.array(costs[section], "int64").reshape(shape))
    return costs[0][0], tables


def _paths(network, routes):
    """Yields a list for each section, with one path per pair of the width before it and its width.

    The widths of all other sections are 0, because they do not change the cost of this one.
    """
    rest = (0,) * network.num_gates
    yield [Path((0, *rest), (0, *rest))]
    for section in range(1, network.num_gates + 1):
        widths_before = (0,) if section == 1 else routes
        pairs = itertools.product(widths_before, routes)
        yield [_path_with(network.num_gates, section, before, width) for before, width in pairs]


def _path_with(num_gates, section, before, width):
    widths = [0] * (num_gates + 1)
    widths[section] = width
    if section > 1:
        widths[section - 1] = before
    return Path(tuple(widths), tuple(widths))


def _section_cost(network, section, path, input_shape):
    """Returns the multiply-adds of one section. The sections before it give its input shape."""
    shape = input_shape
    for index in range(section + 1):
        counter = CostCounter(path)
        shape = network.run_steps(counter, index, shape)
    return counter.madds + counter.pooling


def dynamic_madds(
    network: Any,
    starts: np.ndarray,
    paths: np.ndarray,
    steps: Sequence[int] = (),
    gates: bool = True,
    input_shape: Sequence[int] | None = None,
) -> np.ndarray:
    """Returns the multiply-adds of everything that ran for each image of a routed batch.

    The layers before the first gate count once. All later layers count once for the path of the
    start and once for each confidence step after it, up to the step whose output was taken.

    Args:
        network: A `DynamicSlimmableNetwork`.
        starts: Int `[images, num_gates]`, the path that ran first for each image.
        paths: Int `[images, num_gates]`, the path whose output was taken.
        steps: Tuple of ints, the confidence steps. Defaults to none, as for routing by the gate.
        gates: Bool, whether the gates chose `starts`, so that the slimming heads count.
        input_shape: `(height, width, 3)`. Defaults to the network's.

    Returns:
        int64 `[images]`.

    Raises:
        ValueError: If the size of the images is open, or `input_shape` contradicts the network's.
    """
    shape = resolve_image_shape(input_shape, network.input_shape[1:])
    trunk = section_costs(network, (0,), shape)[0]
    pairs = np.stack([starts, paths], axis=1)
    pairs, index = np.unique(pairs, axis=0, return_inverse=True)
    madds = []
    for start, path in pairs.tolist():
        cost = network.costs(tuple(start), shape)
        after = [step for step in steps if max(start) < step <= max(path)]
        more = sum(network.madds(step, shape) - trunk for step in after)
        madds.append(cost.madds + cost.pooling + more + cost.slimming * gates)
    return np.array(madds, "int64")[index.reshape(-1)]


def worst_case_madds(
    network: Any,
    routing: str,
    steps: Sequence[int] = (),
    routes: Sequence[int] | None = None,
    input_shape: Sequence[int] | None = None,
) -> int:
    """Returns the multiply-adds of the costliest image that a routing allows.

    Args:
        network: A `DynamicSlimmableNetwork`.
        routing: "gate", "confidence" or "gate+confidence".
        steps: Tuple of ints, the confidence steps.
        routes: Tuple of ints, the candidate widths of the gates. Defaults to the network's.
        input_shape: `(height, width, 3)`. Defaults to the network's.
    """
    routes = network.routes if routes is None else routes
    starts = tuple(steps[:1]) if routing == "confidence" else routes
    ends = [start if routing == "gate" else max(start, steps[-1]) for start in starts]
    # Of the paths with the same largest width, that of one width throughout costs most.
    first, last = (np.array([[w] * network.num_gates for w in ws]) for ws in (starts, ends))
    asked = routing != "confidence"
    return int(dynamic_madds(network, first, last, steps, asked, input_shape).max())


def width_table(network: Any, input_shape: Sequence[int] | None = None) -> list[dict]:
    """Returns one row for each path that has the same width at every gate.

    Args:
        network: A `DynamicSlimmableNetwork`.
        input_shape: `(height, width, 3)`. Defaults to the network's.

    Returns:
        List of dicts with "path", "rho", "channels", "parameters" and "madds".

    Raises:
        ValueError: If the size of the images is open.
    """
    rows = []
    for width in range(network.num_widths):
        cost = network.costs(width, input_shape)
        rows.append(
            {
                "path": width,
                "rho": network.spec.ratios[width],
                "channels": network.spec.gated_channels[width],
                "parameters": cost.parameters,
                "madds": cost.madds + cost.pooling,
            }
        )
    return rows
