"""Old addresses of public names, which go on to work for a while."""

import importlib
import warnings


def forward(package, name, homes):
    """Returns a public name from the package that it moved to, with a `DeprecationWarning`.

    A package calls it in its module-level `__getattr__`, so that the new home is imported only when
    somebody asks for the old name.

    Args:
        package: str, the full name of the package that was asked.
        name: str, the attribute that was asked for.
        homes: dict from a moved name to the full name of its package.

    Returns:
        The object.

    Raises:
        AttributeError: the name did not move.
    """
    if name not in homes:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    warnings.warn(
        f"{package}.{name} is deprecated: import it from {homes[name]}",
        DeprecationWarning,
        stacklevel=3,
    )
    return getattr(importlib.import_module(homes[name]), name)
