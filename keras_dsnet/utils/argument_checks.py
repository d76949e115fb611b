"""Checks of arguments that users pass: numbers, booleans, JSON files."""

import json
import math
import numbers
import operator
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

_MOST = 2**31 - 1


class UserError(ValueError):
    """A mistake in an argument, a path or a file, with a one-line message that names the remedy.

    Programs print the message of such an error without a traceback.
    """


def read_json(path: str | os.PathLike, what: str) -> Any:
    """Returns the contents of a JSON file.

    Args:
        path: Path of the file.
        what: String, the kind of file for messages, such as "latency table".

    Raises:
        OSError: If the file cannot be opened.
        UserError: If the file is not JSON.
    """
    try:
        return json.loads(pathlib.Path(path).read_bytes())
    # UnicodeDecodeError and JSONDecodeError are ValueErrors. Deeply nested brackets exceed the
    # recursion limit.
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} {path} is not JSON: {error}") from error


def check_number(
    name: str, value: Any, right: str, holds: Callable[[float], bool] = lambda value: True
) -> float:
    """Checks a number and returns it as a float.

    Args:
        name: String, name of the argument.
        value: The argument.
        right: String, the requirement for messages, such as "0 or more".
        holds: Function of the number that returns whether it meets the requirement. By default all
            numbers do.

    Raises:
        ValueError: If `value` is not a finite number, or does not meet the requirement.
    """
    is_real = isinstance(value, (numbers.Real, np.floating)) and not isinstance(value, bool)
    if not is_real or not math.isfinite(value) or not holds(value):
        raise ValueError(f"`{name}` must be {right}. Received: {name}={value!r}")
    return float(value)


def check_int(name: str, value: Any, low: int, high: int = _MOST) -> int:
    """Checks an integer of any type and returns it as an int.

    Args:
        name: String, name of the argument.
        value: The argument.
        low: Int, the minimum.
        high: Int, the maximum. Defaults to that of 32 bits.

    Raises:
        ValueError: If `value` is not an integer, or out of the range.
    """
    try:
        whole = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        whole = None
    if whole is None or not low <= whole <= high:
        end = " or more" if high == _MOST else f" to {high}"
        raise ValueError(f"`{name}` must be an int of {low}{end}. Received: {name}={value!r}")
    return whole


def check_bool(name: str, value: Any) -> bool:
    """Checks a boolean, of Python or NumPy, and returns it as a bool.

    Args:
        name: String, name of the argument.
        value: The argument.

    Raises:
        ValueError: If `value` is not a boolean.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"`{name}` must be True or False. Received: {name}={value!r}")
    return bool(value)
