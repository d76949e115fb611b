"""Splits of the frames of videos by contiguous blocks.

Neighbouring frames of a video are nearly the same picture. A split that draws frames at random puts
neighbours of most test frames into training, and then measures memory.
"""

import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from keras_dsnet.data.encoded_image import decode_image
from keras_dsnet.utils.argument_checks import check_int, check_number

TRAIN, TEST = "train", "test"
# A run of this many blocks gives its last part to the test split.
_BLOCKS_IN_LONG_RUN = 3
# Of a class whose runs are all too short for a block, the share of its longest run to test on.
_SHORT_SHARE = 1 / 3
# Pictures are compared as gray thumbnails, whose pixels are means over parts of the image.
_THUMBNAIL = 24
_ROWS_AT_ONCE = 512


@dataclasses.dataclass(frozen=True)
class Range:
    """Frames of one split, in the order of their names.

    Attributes:
        split: Str, name of the split.
        first: Str, name of the first frame.
        last: Str, name of the last frame, which belongs to the range.
    """

    split: str
    first: str
    last: str


def split_frames(
    frames: Mapping[str, Iterable[str]],
    block: int = 200,
    gap: int = 20,
    fraction: float = 0.25,
) -> tuple[list[Range], list[str]]:
    """Splits frames into blocks for training and for testing.

    A run is a series of frames that show the same classes. Each run of at least three blocks gives
    its last part, `fraction` of it and at least a block, to the test split. A class that is not
    tested by then gives a whole run, if it has one of at least a block that is at most half of its
    frames; else the last block of its longest run, if a block is left for training; else the last
    third of that run, which is shorter than a block. `gap` frames before and after a test block
    belong to no split.

    Args:
        frames: Dict that maps the names of all frames to the classes that they show.
        block: Int, the least number of frames of a test block. Defaults to 200.
        gap: Int, the number of frames between the splits. Defaults to 20.
        fraction: Float in (0, 0.5], the share of a long run to test on. Defaults to 0.25.

    Returns:
        `(ranges, short)`: list of `Range`, in the order of frames, and the names of the classes
        whose test block is shorter than `block`.

    Raises:
        ValueError: An argument is out of range, or a class cannot be on both sides.
    """
    block = check_int("block", block, 1)
    gap = check_int("gap", gap, 0)
    fraction = check_number("fraction", fraction, "in (0, 0.5]", lambda value: 0 < value <= 0.5)
    names = sorted(frames)
    shown = [frozenset(frames[name]) for name in names]
    runs = _runs(shown)
    is_test = np.zeros(len(names), bool)
    for start, stop in runs:
        if stop - start >= _BLOCKS_IN_LONG_RUN * block:
            is_test[stop - max(block, round(fraction * (stop - start))) : stop] = True
    short = []
    for label in sorted(frozenset().union(*shown)):
        own = [(start, stop) for start, stop in runs if label in shown[start]]
        if any(is_test[start:stop].any() for start, stop in own):
            continue
        start, stop = _block_of_class(own, block, gap)
        is_test[start:stop] = True
        if stop - start < block:
            short.append(label)
    # "same" would return 2 * gap + 1 values for fewer frames than that.
    near = np.convolve(is_test, np.ones(2 * gap + 1), "full")[gap : gap + len(is_test)] > 0
    sides = np.where(is_test, 2, np.where(near, 0, 1))
    _check_sides(names, shown, sides)
    return _ranges(names, sides), short


def _runs(shown):
    """Returns `(start, stop)` of each run of frames that show the same classes."""
    starts = [i for i, classes in enumerate(shown) if i == 0 or classes != shown[i - 1]]
    return list(zip(starts, [*starts[1:], len(shown)], strict=True))


def _block_of_class(runs, block, gap):
    """Returns `(start, stop)` of the test block of a class that has no long run."""
    total = sum(stop - start for start, stop in runs)
    whole = [run for run in runs if block <= run[1] - run[0] <= total / 2]
    if whole:
        return min(whole, key=lambda run: run[1] - run[0])
    start, stop = max(runs, key=lambda run: run[1] - run[0])
    length = block
    if stop - start < 2 * block + gap:
        length = max(1, round((stop - start - gap) * _SHORT_SHARE))
    return stop - length, stop


def _check_sides(names, shown, sides):
    for label in sorted(frozenset().union(*shown)):
        own = [side for side, classes in zip(sides, shown, strict=True) if label in classes]
        if not {1, 2} <= set(own):
            raise ValueError(
                f"class '{label}' cannot be on both sides of the split: it has {len(own)} frames"
            )


def _ranges(names, sides):
    starts = [i for i, side in enumerate(sides) if i == 0 or side != sides[i - 1]]
    stops = [*starts[1:], len(sides)]
    return [
        Range((TRAIN, TEST)[sides[start] - 1], names[start], names[stop - 1])
        for start, stop in zip(starts, stops, strict=True)
        if sides[start]
    ]


def format_ranges(ranges: Sequence[Range], about: Sequence[str] = ()) -> str:
    """Returns ranges as text, a line `split first last` for each, below lines of comments.

    If a name has a space, tabs separate the three.
    """
    comments = [f"# {line}".rstrip() for line in about]
    fields = [(each.split, each.first, each.last) for each in ranges]
    between = "\t" if any(" " in field for line in fields for field in line) else " "
    return "\n".join([*comments, *map(between.join, fields), ""])


