"""The families of networks that a saved model may belong to."""

FAMILIES = {}


def register_family(spec_class):
    """Makes saved networks of a family loadable; a decorator of its `NetworkSpec`.

    Args:
        spec_class: a subclass of `NetworkSpec`; files know it by its name.

    Returns:
        `spec_class`.

    Raises:
        ValueError: another class has this name.
    """
    name = spec_class.__name__
    known = FAMILIES.get(name, spec_class)
    # The same class once more is a cell of a notebook that was run again.
    if (known.__module__, known.__qualname__) != (spec_class.__module__, spec_class.__qualname__):
        raise ValueError(
            f"There is a family of this name, in {known.__module__}: choose another. "
            f"Received: {name}"
        )
    FAMILIES[name] = spec_class
    return spec_class


def find_family(name):
    """Returns the spec class of a saved network.

    Args:
        name: str, the name of the class.

    Raises:
        ValueError: no imported module registers it.
    """
    if name not in FAMILIES:
        raise ValueError(
            f"The network is of a family that is not known here, of {sorted(FAMILIES)}: import the "
            f"module that registers it first. Received: {name!r}"
        )
    return FAMILIES[name]
