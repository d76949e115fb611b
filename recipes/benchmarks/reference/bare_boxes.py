"""Bare `tf.data` pipelines of images with boxes, with which those of the package are compared.

Seeds are drawn by a stateful generator, a stream cannot be resumed, and an unreadable image ends
it. The augmentation is that of the package.
"""

import numpy as np
import tensorflow as tf

from keras_dsnet.detection.augmentation import (
    boxes_in_window,
    flip,
    paste,
    photometric_distortion,
    ssd_window,
    visible_pixels,
    visible_place,
)

_JPEG = {"channels": 3, "dct_method": "INTEGER_ACCURATE"}


def training_pipeline(source, image_size, batch_size, preprocess):
    """Returns an endless stream of batches with the augmentation of SSD.

    Args:
        source: `BoxFileSource` of JPEG images.
        image_size: Int, in pixels.
        batch_size: Int.
        preprocess: Function of an image.
    """

    def prepare(path, boxes, classes):
        seeds = tf.unstack(tf.random.uniform([3, 2], maxval=2**31 - 1, dtype=tf.int32))
        window = ssd_window(boxes, seeds[0])
        encoded = tf.io.read_file(path)
        pixels = visible_pixels(window, tf.io.extract_jpeg_shape(encoded))
        image = tf.io.decode_and_crop_jpeg(encoded, pixels, **_JPEG)

        def distorted(part, size):
            return photometric_distortion(_resize(part, size), seeds[1])

        image = paste(image, visible_place(window), (image_size, image_size), distorted)
        boxes, kept = boxes_in_window(boxes, window)
        image, boxes = flip(image, tf.boolean_mask(boxes, kept), seeds[2])
        return preprocess(image), boxes, tf.boolean_mask(classes, kept)

    examples = tf.data.Dataset.range(source.num_examples).shuffle(source.num_examples).repeat()
    return _batched(examples.map(_example_function(source)), prepare, batch_size)


def evaluation_pipeline(source, image_size, batch_size, preprocess):
    """Returns batches of all whole images, in order."""

    def prepare(path, boxes, classes):
        image = tf.io.decode_jpeg(tf.io.read_file(path), **_JPEG)
        return preprocess(_resize(image, [image_size, image_size])), boxes, classes

    examples = tf.data.Dataset.range(source.num_examples)
    return _batched(examples.map(_example_function(source)), prepare, batch_size)


def _resize(image, size):
    return tf.image.resize(image, size, method="bilinear", antialias=True)


def _example_function(source):
    paths = tf.constant(source.paths)
    boxes = tf.constant(np.concatenate([image.boxes for image in source.objects]))
    classes = tf.constant(np.concatenate([image.classes for image in source.objects]), tf.float32)
    ends = tf.constant([0, *np.cumsum([len(image.boxes) for image in source.objects])])

    def example(index):
        rows = slice(ends[index], ends[index + 1])
        return paths[index], boxes[rows], classes[rows]

    return example


def _batched(examples, prepare, batch_size):
    images = examples.map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    batches = images.padded_batch(batch_size, padding_values=(0.0, -1.0, -1.0))
    return batches.prefetch(tf.data.AUTOTUNE)
