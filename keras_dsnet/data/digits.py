"""Handwritten digits that come with scikit-learn.

`"digits"` are the images as they are. `"distorted_digits"` are a harder task made from them, on
which a wide network is more accurate than a slim one: the digits are rotated, sheared, bent,
shifted, faded and noisy, among pieces of other digits. How strong all that is differs from image to
image, so that easy and hard images mix.
"""

import math

import numpy as np
import tensorflow as tf

from keras_dsnet.data.image_source import ArraySource, check_classes, resolve_split

CLASS_NAMES = tuple("0123456789")
NUM_EVAL_EXAMPLES = 360
SPLIT_SEED = 0

# Digits of each split, and images made of each digit.
DISTORTED_SPLITS = {"train": (1197, 40), "validation": (200, 10), "test": (400, 10)}
DISTORTION_SEED = 0

# The images of every split of each data set.
NUM_EXAMPLES = {
    "digits": {"train": 1797 - NUM_EVAL_EXAMPLES, "test": NUM_EVAL_EXAMPLES},
    "distorted_digits": {name: math.prod(sizes) for name, sizes in DISTORTED_SPLITS.items()},
}
NAMES = tuple(NUM_EXAMPLES)

_SIZE = 32
_MAX_VALUE = 16.0


def open_digits(
    name: str, split: str = "train", spec: str | None = None, classes: int | None = None
) -> ArraySource:
    """Opens one of the two data sets of handwritten digits.

    Args:
        name: `"digits"` or `"distorted_digits"`.
        split: `"train"`, or `"eval"` for the test images. Used where `spec` is None.
        spec: A split in TFDS syntax, such as `"train[:90%]"` or `"validation"`.
        classes: Int, number of classes of the network, at least 10. Defaults to 10.

    Returns:
        An `ArraySource`.

    Raises:
        ValueError: If scikit-learn is not installed, or on a wrong split or number of classes.
    """
    check_classes(name, len(CLASS_NAMES), classes)
    key, chosen = "train" if split == "train" else "test", slice(None)
    if spec:
        key, chosen = resolve_split(spec, NUM_EXAMPLES[name], name)
    if name == "digits":
        images, labels = (array[chosen] for array in load_digits()[key])
    else:
        images, labels = load_distorted_digits(key, chosen.start, chosen.stop)
    source = ArraySource(name, images, labels, len(CLASS_NAMES), CLASS_NAMES, False, spec or key)
    source.split_size = NUM_EXAMPLES[name][key]
    return source


def load_digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reads scikit-learn's handwritten digits and splits them.

    The 1797 images of 8x8 pixels, by 43 writers, are resized to 32x32 (bicubic) and repeated to
    three equal channels. The split is stratified by class and always the same (`SPLIT_SEED`): 1437
    images to train on and 360 to evaluate on.

    Returns:
        `{"train": (images, labels), "test": (images, labels)}`: uint8 `[examples, 32, 32, 3]` and
        int32 `[examples]`.

    Raises:
        ValueError: If scikit-learn is not installed.
    """
    images, labels = _read_digits("digits")
    train, test = _split(np.arange(len(labels)), labels, NUM_EVAL_EXAMPLES)
    return {
        split: (np.repeat(images[chosen, :, :, None], 3, axis=-1), labels[chosen])
        for split, chosen in (("train", train), ("test", test))
    }


def load_distorted_digits(
    split: str = "train", start: int | None = None, stop: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Makes distorted images of scikit-learn's handwritten digits.

    Every digit belongs to one split, and so do the pieces of other digits around it, so that no
    handwriting of one split is seen in another. 1197 digits give 40 training images each, 200
    others give 10 validation images each, and 400 others give 10 test images each
    (`DISTORTED_SPLITS`). The first images of a split show each of its digits once, the next ones
    show each of them again, and so on. Every such round has its own random numbers, from
    `DISTORTION_SEED`. The images are the same in every run, on every machine up to the rounding of
    single pixels.

    Args:
        split: `"train"`, `"validation"` or `"test"`.
        start: Int, index of the first image to return. Defaults to 0.
        stop: Int, index after the last image to return. Only the rounds from `start` to `stop` are
            made. Defaults to the number of images of the split.

    Returns:
        `(images, labels)`: uint8 `[examples, 32, 32, 3]` and int32 `[examples]`.

    Raises:
        ValueError: If there is no such split, or scikit-learn is not installed.
    """
    if split not in DISTORTED_SPLITS:
        raise ValueError(
            f"`split` must be one of {', '.join(map(repr, DISTORTED_SPLITS))}. "
            f"Received: split={split!r}"
        )
    digits, labels = _digits_of_split(split)
    count, copies = DISTORTED_SPLITS[split]
    start, stop, _ = slice(start, stop).indices(count * copies)
    first, last = start // count, -(-stop // count)
    number = list(DISTORTED_SPLITS).index(split)
    images = np.empty((count * (last - first), _SIZE, _SIZE, 3), np.uint8)
    for copy in range(first, last):
        generator = np.random.default_rng((DISTORTION_SEED, number, copy))
        begin = count * (copy - first)
        images[begin : begin + count] = _distort(digits, generator)[..., None]
    wanted = slice(start - count * first, stop - count * first)
    return images[wanted], np.tile(labels, last - first)[wanted]


