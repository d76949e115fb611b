"""Random changes to training images, every draw a function of a seed.

This is the only module that knows KerasCV.
"""

import tensorflow as tf

CIFAR_PADDING = 4


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
    images_of_rows = tf.gather(padded, offsets[0] + tf.range(height), axis=1, batch_dims=1)
    cropped = tf.gather(images_of_rows, offsets[1] + columns, axis=2, batch_dims=1)
    return tf.ensure_shape(cropped, images.shape)
