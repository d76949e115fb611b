"""Random crops, flips and erasing, every draw a function of a seed."""

import math

import tensorflow as tf

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