def _digits_of_split(split):
    """Returns the undistorted digits of a split, `[count, 32, 32]` in 0..1, and their labels."""
    images, labels = _read_digits("distorted_digits")
    num_validation, num_test = (DISTORTED_SPLITS[name][0] for name in ("validation", "test"))
    train, rest = _split(np.arange(len(labels)), labels, num_validation + num_test)
    validation, test = _split(rest, labels, num_test)
    members = {"train": train, "validation": validation, "test": test}[split]
    return images[members].astype(np.float32) / 255, labels[members]


def _read_digits(name):
    """Returns scikit-learn's digits as uint8 `[1797, 32, 32]`, and int32 labels."""
    try:
        from sklearn.datasets import load_digits as sklearn_digits
    except ImportError as error:
        raise ValueError(
            f"data set '{name}' is part of scikit-learn, which is not installed: "
            "run `pip install scikit-learn`"
        ) from error
    values, labels = sklearn_digits(return_X_y=True)
    gray = values.reshape(-1, 8, 8, 1).astype(np.float32) * (255.0 / _MAX_VALUE)
    resized = tf.image.resize(gray, (_SIZE, _SIZE), method="bicubic", antialias=True).numpy()
    return np.clip(np.rint(resized), 0, 255).astype(np.uint8)[..., 0], labels.astype(np.int32)


def _split(members, labels, count):
    """Holds out `count` of the members, stratified by class; the same ones in every run."""
    from sklearn.model_selection import train_test_split

    return train_test_split(
        members, test_size=count, random_state=SPLIT_SEED, stratify=labels[members]
    )


# The distortions of an image of difficulty 1; those of an easier one are weaker in proportion.
# Angle, shear, shift, bend and noise are standard deviations, the others are limits.
_ROTATION = np.deg2rad(25)
_SHEAR = 0.4
_SHIFT = 3.5  # Pixels.
_BEND = 2.6  # Pixels.
_FADING = 0.7
_BACKGROUND = 0.2
_NOISE = 0.1
_NEIGHBOURS = 6
# These do not depend on the difficulty.
_SCALES = (0.6, 0.9)
_NEIGHBOUR_SIZE = 20
_NEIGHBOUR_DISTANCES = (14, 22)  # Pixels from the middle of the image to that of the neighbour.
_NEIGHBOUR_CONTRASTS = (0.4, 1.0)


def _distort(digits, generator):
    """Draws a difficulty for each digit and distorts it that much.

    Args:
        digits: float32 `[count, 32, 32]` in 0..1.
        generator: `np.random.Generator`.

    Returns:
        uint8 `[count, 32, 32]`.
    """
    count = len(digits)
    difficulty = generator.random((count, 1), np.float32)
    images = _resample(digits, *_coordinates(difficulty, generator))
    _add_neighbours(images, digits, difficulty, generator)
    strength = difficulty[:, :, None]
    uniform = generator.random((3, count, 1, 1), np.float32)
    images *= 1 - _FADING * strength * uniform[0]
    images += _BACKGROUND * strength * uniform[1]
    noise = generator.standard_normal(images.shape, np.float32)
    images += _NOISE * strength * uniform[2] * noise
    return np.clip(np.rint(images * 255), 0, 255).astype(np.uint8)


