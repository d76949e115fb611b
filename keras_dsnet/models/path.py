"""Paths through a network, with the routes that restrict them."""

import operator
import sys
import warnings
from typing import NamedTuple

import numpy as np

from keras_dsnet.utils.private_names import in_symbolic_scope


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


_PACKAGES = ("keras", "keras_dsnet", "tensorflow")


class RoutingSpace:
    """The candidate widths of every gate, and whether the gates were trained to choose.

    Args:
        num_widths: int, the widths of each gate.
        routes: tuple of ints, ascending; None: all widths.
    """

    def __init__(self, num_widths, routes=None):
        self._num_widths = num_widths
        self._gates_trained = False
        self._warned = self._warned_of_routes = False
        self.routes = range(num_widths) if routes is None else routes

    @property
    def routes(self):
        """The candidate widths: a tuple of ints, ascending; settable."""
        return self._routes

    @routes.setter
    def routes(self, routes):
        self._routes = check_routes(routes, self._num_widths)

    @property
    def gates_trained(self):
        """Whether the slimming heads were trained; settable, for the routes of that time."""
        return self._gates_trained

    @gates_trained.setter
    def gates_trained(self, trained):
        self._gates_trained = trained

    def change_routes(self, routes):
        """Sets the routes; under trained gates a warning says once what that means."""
        before = self._routes
        self.routes = routes
        if self._gates_trained and self._routes != before and not self._warned_of_routes:
            self._warned_of_routes = True
            new = [width for width in self._routes if width not in before]
            scores = (
                f" The gates were not trained to choose {new}: these widths have untrained scores "
                "until the gates are trained again."
                if new
                else ""
            )
            warnings.warn(
                f"The gates were trained to choose among the routes {before}, and now choose among "
                f"{self._routes}: the scores of all other widths are masked.{scores}",
                stacklevel=_level_of_caller(),
            )

    def candidates(self):
        """Returns the routes to choose from: of untrained gates, with a warning, the widest."""
        if self._gates_trained:
            return self.routes
        # Keras also calls a network to learn its shapes, when a file is loaded say, whose gates
        # are known to be trained only afterwards.
        if not self._warned and not in_symbolic_scope():
            self._warned = True
            warnings.warn(
                "The gates of this network are not trained: every image takes the widest route "
                f"({self.routes[-1]}). Train them with keras_dsnet.training.GateTrainer, or pass "
                "`path=`.",
                stacklevel=_level_of_caller(),
            )
        return self.routes[-1:]


def _level_of_caller():
    """Returns the `stacklevel` at which a warning names the user's line, not one of Keras's."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _PACKAGES:
        level, frame = level + 1, frame.f_back
    return level
