"""Multiply-adds and parameters of paths."""

import numpy as np

from keras_dsnet.layers.sliced_conv2d import padded_size
from keras_dsnet.layers.slicing import option_at
from keras_dsnet.models.arguments import resolve_image_shape
from keras_dsnet.models.path import Path
from keras_dsnet.models.topology import Executor


class CostCounter(Executor):
    """Runs steps over shapes `(height, width, channels)` and counts what they cost for one image.

    Args:
        path: a `Path` of Python ints.

    Attributes:
        madds: multiply-adds of convolutions and linear layers, without the slimming heads.
        attention: the share of the attention heads in `madds`.
        pooling: input elements of every average pool (the paper's count adds them).
        slimming: multiply-adds of the slimming heads.
        parameters: trainable parameters that the path uses, without the slimming heads.
    """

    def __init__(self, path):
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
        self.pooling += _elements(shape)
        if layer.attention:
            self.madds += 2 * encoder
            self.attention += 2 * encoder
            self.parameters += 2 * encoder + layer.hidden_units + channels
        if step.is_slimming_gate:
            scores = 1 if layer.slimming_head == "scalar" else layer.num_choices
            own_encoder = not (layer.attention and layer.share_encoder)
            self.slimming += layer.hidden_units * scores + encoder * own_encoder
        return shape

    def max_pool(self, step, shape):
        height, width = (-(-side // step.layer.strides[0]) for side in shape[:2])
        return height, width, shape[2]

    def pool(self, step, shape):
        self.pooling += _elements(shape)
        return (shape[2],)

    def global_max_pool(self, step, shape):
        # Comparisons: no multiply-adds.
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
            raise ValueError(f"A residual branch gives {shape}, and its shortcut {shortcut}")
        return shape


def count_costs(sections, path, image_shape):
    """Counts what one image costs along a path.

    Args:
        sections: tuple of tuples of `Step`.
        path: a `Path` of Python ints.
        image_shape: `(height, width, channels)`, all known.

    Returns:
        A `CostCounter` that has run all sections.
    """
    counter, shape = CostCounter(path), image_shape
    for steps in sections:
        shape = counter.run(steps, shape)
    return counter


def features_shape(sections, path, image_shape):
    """Returns the shape of one image's outputs of a network without its top.

    `(height, width, channels)`, or `(channels,)` of pooled features.

    Args:
        sections: as of `count_costs`.
        path: a `Path` of Python ints.
        image_shape: `(height, width, channels)`; a side that is None is None in the result too.
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


def section_costs(network, routes, input_shape=None):
    """Returns the multiply-adds that each section adds, for every pair of routes around it.

    Their sum along a path is `network.madds(path)`, exactly. A section's cost depends on the width
    before it and its own alone, so the expectation over soft choices is a product of neighbouring
    choices.

    Args:
        network: a `DynamicSlimmableNetwork`.
        routes: tuple of candidate widths.
        input_shape: `(height, width, 3)`; None: the network's.

    Returns:
        `(front, tables)`: an int, and for each gate an int64 array `[before, after]`; the first has
        one row, since one front stands before every route.

    Raises:
        ValueError: the size of the images is open, or `input_shape` contradicts the network's.
    """
    input_shape = resolve_image_shape(input_shape, network.input_shape[1:])
    cumulative = [
        [_sections_cost(network, section, path, input_shape) for path in paths]
        for section, paths in enumerate(_paths(network, routes))
    ]
    front = cumulative[0][0]
    tables = []
    for section in range(1, network.num_gates + 1):
        shape = (1 if section == 1 else len(routes), len(routes))
        tables.append(np.array(cumulative[section], "int64").reshape(shape))
    return front, tables


def _paths(network, routes):
    """Yields for each section a path for every pair of widths around it."""
    rest = (0,) * network.num_gates
    yield [Path((0, *rest), (0, *rest))]
    for section in range(1, network.num_gates + 1):
        pairs = [(b, a) for b in ((0,) if section == 1 else routes) for a in routes]
        yield [_path_with(network.num_gates, section, before, after) for before, after in pairs]


def _path_with(num_gates, section, before, after):
    widths = [0] * (num_gates + 1)
    widths[section] = after
    if section > 1:
        widths[section - 1] = before
    return Path(tuple(widths), tuple(widths))


def _sections_cost(network, section, path, input_shape):
    shape = input_shape
    for index in range(section + 1):
        counter = CostCounter(path)
        shape = counter.run(network.sections[index], shape)
    return counter.madds + counter.pooling


def width_table(network, input_shape=None):
    """Returns a row per width, run at every gate.

    Args:
        network: a `DynamicSlimmableNetwork`.
        input_shape: `(height, width, 3)`; None: the network's.

    Returns:
        List of dicts: "path", "rho", "channels", "parameters" and "madds".

    Raises:
        ValueError: the size of the images is open.
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
