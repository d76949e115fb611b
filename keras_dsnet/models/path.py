"""Paths through a network."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import NamedTuple

import numpy as np


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


def check_path(path: Path, num_gates: int, num_widths: int) -> Path:
    """Returns a `Path` if a network has it. Widths that are tensors are not checked.

    Args:
        path: A `Path`.
        num_gates: Int, number of slimming gates.
        num_widths: Int, number of widths of each gate.

    Raises:
        ValueError: If the network does not have this path.
    """
    entries = (*path.widths, *path.statistics)
    static = [entry for entry in entries if isinstance(entry, (int, np.integer))]
    # The path "largest" has its own row of statistics behind those of the widths.
    highest = (*(num_widths,) * (num_gates + 1), *(num_widths + 1,) * (num_gates + 1))
    fits = len(path.widths) == len(path.statistics) == num_gates + 1
    if fits and len(static) == len(entries):
        fits = all(0 <= entry < most for entry, most in zip(entries, highest, strict=True))
    if not fits:
        raise ValueError(
            f"A `Path` of this network has {num_gates + 1} widths from 0 to {num_widths - 1}, and "
            f"as many rows of statistics. Received: {path}"
        )
    return path


def path_argument(path: PathLike, resolve: Callable, wide_front: bool) -> PathLike:
    """Returns a path in a form that the config of a model around the network can hold.

    Args:
        path: As in a call of the network.
        resolve: Its `resolve_path`.
        wide_front: Bool, whether the network has a path "largest".

    Raises:
        ValueError: If the network does not have this path.
    """
    resolved = resolve(path)
    if isinstance(path, str):
        return path
    if not isinstance(path, Path):
        return resolved.gates
    if not all(isinstance(entry, int) for entry in (*path.widths, *path.statistics)):
        return path
    forms = [path.gates, *(["largest"] if wide_front else [])]
    return next((form for form in forms if resolve(form) == path), path)


def _plain(value):
    """Converts arrays and tensors, also those inside a tuple, to Python numbers."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_plain, value))
    value = value.numpy() if hasattr(value, "numpy") else value
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def check_routes(routes: Iterable[int], num_widths: int, name: str = "routes") -> tuple[int, ...]:
    """Returns ascending widths, such as `routes`, as a tuple of ints.

    Args:
        routes: Iterable of ints.
        num_widths: Int, number of widths of each gate.
        name: Str, name of the argument for messages.

    Raises:
        ValueError: If the widths are not in ascending order, or the network does not have them.
    """
    try:
        given = () if isinstance(routes, (Mapping, Set)) else tuple(routes)
        # A mask of booleans is no list of widths.
        is_mask = any(isinstance(width, (bool, np.bool_)) for width in given)
        checked = () if is_mask else tuple(operator.index(width) for width in given)
    except TypeError:
        checked = ()
    ascending = all(a < b for a, b in zip(checked, checked[1:]))
    if not checked or checked[0] < 0 or checked[-1] >= num_widths or not ascending:
        raise ValueError(
            f"`{name}` must be ascending widths from 0 to {num_widths - 1}. "
            f"Received: {name}={routes!r}"
        )
    return checked
