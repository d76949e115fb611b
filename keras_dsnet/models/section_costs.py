"""Multiply-adds of each section by the widths around it."""

import numpy as np

from keras_dsnet.models.cost_counter import CostCounter
from keras_dsnet.models.network_arguments import resolve_image_shape
from keras_dsnet.models.path import Path


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
