"""Checks of the arguments that trainers, evaluation and recalibration have in common."""

import math
import numbers
import operator

import numpy as np

from keras_dsnet.models.dynamic_slimmable_network import DynamicSlimmableNetwork


def check_network(model, with_classifier=True):
    """Raises a ValueError unless `model` is a network, by default with a classifier.

    Args:
        model: what was passed.
        with_classifier: bool: whether it must have one.
    """
    if not isinstance(model, DynamicSlimmableNetwork):
        raise ValueError(
            "`model` must be a DynamicSlimmableNetwork, as the applications return it. "
            f"Received: a {type(model).__name__}"
        )
    if with_classifier and not model.include_top:
        raise ValueError(
            "`model` must have a classifier, whose outputs are compared with labels. "
            "Received: a network with include_top=False"
        )


def resolve_paths(model, paths):
    """Returns the paths of a list, each as given and as a `Path`.

    Args:
        model: a `DynamicSlimmableNetwork`.
        paths: list of what a call of the network takes as `path`; None: every width, at all gates
            alike.

    Returns:
        Two lists.

    Raises:
        ValueError: it is no list, or the network does not have one of the paths.
    """
    given = range(model.num_widths) if paths is None else paths
    if isinstance(given, (str, bytes, dict)) or not hasattr(given, "__iter__"):
        raise ValueError(
            f"`paths` must be a list of paths, or None for all widths. Received: paths={paths!r}"
        )
    given = list(given)
    return given, [model.resolve_path(path) for path in given]


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
