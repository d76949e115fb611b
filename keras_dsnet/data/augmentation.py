"""Augmentations of training images, whose random draws are functions of a seed.

Only this module uses KerasCV, and it imports KerasCV only when one of its layers is requested.
KerasCV draws from stateful generators; `_SeededLayers` replaces them.
"""

import functools
import math
from collections.abc import Callable

import keras
import tensorflow as tf

from keras_dsnet.data.auto_augment import AUTO_AUGMENT_POLICIES, auto_augment
from keras_dsnet.utils.private_names import flatten_layers, set_random_generator

_VALUE_RANGE = (0, 255)
CIFAR_PADDING = 4
INCEPTION_AREA = (0.08, 1.0)
INCEPTION_ASPECT = (3 / 4, 4 / 3)
ERASED_AREA = (0.02, 0.33)
ERASED_ASPECT = (0.3, 1 / 0.3)
# About the mean of natural images, so that erased pixels are near zero after normalization.
_ERASED_VALUE = 114.0


def image_augmentations(
    *,
    randaugment: int = 0,
    randaugment_magnitude: float = 0.5,
    auto_augment: str | None = None,
    color_jitter: float = 0.0,
    random_erasing: float = 0.0,
) -> list[Callable]:
    """Returns the requested augmentations in the order in which they are applied.

    Args:
        randaugment: Int, number of RandAugment operations per image. Defaults to 0.
        randaugment_magnitude: Float in [0, 1], mean magnitude of these operations. Defaults to 0.5.
        auto_augment: Name of an AutoAugment policy. Defaults to None.
        color_jitter: Float in [0, 1], largest relative change of brightness, contrast and
            saturation. Defaults to 0.
        random_erasing: Float in [0, 1], probability of erasing a rectangle. Defaults to 0.

    Returns:
        List of functions that take an image, float32 `[height, width, 3]` from 0 to 255, and a
        seed, an int tensor `[2]`, and return an image of the same shape and dtype.

    Raises:
        ValueError: An argument is out of range.
    """
    for name, value in (
        ("randaugment_magnitude", randaugment_magnitude),
        ("color_jitter", color_jitter),
        ("random_erasing", random_erasing),
    ):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in 0..1. Received: {value}")
    if randaugment < 0:
        raise ValueError(f"randaugment must be 0 operations or more. Received: {randaugment}")
    if auto_augment is not None and auto_augment not in AUTO_AUGMENT_POLICIES:
        names = " or ".join(f"'{name}'" for name in AUTO_AUGMENT_POLICIES)
        raise ValueError(f"auto_augment must be {names} or None. Received: '{auto_augment}'")
    augmentations = []
    if randaugment:
        augmentations.append(_rand_augment(randaugment, randaugment_magnitude))
    if auto_augment is not None:
        augmentations.append(_auto_augment(auto_augment))
    if color_jitter:
        augmentations.append(_color_jitter(color_jitter))
    if random_erasing:
        augmentations.append(_random_erasing(random_erasing))
    return augmentations


def _rand_augment(operations, magnitude):
    return _SeededLayers(
        lambda layers: [
            layers.RandAugment(
                value_range=_VALUE_RANGE,
                augmentations_per_image=operations,
                magnitude=magnitude,
                seed=0,
            )
        ]
    )


def _color_jitter(strength):
    return functools.partial(color_jitter, strength=strength)


def color_jitter(image, seed, strength):
    """Changes brightness, contrast and saturation, in this order.

    Half of white, a usual mean, times a factor is added to the brightness.

    Args:
        image: float32 tensor `[height, width, 3]`, from 0 to 255.
        seed: Int tensor `[2]`.
        strength: Float in [0, 1], largest relative change.

    Returns:
        Tensor of the same shape and dtype.
    """
    shape = image.shape
    low, high = 1 - strength, 1 + strength
    ranges = ((-strength / 2, strength / 2), (low, high), (low / (1 + low), high / (1 + high)))
    brightness, contrast, saturation = (
        tf.random.stateless_uniform([], tf.random.fold_in(seed, number), *limits)
        for number, limits in enumerate(ranges, start=1)
    )
    # Operations on whole planes are several times as fast as on interleaved channels.
    planes = tf.transpose(image, (2, 0, 1))
    planes = tf.clip_by_value(planes + 255.0 * brightness, 0.0, 255.0)
    means = tf.reduce_mean(planes, (1, 2), keepdims=True)
    planes = tf.clip_by_value((planes - means) * contrast + means, 0.0, 255.0)
    red, green, blue = tf.unstack(planes)
    most = tf.maximum(tf.maximum(red, green), blue)
    least = tf.minimum(tf.minimum(red, green), blue)
    # The saturation in HSV is (most - least) / most, and at most 1.
    factor = tf.minimum(
        saturation / (1 - saturation), most / tf.maximum(most - least, keras.config.epsilon())
    )
    planes = most - (most - planes) * factor
    return tf.ensure_shape(tf.transpose(planes, (1, 2, 0)), shape)