def read_ranges(
    path: str | os.PathLike, names: Iterable[str] | None = None
) -> dict[str, list[str]]:
    """Reads the splits in a file of ranges.

    Args:
        path: Path of a file of `format_ranges`.
        names: Names of all frames. Defaults to None for a check of the file only.

    Returns:
        Dict that maps the name of each split to the names of its frames. They are empty without
        `names`.

    Raises:
        OSError: The file cannot be read.
        ValueError: A line is not a range, or ranges overlap, or a split has no frame.
    """
    try:
        # Some editors begin a file with a byte order mark.
        lines = pathlib.Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"file of ranges {path} must be text in UTF-8: {error}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        # A name may have the sign of a comment in it, and between tabs after a space.
        text = "" if line.lstrip().startswith("#") else line.strip()
        fields = [field.strip() for field in text.split("\t")]
        fields = fields if len(fields) > 1 else re.split(r"\s#", text)[0].split()
        if not fields:
            continue
        if len(fields) != 3 or fields[1] > fields[2]:
            raise ValueError(
                f"line {number} of {path} must be a split, its first frame and its last one. "
                f"Received: {line.strip()!r}"
            )
        found.append(Range(*fields))
    if not found:
        raise ValueError(f"file of ranges {path} holds no range")
    found.sort(key=lambda each: each.first)
    for one, following in zip(found, found[1:]):
        if following.first <= one.last:
            raise ValueError(f"ranges of {path} overlap at frame {following.first}")
    splits: dict[str, list[str]] = {each.split: [] for each in found}
    if names is None:
        return splits
    order = np.array(sorted(names))
    for each in found:
        start = np.searchsorted(order, each.first, side="left")
        stop = np.searchsorted(order, each.last, side="right")
        splits[each.split] += order[start:stop].tolist()
    for split, chosen in splits.items():
        if not chosen:
            raise ValueError(f"split '{split}' of {path} has none of the {len(order)} frames")
    return splits


def share_with_neighbour(
    test: Iterable[str], train: Iterable[str], names: Iterable[str], distance: int = 1
) -> float:
    """Returns the share of test frames that have a training frame near them.

    Args:
        test: Names of the frames that are tested on.
        train: Names of the frames that are trained on.
        names: Names of all frames, whose order is that of their names.
        distance: Int, the number of frames that is near. Defaults to 1, the next frame.

    Returns:
        Float in [0, 1].
    """
    position = {name: index for index, name in enumerate(sorted(names))}
    trained = np.sort([position[name] for name in set(train)])
    tested = np.array([position[name] for name in sorted(set(test))])
    after = np.searchsorted(trained, tested)
    nearest = np.minimum(
        np.abs(tested - trained[np.minimum(after, len(trained) - 1)]),
        np.abs(tested - trained[np.maximum(after - 1, 0)]),
    )
    return float((nearest <= distance).mean())


def similar_share(test: Iterable[str], train: Iterable[str], paths: Mapping[str, str]) -> float:
    """Returns the share of test frames that are nearly the picture of a training frame.

    Nearly means as near as half of all neighbouring frames are, in the root mean square of gray
    thumbnails of 24x24 pixels. Frames of both splits are compared with other frames only.

    Args:
        test: Names of the frames that are tested on.
        train: Names of the frames that are trained on.
        paths: Dict that maps the names of all frames to the paths of their images.

    Returns:
        Float in [0, 1]. NaN if all test frames are also trained on.
    """
    names = sorted(paths)
    thumbnails = _thumbnails([paths[name] for name in names])
    steps = _distance(thumbnails[1:], thumbnails[:-1])
    trained = set(train)
    tested = set(test) - trained
    if not tested:
        return math.nan
    rows = np.array([name in trained for name in names])
    known = thumbnails[rows]
    squares = (known**2).mean(axis=1)
    asked = thumbnails[np.array([name in tested for name in names])]
    nearest = []
    for start in range(0, len(asked), _ROWS_AT_ONCE):
        part = asked[start : start + _ROWS_AT_ONCE]
        products = part @ known.T / known.shape[1]
        far = (part**2).mean(axis=1)[:, None] + squares[None] - 2 * products
        nearest.append(np.sqrt(np.maximum(far.min(axis=1), 0)))
    return float((np.concatenate(nearest) < np.median(steps)).mean())


def _distance(images, others):
    return np.sqrt(((images - others) ** 2).mean(axis=1))


def _thumbnails(paths):
    """Returns float32 `[frames, pixels]`."""

    def thumbnail(path):
        gray = tf.image.rgb_to_grayscale(decode_image(tf.io.read_file(path)))
        return tf.image.resize(gray, (_THUMBNAIL, _THUMBNAIL), method="area")

    dataset = tf.data.Dataset.from_tensor_slices([os.fsencode(path) for path in paths])
    dataset = dataset.map(thumbnail, num_parallel_calls=tf.data.AUTOTUNE).batch(1024)
    images = np.concatenate(list(dataset.as_numpy_iterator()))
    return images.reshape(len(images), -1).astype(np.float32)
