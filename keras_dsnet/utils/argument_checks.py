"""Checks of what users pass: numbers, truth values, JSON files."""

import json
import math
import numbers
import operator
import pathlib

import numpy as np


class UserError(ValueError):
    """A mistake in a flag, a path or a file, with a one-line message that says what would be right.

    Programs started through `keras_dsnet.utils.cli.run` print the message and exit with code 1.
    """


def read_json(path, what):
    """Returns what a JSON file holds.

    Args:
        path: of the file.
        what: the kind of file, for messages, such as "latency table".

    Raises:
        OSError: it cannot be opened.
        UserError: it is not JSON.
    """
    try:
        return json.loads(pathlib.Path(path).read_bytes())
    # UnicodeDecodeError and JSONDecodeError alike; and brackets in brackets without end.
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} {path} is not JSON: {error}") from error


def check_number(name, value, right, holds=lambda value: True):
    """Returns a number as a float.

    Args:
        name: str, of the argument.
        value: what was passed.
        right: str, what it must be, such as "0 or more".
        holds: function of the float that returns whether it is.

    Raises:
        ValueError: it is no finite number, or not as it must be.
    """
    is_real = isinstance(value, (numbers.Real, np.floating)) and not isinstance(value, bool)
    if not is_real or not math.isfinite(value) or not holds(value):
        raise ValueError(f"`{name}` must be {right}. Received: {name}={value!r}")
    return float(value)


def check_int(name, value, low, high=2**31 - 1):
    """Returns an integer of any type as an int.

    Args:
        name: str, of the argument.
        value: what was passed.
        low: int, the least that is right.
        high: int, the greatest.

    Raises:
        ValueError: it is no integer, or out of the range.
    """
    try:
        whole = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        whole = None
    if whole is None or not low <= whole <= high:
        end = " or more" if high == 2**31 - 1 else f" to {high}"
        raise ValueError(f"`{name}` must be an int of {low}{end}. Received: {name}={value!r}")
    return whole


def check_bool(name, value):
    """Returns a truth value as a bool.

    Args:
        name: str, of the argument.
        value: what was passed.

    Raises:
        ValueError: it is no bool.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"`{name}` must be True or False. Received: {name}={value!r}")
    return bool(value)
