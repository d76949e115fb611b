"""Paths: which width each section of a network runs at."""

import operator
from typing import NamedTuple

import numpy as np

# Rows of `evaluate_paths` that are of no path of the routes: all routes, and a front of its own.
OFF_ROUTE_ROWS = ("dynamic", "largest")


class Path(NamedTuple):
    """The widths of one sub-network, section by section.

    Args:
        widths: index into the channel options per section: the front's first, then one per gate.
        statistics: row of batch-norm statistics per section.
    """

    widths: tuple
    statistics: tuple

    @property
    def gates(self):
        """One width per slimming gate."""
        return self.widths[1:]


def resolve_path(path, num_gates, num_widths, wide_front=False):
    """Turns what a user may pass as `path` into a `Path`.

    Args:
        path: int (that width at every gate), a tuple, array or tensor with one int per gate, as
            `route` gives one for each image, "slimmest", "widest", or, with a wide front,
            "largest": the widest path behind a front at its most channels, with statistics of its
            own.
        num_gates: int.
        num_widths: int, the widths of each gate.
        wide_front: bool: whether the network has a path "largest".

    Returns:
        A `Path` of Python ints.

    Raises:
        ValueError: on anything else.
    """
    last = num_widths - 1
    given = _plain(path)
    if isinstance(given, str):
        if given == "largest" and wide_front:
            return Path((1,) + (last,) * num_gates, (1,) + (num_widths,) * num_gates)
        given = {"slimmest": 0, "widest": last}.get(given, given)
    widths = given if isinstance(given, (tuple, list)) else (given,) * num_gates
    whole = [isinstance(width, int) and not isinstance(width, bool) for width in widths]
    widths = tuple(widths) if all(whole) else ()
    known = all(0 <= width <= last for width in widths)
    if len(widths) != num_gates or not known:
        tuples = "" if num_gates == 1 else f", a tuple of {num_gates} of them"
        names = "'slimmest', 'widest' or 'largest'" if wide_front else "'slimmest' or 'widest'"
        raise ValueError(
            f"`path` must be an int from 0 to {last}{tuples}, {names}. Received: path={path!r}"
        )
    return Path((0, *widths), (0, *widths))


def _plain(value):
    """Returns an array or a tensor as Python numbers, and so the entries of a tuple."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_plain, value))
    value = value.numpy() if hasattr(value, "numpy") else value
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def check_routes(routes, num_widths):
    """Returns `routes` as a tuple of candidate widths.

    Raises:
        ValueError: unless they ascend and are widths of the network.
    """
    try:
        checked = tuple(operator.index(width) for width in routes)
    except TypeError:
        checked = ()
    ascending = all(a < b for a, b in zip(checked, checked[1:]))
    if not checked or checked[0] < 0 or checked[-1] >= num_widths or not ascending:
        raise ValueError(
            f"`routes` must be ascending widths from 0 to {num_widths - 1}. "
            f"Received: routes={routes!r}"
        )
    return checked
