"""Checks of the arguments that trainers, evaluation and recalibration have in common."""

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
