"""The families of networks that a saved model may belong to."""

import dataclasses

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


def spec_config(spec):
    """Returns a spec as JSON can hold it, with the name of its family.

    Args:
        spec: a `NetworkSpec`.
    """
    return {"family": type(spec).__name__, **dataclasses.asdict(spec)}


def spec_from_config(config):
    """Rebuilds a spec from what `spec_config` returned, also after a round trip through JSON.

    Args:
        config: dict.

    Returns:
        A `NetworkSpec`.

    Raises:
        ValueError: no imported module registers its family.
    """
    fields = dict(config)
    return find_family(fields.pop("family")).from_dict(fields)
