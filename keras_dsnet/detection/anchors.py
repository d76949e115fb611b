"""The anchors of a detector, from the sizes of its feature maps."""

import math
from collections.abc import Sequence

import numpy as np

from keras_dsnet.detection.boxes import ssd_anchors
from keras_dsnet.utils.argument_checks import check_number

# SSD gives its last two levels the ratios 1, 2 and 1/2 only.
_FEW_RATIOS, _MANY_RATIOS = (2,), (2, 3)
_LEVELS_OF_FEW = 2
# The most that the steps of a level may cover, of the side of the image.
_LONGEST_REACH = 1.1


def default_aspect_ratios(num_levels: int) -> tuple[tuple[float, ...], ...]:
    """Returns the aspect ratios of each level: 6 anchors per position, 4 at the last two levels.

    Args:
        num_levels: Int, number of feature maps.
    """
    few = min(_LEVELS_OF_FEW, num_levels - 1)
    return (_MANY_RATIOS,) * (num_levels - few) + (_FEW_RATIOS,) * few


def default_scales(num_levels: int) -> tuple[float, ...]:
    """Returns the scales of SSD, with its rounding (Liu et al., 2016, section 2.2).

    SSD300 has six levels, whose scales are 0.1, 0.2, 0.37, 0.54, 0.71 and 0.88. SSD512 has seven.

    Args:
        num_levels: Int, number of feature maps.

    Returns:
        Tuple of floats, the sizes of the anchors as fractions of the image: one for each level, and
        the one that follows the last.
    """
    first, second = (10, 20) if num_levels <= 6 else (7, 15)
    step = (90 - second) // max(1, num_levels - 2)
    percents = [first, *(second + index * step for index in range(num_levels))]
    return tuple(percent / 100 for percent in percents)


def level_anchors(
    image_size: tuple[int, int],
    sizes: Sequence[tuple[int, int]],
    scales: Sequence[float],
    aspect_ratios: Sequence[Sequence[float]],
) -> np.ndarray:
    """Returns the anchors of all levels.

    Args:
        image_size: `(height, width)` of the images, in pixels.
        sizes: List of `(height, width)`, the positions of each feature map.
        scales: Sequence of floats, as of `default_scales`. The size of an anchor is its scale times
            the shorter side of the image.
        aspect_ratios: Sequence of the aspect ratios of each level.

    Returns:
        float32 `[anchors, 4]`, (ymin, xmin, ymax, xmax) as fractions of the image, sorted by level,
        row, column and shape.
    """
    side = min(image_size)
    strides = [
        tuple(_stride(pixels, count) for pixels, count in zip(image_size, size, strict=True))
        for size in sizes
    ]
    return ssd_anchors(
        image_size, sizes, strides, [scale * side for scale in scales], aspect_ratios
    )


def _stride(pixels, count):
    """Returns the pixels between the positions of a level along one axis of the image.

    That is the stride of the convolutions, a power of two, as long as its steps reach at most a
    tenth beyond the image. Else the positions divide the image evenly, and a single one is in its
    middle. At 300 and 512 pixels these are the steps of SSD300 and SSD512.

    Args:
        pixels: Int, height or width of the image.
        count: Int, number of positions.
    """
    powers = (2**exponent for exponent in range(pixels.bit_length()))
    power = next((power for power in powers if math.ceil(pixels / power) == count), None)
    if count > 1 and power is not None and power * count <= _LONGEST_REACH * pixels:
        return power
    return pixels / count


def check_anchors(
    scales: Sequence[float] | None,
    aspect_ratios: Sequence[Sequence[float]] | None,
    num_levels: int,
) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]:
    """Returns the scales and aspect ratios of the levels, with their defaults.

    Args:
        scales: Sequence of ascending positive floats, one more than levels, or None.
        aspect_ratios: Sequence of a sequence of floats above 1 for each level, or None.
        num_levels: Int.

    Raises:
        ValueError: If they are not such sequences.
    """
    scales = default_scales(num_levels) if scales is None else scales
    ratios = default_aspect_ratios(num_levels) if aspect_ratios is None else aspect_ratios
    if not isinstance(scales, (tuple, list)) or len(scales) != num_levels + 1:
        raise ValueError(
            f"`scales` must have {num_levels + 1} numbers, one more than the pyramid has levels. "
            f"Received: scales={scales!r}"
        )
    scales = tuple(check_number("scales", scale, "positive", lambda s: s > 0) for scale in scales)
    if sorted(set(scales)) != [*scales]:
        raise ValueError(f"`scales` must ascend. Received: scales={scales}")
    pairs = isinstance(ratios, (tuple, list)) and all(isinstance(r, (tuple, list)) for r in ratios)
    if not pairs or len(ratios) != num_levels:
        raise ValueError(
            f"`aspect_ratios` must have {num_levels} tuples of numbers, one for each level of the "
            f"pyramid. Received: aspect_ratios={aspect_ratios!r}"
        )
    checked = tuple(
        tuple(check_number("aspect_ratios", r, "above 1", lambda r: r > 1) for r in level)
        for level in ratios
    )
    return scales, checked


def anchors_per_position(aspect_ratios: Sequence[float]) -> int:
    """Returns the number of anchors at each position of a level.

    Args:
        aspect_ratios: Sequence of the aspect ratios of the level.
    """
    return 2 + 2 * len(aspect_ratios)
