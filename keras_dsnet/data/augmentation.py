"""Augmentations of training images, with every draw a function of a seed.

This is the only module that knows KerasCV. KerasCV draws from stateful generators; `_SeededLayers`
makes its draws functions of a seed. It is imported where one of its layers is asked for.
"""

import functools
import math

import tensorflow as tf

from keras_dsnet.data.auto_augment import AUTO_AUGMENT_POLICIES, auto_augment
from keras_dsnet.utils.private_names import flatten_layers, set_random_generator

_VALUE_RANGE = (0, 255)


def image_augmentations(
    *,
    randaugment=0,
    randaugment_magnitude=0.5,
    auto_augment=None,
    color_jitter=0.0,
    random_erasing=0.0,
):
    """The augmentations asked for, in the order in which they apply.

    Args:
        randaugment: number of RandAugment operations per image, 0 for none.
        randaugment_magnitude: mean strength of these operations, 0..1.
        auto_augment: name of an AutoAugment policy, or None.
        color_jitter: largest relative change of brightness, contrast and saturation, 0..1.
        random_erasing: probability of erasing a rectangle.

    Returns:
        A list of functions of `(image, seed)`: float32 `[height, width, 3]`, 0..255, and an int
        tensor `[2]`, to an image of the same kind.

    Raises:
        ValueError: an argument is out of range.
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
    chosen = []
    if randaugment:
        chosen.append(_rand_augment(randaugment, randaugment_magnitude))
    if auto_augment is not None:
        chosen.append(_auto_augment(auto_augment))
    if color_jitter:
        chosen.append(_color_jitter(color_jitter))
    if random_erasing:
        chosen.append(_random_erasing(random_erasing))
    return chosen


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
    # KerasCV adds to the brightness where others multiply it, and half of white is a usual mean;
    # its saturation factor f multiplies the saturation by f / (1 - f).
    saturation = tuple(scale / (1 + scale) for scale in (1 - strength, 1 + strength))
    return _SeededLayers(
        lambda layers: [
            layers.RandomBrightness(strength / 2, value_range=_VALUE_RANGE, seed=0),
            layers.RandomContrast(value_range=_VALUE_RANGE, factor=strength, seed=0),
            layers.RandomSaturation(saturation, seed=0),
        ]
    )


def _auto_augment(policy):
    def sharpen(image, factor):
        import keras_cv

        # KerasCV's factor says how much to smooth: negative sharpens.
        sharpness.layers[0].factor = keras_cv.core.ConstantFactorSampler(1.0 - factor)
        return sharpness(image, seed=None)

    sharpness = _SeededLayers(
        lambda layers: [layers.RandomSharpness(0.0, value_range=_VALUE_RANGE, seed=0)]
    )
    equalize = _SeededLayers(lambda layers: [layers.Equalization(value_range=_VALUE_RANGE, seed=0)])
    autocontrast = _SeededLayers(
        lambda layers: [layers.AutoContrast(value_range=_VALUE_RANGE, seed=0)]
    )
    library = {
        "sharpness": sharpen,
        "equalize": functools.partial(equalize, seed=None),
        "autocontrast": functools.partial(autocontrast, seed=None),
    }
    return functools.partial(auto_augment, policy=policy, library=library)


def _random_erasing(probability):
    return functools.partial(random_erasing, probability=probability)


class _SeededLayers:
    """KerasCV layers, applied to one image after the other, as a function of a seed.

    The generator and the factor samplers of each layer and its sub-layers are replaced by
    stateless ones. Works where it is traced once for one image, as in `tf.data.Dataset.map`: each
    draw gets a number while tracing.

    Args:
        make: function of the module `keras_cv.layers` that returns a list of its layers.
    """

    def __init__(self, make):
        import keras_cv

        self._draws = _Draws()
        try:
            self.layers = make(keras_cv.layers)
        except RuntimeError:
            # Some layers ask for the global generator, which op determinism wants to be set first.
            tf.random.set_global_generator(tf.random.Generator.from_seed(0))
            self.layers = make(keras_cv.layers)
        for layer in self.layers:
            for part in flatten_layers(layer):
                self._make_stateless(part, keras_cv.core)

    def __call__(self, image, seed):
        """Applies the layers.

        Args:
            image: float32 `[height, width, 3]`, 0..255.
            seed: int tensor `[2]`, or None for layers that draw nothing.

        Returns:
            The same shape and dtype.
        """
        self._draws.restart(seed)
        shape = image.shape
        for layer in self.layers:
            image = layer(image)
        return tf.ensure_shape(image, shape)

    def _make_stateless(self, layer, core):
        set_random_generator(layer, self._draws)
        # Images stay float32 under a mixed precision policy.
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
    """The part of `tf.random.Generator` that KerasCV uses, as functions of a seed."""

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


CIFAR_PADDING = 4
INCEPTION_AREA = (0.08, 1.0)
INCEPTION_ASPECT = (3 / 4, 4 / 3)
ERASED_AREA = (0.02, 0.33)
ERASED_ASPECT = (0.3, 1 / 0.3)
# About the mean of natural images, so that what is erased is near zero for the network.
_ERASED_VALUE = 114.0


def pad_crop_flip(images, seed, padding=CIFAR_PADDING, hflip=True):
    """Pads with zeros, crops to the original size at a random place and mirrors at random.

    Each image has its own place, and is mirrored left to right with probability one half.

    Args:
        images: `[batch, height, width, channels]`, of any dtype.
        seed: int tensor `[2]`.
        padding: pixels added on each side; 0 never moves the image.
        hflip: whether to mirror at all.

    Returns:
        The same shape and dtype.
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


def inception_window(shape, seed):
    """Draws the window of an inception crop: 8 to 100 % of the area, aspect ratio 3/4 to 4/3.

    Args:
        shape: int32 `[3]`, the image's shape.
        seed: int tensor `[2]`.

    Returns:
        int32 `[4]`: top, left, height, width.
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


def random_erasing(image, seed, probability):
    """Fills a random rectangle with gray (Zhong et al., AAAI 2020): 2 to 33 % of the area.

    Args:
        image: float32 `[height, width, 3]`, 0..255.
        seed: int tensor `[2]`.
        probability: how often anything is erased.

    Returns:
        The same shape and dtype.
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
