"""Paths through a network."""

import operator
import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from keras_dsnet.utils.private_names import in_symbolic_scope


class Path(NamedTuple):
    """The widths of one sub-network, section by section.

    Args:
        widths: Tuple of widths. The first one is that of the trunk, and one per gate follows.
        statistics: Tuple with the row of batch-norm statistics of each section.

    Example:

    ```python
    from keras_dsnet.models import Path

    assert Path(widths=(0, 2, 3), statistics=(0, 2, 3)).gates == (2, 3)
    ```
    """

    widths: tuple
    statistics: tuple

    @property
    def gates(self) -> tuple:
        """One width per slimming gate."""
        return self.widths[1:]


# Types that users may pass as `path`.
PathLike = int | str | Sequence[int] | np.ndarray | Path


def resolve_path(path: PathLike, num_gates: int, num_widths: int, wide_front: bool = False) -> Path:
    """Converts the `path` argument of a user to a `Path`.

    Args:
        path: Int (this width at every gate), a tuple, array or tensor with one int per gate, such
            as a row of what `route` returns, "slimmest", "widest" or, with a wide front, "largest".
            "largest" is the widest path after a trunk with its maximum channels, and has separate
            batch-norm statistics.
        num_gates: Int, number of slimming gates.
        num_widths: Int, number of widths of each gate.
        wide_front: Bool, whether the network has a path "largest".

    Returns:
        A `Path` of Python ints.

    Raises:
        ValueError: If the network does not have this path.
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
    """Converts arrays and tensors, also those inside a tuple, to Python numbers."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_plain, value))
    value = value.numpy() if hasattr(value, "numpy") else value
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def check_routes(routes: Iterable[int], num_widths: int) -> tuple[int, ...]:
    """Returns `routes` as a tuple of candidate widths.

    Args:
        routes: Iterable of ints.
        num_widths: Int, number of widths of each gate.

    Raises:
        ValueError: If the routes are not in ascending order, or are not widths of the network.
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
    """The paths that the gates can choose, and whether they were trained to choose.

    Args:
        num_widths: Int, number of widths of each gate.
        routes: Tuple of ints, candidate widths in ascending order. Defaults to all widths.
    """

    def __init__(self, num_widths: int, routes: Iterable[int] | None = None):
        self._num_widths = num_widths
        self.gates_trained = False
        self._warned = self._warned_of_routes = False
        self.routes = range(num_widths) if routes is None else routes

    @property
    def routes(self) -> tuple[int, ...]:
        """The candidate widths, a tuple of ints in ascending order. Settable."""
        return self._routes

    @routes.setter
    def routes(self, routes):
        self._routes = check_routes(routes, self._num_widths)

    def change_routes(self, routes: Iterable[int]) -> None:
        """Sets the routes. If the gates are trained, warns once about what the change means."""
        before = self._routes
        self.routes = routes
        if self.gates_trained and self._routes != before and not self._warned_of_routes:
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

    def candidates(self) -> tuple[int, ...]:
        """Returns the routes to choose from: only the widest, with a warning, if untrained."""
        if self.gates_trained:
            return self.routes
        # Keras also calls a network symbolically to infer its shapes, for example before it loads
        # a file that holds trained gates.
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
    """Returns the `stacklevel` at which a warning shows the line of the user's code."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _PACKAGES:
        level, frame = level + 1, frame.f_back
    return level