def _auto_augment(policy):
    def sharpen(image, factor):
        import keras_cv

        # KerasCV's factor is the amount of smoothing, so a negative one sharpens.
        sharpness.layers[0].factor = keras_cv.core.ConstantFactorSampler(1.0 - factor)
        return sharpness(image, seed=None)

    sharpness = _SeededLayers(
        lambda layers: [layers.RandomSharpness(0.0, value_range=_VALUE_RANGE, seed=0)]
    )
    library = {
        "sharpness": sharpen,
        "equalize": equalize,
        "autocontrast": autocontrast,
    }
    return functools.partial(auto_augment, policy=policy, library=library)


def equalize(image):
    """Equalizes the histogram of each channel, as KerasCV's `Equalization` does.

    Args:
        image: float32 tensor `[height, width, 3]`, from 0 to 255.

    Returns:
        float32 tensor of the same shape, of whole numbers.
    """
    values = tf.cast(image, tf.int32) + tf.constant([0, 256, 512])
    counts = tf.math.bincount(tf.reshape(values, [-1]), minlength=768, maxlength=768)
    counts = tf.reshape(counts, [3, 256])
    least = tf.reduce_min(tf.where(counts == 0, counts.dtype.max, counts), 1, keepdims=True)
    step = (tf.reduce_sum(counts, 1, keepdims=True) - least) // 255
    table = tf.cumsum(counts, 1, exclusive=True)[:, 1:] + tf.maximum(step, 1) // 2
    table = tf.pad(table // tf.maximum(step, 1), [[0, 0], [1, 0]])
    table = tf.where(step == 0, tf.range(256), tf.clip_by_value(table, 0, 255))
    return tf.gather(tf.cast(tf.reshape(table, [-1]), tf.float32), values)


def autocontrast(image):
    """Stretches the values of each channel to the range from 0 to 255.

    Args:
        image: float32 tensor `[height, width, 3]`, from 0 to 255.

    Returns:
        Tensor of the same shape and dtype. A channel of one value is not changed.
    """
    # Reducing rows first keeps the inner dimension long, which is faster.
    low = tf.reduce_min(tf.reduce_min(image, 0), 0)
    high = tf.reduce_max(tf.reduce_max(image, 0), 0)
    scale = tf.where(high > low, 255.0 / (high - low), 1.0)
    offset = tf.where(high > low, -low * scale, 0.0)
    return tf.clip_by_value(image * scale + offset, 0.0, 255.0)


def _random_erasing(probability):
    return functools.partial(random_erasing, probability=probability)


def random_erasing(image, seed, probability):
    """Fills a random rectangle of 2 to 33 % of the area with gray (Zhong et al., AAAI 2020).

    Args:
        image: float32 tensor `[height, width, 3]`, from 0 to 255.
        seed: Int tensor `[2]`.
        probability: Float in [0, 1], probability of erasing a rectangle.

    Returns:
        Tensor of the same shape and dtype.
    """
    draws = tf.random.stateless_uniform([5], seed)
    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    area = ERASED_AREA[0] + draws[0] * (ERASED_AREA[1] - ERASED_AREA[0])
    low, high = map(math.log, ERASED_ASPECT)
    aspect = tf.exp(low + draws[1] * (high - low))
    size = tf.sqrt(tf.reduce_prod(shape) * area * tf.stack([aspect, 1 / aspect]))
    size = tf.minimum(tf.round(size), shape)
    begin = tf.floor(draws[2:4] * (shape - size + 1))
    end = begin + size
    rows = tf.range(shape[0])[:, tf.newaxis, tf.newaxis]
    columns = tf.range(shape[1])[tf.newaxis, :, tf.newaxis]
    inside = (rows >= begin[0]) & (rows < end[0]) & (columns >= begin[1]) & (columns < end[1])
    return tf.where(inside & (draws[4] < probability), _ERASED_VALUE, image)


class _SeededLayers:
    """KerasCV layers that are applied to an image in turn, as a function of a seed.

    Stateless generators and factor samplers replace those of each layer and its sub-layers. Each
    draw gets its number while the function is traced, so it must be traced once for one image, as
    `tf.data.Dataset.map` does.

    Args:
        make: Function that takes the module `keras_cv.layers` and returns a list of its layers.
    """

    def __init__(self, make):
        import keras_cv

        self._draws = _Draws()
        try:
            self.layers = make(keras_cv.layers)
        except RuntimeError:
            # Some layers use the global generator, which must be set under op determinism.
            tf.random.set_global_generator(tf.random.Generator.from_seed(0))
            self.layers = make(keras_cv.layers)
        for layer in self.layers:
            for part in flatten_layers(layer):
                self._make_stateless(part, keras_cv.core)

    def __call__(self, image, seed):
        """Applies the layers.

        Args:
            image: float32 tensor `[height, width, 3]`, from 0 to 255.
            seed: Int tensor `[2]`, or None for layers without random draws.

        Returns:
            Tensor of the same shape and dtype.
        """
        self._draws.restart(seed)
        shape = image.shape
        for layer in self.layers:
            image = layer(image)
        return tf.ensure_shape(image, shape)

    def _make_stateless(self, layer, core):
        set_random_generator(layer, self._draws)
        # Images must stay float32 under a mixed precision policy.
        layer.dtype_policy = "float32"
        for name, value in list(vars(layer).items()):
            if isinstance(value, core.UniformFactorSampler):
                sampler = functools.partial(
                    self._draws.uniform, minval=value.lower, maxval=value.upper
                )
            elif isinstance(value, core.NormalFactorSampler):
                sampler = functools.partial(self._clipped_normal, value)
            else:
                continue
            setattr(layer, name, sampler)

    def _clipped_normal(self, sampler, shape=(), dtype=tf.float32):
        drawn = self._draws.normal(shape, sampler.mean, sampler.stddev, dtype)
        return tf.clip_by_value(drawn, sampler.min_value, sampler.max_value)


class _Draws:
    """The methods of `tf.random.Generator` that KerasCV uses, as functions of a seed."""

    def restart(self, seed):
        self._seed = seed
        self._count = 0

    def uniform(self, shape=(), minval=0, maxval=None, dtype=tf.float32):
        return tf.random.stateless_uniform(
            shape, self._next(), minval, 1 if maxval is None else maxval, dtype
        )

    def normal(self, shape=(), mean=0.0, stddev=1.0, dtype=tf.float32):
        return tf.random.stateless_normal(shape, self._next(), mean, stddev, dtype)

    def _next(self):
        self._count += 1
        return tf.random.fold_in(self._seed, self._count)


def pad_crop_flip(images, seed, padding=CIFAR_PADDING, hflip=True):
    """Pads images with zeros, crops them at random to the original size and mirrors half of them.

    Each image is cropped at its own position, and mirrored left to right with probability 0.5.

    Args:
        images: Tensor `[batch, height, width, channels]` of any dtype.
        seed: Int tensor `[2]`.
        padding: Int, pixels added on each side. Defaults to 4.
        hflip: Bool, whether to mirror images. Defaults to True.

    Returns:
        Tensor of the same shape and dtype.
    """
    batch, height, width = tf.unstack(tf.shape(images)[:3])
    crop_seed, flip_seed = tf.unstack(tf.random.split(seed))
    padded = tf.pad(images, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
    offsets = tf.random.stateless_uniform([2, batch, 1], crop_seed, 0, 2 * padding + 1, tf.int32)
    columns = tf.range(width)
    if hflip:
        mirrored = tf.random.stateless_uniform([batch, 1], flip_seed) < 0.5
        columns = tf.where(mirrored, width - 1 - columns, columns)
    rows = tf.gather(padded, offsets[0] + tf.range(height), axis=1, batch_dims=1)
    cropped = tf.gather(rows, offsets[1] + columns, axis=2, batch_dims=1)
    return tf.ensure_shape(cropped, images.shape)


def pad_crop_flip_image(image, seed, padding=CIFAR_PADDING, hflip=True):
    """Changes one image as `pad_crop_flip` changes a batch of one, without gathering its pixels.

    Args:
        image: Tensor `[height, width, channels]` of any dtype.
        seed: Int tensor `[2]`.
        padding: Int, pixels added on each side. Defaults to 4.
        hflip: Bool, whether to mirror the image. Defaults to True.

    Returns:
        Tensor of the same shape and dtype.
    """
    shape = image.shape
    crop_seed, flip_seed = tf.unstack(tf.random.split(seed))
    if padding:
        size = tf.shape(image)
        offsets = tf.random.stateless_uniform([2], crop_seed, 0, 2 * padding + 1, tf.int32)
        image = tf.pad(image, [[padding, padding], [padding, padding], [0, 0]])
        image = tf.slice(image, tf.concat([offsets, [0]], 0), size)
    if hflip:
        is_mirrored = tf.random.stateless_uniform([], flip_seed) < 0.5
        image = tf.cond(is_mirrored, lambda: tf.reverse(image, [1]), lambda: image)
    return tf.ensure_shape(image, shape)


def inception_window(shape, seed):
    """Draws the window of an inception crop: 8 to 100 % of the area, aspect ratio 3/4 to 4/3.

    Args:
        shape: int32 tensor `[3]`, the shape of the image.
        seed: Int tensor `[2]`.

    Returns:
        int32 tensor `[4]`: top, left, height, width.
    """
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        seed,
        min_object_covered=0.0,
        aspect_ratio_range=INCEPTION_ASPECT,
        area_range=INCEPTION_AREA,
    )
    return tf.concat([begin[:2], size[:2]], axis=0)
