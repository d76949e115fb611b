"""Forwarding of public names that moved to another package."""

import importlib
import sys
import warnings
from collections.abc import Mapping
from typing import Any


def forward(package: str, name: str, homes: Mapping[str, str]) -> Any:
    """Returns a public name from the package that it moved to, with a `DeprecationWarning`.

    A package calls it in its module-level `__getattr__`, so that the new package is imported only
    when the old name is used. The object becomes an attribute of the old package: without it,
    `from package import name` would look the name up twice and warn twice.

    Args:
        package: String, full name of the old package.
        name: String, name of the attribute.
        homes: Dict from moved names to the full names of their packages.

    Returns:
        The object of that name.

    Raises:
        AttributeError: If the name did not move.
    """
    if name not in homes:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    warnings.warn(
        f"{package}.{name} is deprecated: import it from {homes[name]}",
        DeprecationWarning,
        stacklevel=3,
    )
    value = getattr(importlib.import_module(homes[name]), name)
    setattr(sys.modules[package], name, value)
    return value
