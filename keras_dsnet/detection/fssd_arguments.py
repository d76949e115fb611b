"""Checks of the arguments of FSSD, before its layers are made."""

from collections.abc import Sequence
from typing import Any

from keras_dsnet.detection.fssd_head import NORMS, pyramid_sizes
from keras_dsnet.models import DynamicSlimmableNetwork
from keras_dsnet.models.level_features import check_levels, sections_up_to
from keras_dsnet.utils.argument_checks import check_int


def check_backbone(backbone: Any) -> None:
    """Raises a ValueError if a detector cannot have this backbone.

    Args:
        backbone: The argument.
    """
    if not isinstance(backbone, DynamicSlimmableNetwork):
        raise ValueError(
            "`backbone` must be a DynamicSlimmableNetwork, as the applications return it. "
            f"Received: a {type(backbone).__name__}"
        )
    if backbone.include_top or backbone.pooling:
        raise ValueError(
            "`backbone` must return features: make it with `include_top=False` and without "
            f"`pooling`. Received: a network with include_top={backbone.include_top}, "
            f"pooling={backbone.pooling!r}"
        )
    if None in backbone.input_shape[1:]:
        raise ValueError(
            "`backbone` must have a fixed `input_shape`, which sets the anchors. "
            f"Received: input_shape={backbone.input_shape[1:]}"
        )


def check_source_levels(
    backbone: DynamicSlimmableNetwork, levels: Sequence[str] | None
) -> tuple[str, ...]:
    """Returns the names of the source levels, with their default.

    Args:
        backbone: `DynamicSlimmableNetwork`.
        levels: Sequence of names, or None.

    Raises:
        ValueError: If the backbone does not have these levels, or none is after its last gate.
    """
    names = check_levels(backbone, levels)
    reached = len(sections_up_to(backbone, names))
    if reached <= backbone.num_gates:
        raise ValueError(
            "`levels` must include a level after the last gate of the backbone, such as "
            f"{tuple(backbone.levels)[-1]!r}. Received: levels={levels!r}"
        )
    return names


def check_norm(norm: str | None, backbone: DynamicSlimmableNetwork) -> str:
    """Returns the name of the norm of the head, with its default.

    Args:
        norm: "batch", "group" or None.
        backbone: `DynamicSlimmableNetwork`.

    Raises:
        ValueError: If there is no such norm, or the backbone has too many paths for batch norm.
    """
    if norm is None:
        return "batch" if backbone.num_gates == 1 else "group"
    one_of("norm", norm, NORMS)
    if norm == "batch" and backbone.num_gates > 1:
        raise ValueError(
            "`norm` must be 'group' for a backbone with several gates, whose paths are too many "
            f"for separate batch-norm statistics. Received: norm='batch' with {backbone.num_gates} "
            "gates"
        )
    return norm


def check_pyramid(pyramid: int | Sequence[int], first: tuple[int, int]) -> tuple[int, ...]:
    """Returns the channels of each map of the pyramid.

    Args:
        pyramid: Int, or sequence of ints.
        first: `(height, width)` of the first map.

    Raises:
        ValueError: If `pyramid` is not such an argument, or has too many maps.
    """
    if isinstance(pyramid, (tuple, list)):
        most = len(pyramid_sizes(first))
        if not 1 <= len(pyramid) <= most:
            raise ValueError(
                f"`pyramid` must be the channels of 1 to {most} maps: the first map has "
                f"{first[0]} x {first[1]} positions. Received: pyramid={pyramid!r}"
            )
        return tuple(check_int("pyramid", channels, 1) for channels in pyramid)
    return (check_int("pyramid", pyramid, 1),) * len(pyramid_sizes(first))


def one_of(name: str, value: Any, known: Sequence[str]) -> str:
    """Returns a string that has a few possible values.

    Args:
        name: Str, name of the argument.
        value: The argument.
        known: Sequence of str, the possible values.

    Raises:
        ValueError: If `value` is another one.
    """
    if not isinstance(value, str) or value not in known:
        raise ValueError(
            f"`{name}` must be {' or '.join(map(repr, known))}. Received: {name}={value!r}"
        )
    return value