def _coordinates(difficulty, generator):
    """Draws where each pixel of a distorted image is in its digit.

    Args:
        difficulty: `[count, 1]` in 0..1.
        generator: `np.random.Generator`.

    Returns:
        `(y, x)`, two arrays `[count, 32, 32]` in pixels of the digit.
    """
    count = len(difficulty)
    angle, shear, *shift = generator.standard_normal((4, count, 1), np.float32) * difficulty
    scale = generator.uniform(*_SCALES, (count, 1)).astype(np.float32)
    angle, shear = _ROTATION * angle, _SHEAR * shear
    cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
    centre = (_SIZE - 1) / 2
    grid = np.mgrid[:_SIZE, :_SIZE].reshape(2, 1, -1).astype(np.float32) - centre
    y, x = (grid[axis] - _SHIFT * shift[axis] for axis in (0, 1))
    mapped = (cosine * y + (cosine * shear - sine) * x, sine * y + (sine * shear + cosine) * x)
    bends = _BEND * difficulty[:, :, None] * _smooth_fields(2, count, generator)
    shape = (count, _SIZE, _SIZE)
    return [axis.reshape(shape) + centre + bend for axis, bend in zip(mapped, bends, strict=True)]


def _smooth_fields(number, count, generator, spacing=4):
    """Draws random fields `[number, count, 32, 32]`, smooth and about 1 in standard deviation.

    They are sums of Gaussian bumps on a grid that is a little larger than the image.
    """
    knots = np.arange(-2 * spacing, _SIZE + 2 * spacing + 1, spacing, dtype=np.float32)
    bumps = np.exp(-(((np.arange(_SIZE)[:, None] - knots) / spacing) ** 2) / 2)
    bumps = (bumps / np.linalg.norm(bumps, axis=1, keepdims=True)).astype(np.float32)
    heights = generator.standard_normal((number, count, len(knots), len(knots)), np.float32)
    return bumps @ heights @ bumps.T


def _resample(images, y, x):
    """Returns the images' values at coordinates, bilinear, 0 outside: `[count, height, width]`."""
    padded = np.pad(images, ((0, 0), (1, 2), (1, 2)))
    size = padded.shape[1]
    y, x = (np.clip(axis + 1, 0, size - 2) for axis in (y, x))
    top, left = y.astype(np.int32), x.astype(np.int32)
    down, right = y - top, x - left
    corner = np.arange(len(images))[:, None, None] * size**2 + top * size + left
    values = padded.reshape(-1)
    upper = values[corner] * (1 - right) + values[corner + 1] * right
    lower = values[corner + size] * (1 - right) + values[corner + size + 1] * right
    return upper * (1 - down) + lower * down


def _add_neighbours(images, digits, difficulty, generator):
    """Puts other digits around the middle of each image, so far out that only pieces are seen.

    Args:
        images: float32 `[count, 32, 32]`, changed in place.
        digits: float32 `[count, 32, 32]`, the digits that neighbours are drawn from.
        difficulty: `[count, 1]` in 0..1.
        generator: `np.random.Generator`.
    """
    count, size = len(images), _NEIGHBOUR_SIZE
    small = _shrink(digits, size)
    # A neighbour may reach over the edge of the image by as much as its own size.
    canvas = np.pad(images, ((0, 0), (size, size), (size, size)))
    rows, pixels = np.arange(count)[:, None, None], np.arange(size)
    number = difficulty[:, 0] * generator.uniform(0, _NEIGHBOURS, count)
    for index in range(_NEIGHBOURS):
        piece = small[generator.integers(count, size=count)]
        contrast = generator.uniform(*_NEIGHBOUR_CONTRASTS, count) * (number > index)
        angle = generator.uniform(0, 2 * np.pi, count)
        distance = generator.uniform(*_NEIGHBOUR_DISTANCES, count)
        top, left = (
            np.rint((_SIZE + size) / 2 + distance * turn(angle)).astype(np.int32)
            for turn in (np.sin, np.cos)
        )
        window = rows, top[:, None, None] + pixels[:, None], left[:, None, None] + pixels
        canvas[window] = np.maximum(canvas[window], piece * contrast[:, None, None])
    images[:] = canvas[:, size:-size, size:-size]


def _shrink(images, size):
    """Returns the images resized to `[count, size, size]`, bilinear."""
    scale = images.shape[1] / size
    points = (np.arange(size, dtype=np.float32) + 0.5) * scale - 0.5
    shape = (len(images), size, size)
    return _resample(
        images, np.broadcast_to(points[:, None], shape), np.broadcast_to(points, shape)
    )
