"""Input pipelines of images with boxes, from an image source to batches."""

from collections.abc import Callable

import tensorflow as tf

from keras_dsnet.data.image_source import ImageSource
from keras_dsnet.data.pipelines import as_input, as_size, gray_input, prefetched
from keras_dsnet.data.sharding import Shard
from keras_dsnet.detection.augmentation import (
    boxes_in_window,
    flip,
    paste,
    photometric_distortion,
    ssd_window,
    visible_pixels,
    visible_place,
)
from keras_dsnet.detection.box_source import detection_target
from keras_dsnet.detection.boxes import (
    BOX_FORMAT,
    PADDING,
    check_box_format,
    convert_boxes,
)
from keras_dsnet.utils.argument_checks import check_int

AUGMENTATIONS = ("none", "flip", "ssd")
_TRAINED = ("boxes", "classes", "difficult")
# The values of rows without a box.
_PADDINGS = {"boxes": float(PADDING), "classes": float(PADDING), "difficult": False, "areas": 0.0}


def detection_training_pipeline(
    source: ImageSource,
    *,
    image_size: int | tuple[int, int],
    batch_size: int,
    seed: int,
    preprocess: Callable,
    start_step: int = 0,
    augmentation: str = "ssd",
    hflip: bool | None = None,
    difficult: bool = True,
    max_boxes: int | None = None,
    bounding_box_format: str = BOX_FORMAT,
    shard_index: int = 0,
    num_shards: int = 1,
) -> tf.data.Dataset:
    """Returns an endless stream of shuffled and augmented batches with boxes.

    The order and the augmentation of batch `t` are functions of `(seed, t)`, as in
    `keras_dsnet.data.training_pipeline`: a stream with `start_step=t` continues exactly where an
    uninterrupted one would be. Every image is resized to `image_size`, whatever its proportions.

    Args:
        source: `ImageSource` of `load_detection_source`.
        image_size: Int or `(height, width)`, in pixels.
        batch_size: Int, images per batch.
        seed: Int.
        preprocess: Function from images `[..., height, width, 3]`, RGB from 0 to 255, to inputs of
            the network.
        start_step: Int, index of the first batch. Defaults to 0.
        augmentation: `"ssd"` for that of SSD (photometric distortion, expansion, crops that keep an
            object, flip), `"flip"` or `"none"`. Defaults to `"ssd"`.
        hflip: Bool, whether to mirror images at random. Defaults to True with augmentation.
        difficult: Bool, whether to train on objects marked as difficult. Regions that are marked as
            a crowd are never trained on. Defaults to True, as SSD does.
        max_boxes: Int, the number of boxes that each image is padded to; more are left out.
            Defaults to the most boxes of an image in the batch, at least 1.
        bounding_box_format: String, the format of the boxes, such as `"rel_yxyx"` or `"xyxy"`, in
            pixels of `image_size` where it is not relative. Defaults to `"rel_yxyx"`.
        shard_index: Int, the number of this worker of several. Defaults to 0.
        num_shards: Int, the number of workers, as in `training_pipeline`. Defaults to 1.

    Returns:
        Endless `tf.data.Dataset` of `(images, target)`: float32 `[batch, height, width, 3]` and a
        dict of `"boxes"`, float32 `[batch, n, 4]`, and `"classes"`, float32 `[batch, n]`, padded
        with -1, and `"difficult"`, bool `[batch, n]`.

    Raises:
        ValueError: `batch_size` is larger than the data set, or an argument is out of range.
    """
    size = as_size(image_size)
    check_box_format(bounding_box_format)
    if augmentation not in AUGMENTATIONS:
        raise ValueError(
            f"augmentation must be {', '.join(map(repr, AUGMENTATIONS))}. "
            f"Received: '{augmentation}'"
        )
    if start_step < 0:
        raise ValueError(f"start_step must be 0 or more. Received: {start_step}")
    if max_boxes is not None and max_boxes < 1:
        raise ValueError(f"max_boxes must be 1 or more. Received: {max_boxes}")
    hflip = augmentation != "none" if hflip is None else hflip
    shard = Shard(batch_size, shard_index, num_shards)
    prepare = _training_function(source, size, seed, augmentation, hflip, difficult)

    def padded(target):
        target = _padded(target, max_boxes or 1)
        return {
            name: tf.ensure_shape(column, [max_boxes, *column.shape[1:]])
            for name, column in target.items()
        }

    def make(position, stored, objects):
        image, objects = prepare(position, stored, objects)
        target = {name: objects[name][:max_boxes] for name in _TRAINED}
        target["classes"] = tf.cast(target["classes"], tf.float32)
        return as_input(preprocess, image), padded(target)

    def replace(objects):
        del objects
        target = {"boxes": tf.zeros([0, 4]), "classes": tf.zeros([0])}
        target["difficult"] = tf.zeros([0], tf.bool)
        return gray_input(preprocess, size), padded(target)

    batches = source.map_training(
        make,
        replace,
        seed=seed,
        batch_size=batch_size,
        start_step=start_step,
        shard=shard,
        padding=(0.0, {name: _PADDINGS[name] for name in _TRAINED}),
    )
    return _finished(batches, shard.rows, size, bounding_box_format)


def _training_function(source, image_size, seed, augmentation, hflip, difficult):
    def prepare(position, stored, objects):
        key = tf.stack([tf.constant(seed, tf.int64), position])
        window_seed, color_seed, flip_seed = tf.unstack(tf.random.split(key, 3))
        used = ~objects["crowd"]
        if not difficult:
            used &= ~objects["difficult"]
        objects = _masked({name: objects[name] for name in _TRAINED}, used)
        boxes = objects["boxes"]
        if augmentation == "ssd":
            window = ssd_window(boxes, window_seed)
            image = _seen(source, stored, window, image_size, color_seed)
            boxes, kept = boxes_in_window(boxes, window)
            objects = _masked({**objects, "boxes": boxes}, kept)
        else:
            image, _ = _whole(source, stored, image_size)
        if hflip:
            image, boxes = flip(image, objects["boxes"], flip_seed)
            objects = {**objects, "boxes": boxes}
        # Windows and flips can round a sliver to no width.
        boxes = objects["boxes"]
        objects = _masked(objects, tf.reduce_all(boxes[:, 2:] > boxes[:, :2], axis=1))
        return tf.ensure_shape(image, (*image_size, 3)), objects

    return prepare


def _masked(objects, kept):
    return {name: tf.boolean_mask(column, kept) for name, column in objects.items()}


def _seen(source, stored, window, image_size, seed):
    """Decodes the part of an image that a window shows, and distorts it in its place."""

    def prepare(image, size):
        return photometric_distortion(_resize(image, size), seed)

    image = source.decode(stored, lambda shape: visible_pixels(window, shape))
    return paste(image, visible_place(window), image_size, prepare)


def _whole(source, stored, image_size):
    image = source.decode(stored)
    resized = _resize(image, tf.constant(image_size, tf.int32))
    return tf.ensure_shape(resized, (*image_size, 3)), tf.shape(image)[:2]


def _resize(image, size):
    return tf.image.resize(image, size, method="bilinear", antialias=True)


def detection_evaluation_pipeline(
    source: ImageSource,
    *,
    image_size: int | tuple[int, int],
    batch_size: int,
    preprocess: Callable,
    bounding_box_format: str = BOX_FORMAT,
    every: int = 1,
) -> tf.data.Dataset:
    """Returns all images of a source once, in a fixed order, with all that evaluation needs.

    Args:
        source: `ImageSource` of `load_detection_source`.
        image_size: Int or `(height, width)`, in pixels.
        batch_size: Int, images per batch. The last batch may be smaller.
        preprocess: Function from images `[..., height, width, 3]`, RGB from 0 to 255, to inputs of
            the network.
        bounding_box_format: String, the format of the boxes. Defaults to `"rel_yxyx"`.
        every: Int, 10 for every tenth image. The first images of a folder can show few classes, so
            a shorter evaluation should not take those. Defaults to 1, all images.

    Returns:
        `tf.data.Dataset` of `(images, target)`: float32 `[batch, height, width, 3]` and a dict of
        `"boxes"` and `"classes"`, as in `detection_training_pipeline`; `"difficult"`, bool
        `[batch, n]`, objects and crowds that evaluation ignores; `"areas"`, float32 `[batch, n]`,
        square pixels of the original image; and `"image_size"`, int32 `[batch, 2]`, its height and
        width.

    Raises:
        ValueError: An argument is out of range.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1. Received: batch_size={batch_size}")
    check_int("every", every, 1)
    size = as_size(image_size)
    check_box_format(bounding_box_format)

    def make(stored, objects):
        image, shape = _whole(source, stored, size)
        pixels = tf.cast(tf.reduce_prod(shape), tf.float32)
        target = detection_target({**objects, "areas": objects["areas"] * pixels}, shape)
        return as_input(preprocess, image), _padded(target, 1)

    padding = 0.0, {**_PADDINGS, "image_size": 0}
    batches = source.map_evaluation(make, batch_size, every, padding)
    return _finished(batches, batch_size, size, bounding_box_format)


def _padded(target, rows):
    """Adds rows without a box to the target of an image, up to a number of them.

    Every image has a row at least, so that no batch is empty.
    """
    missing = tf.maximum(rows - tf.shape(target["boxes"])[0], 0)
    padded = dict(target)
    for name, value in _PADDINGS.items():
        if name in target:
            column = target[name]
            paddings = [[0, missing]] + [[0, 0]] * (column.shape.rank - 1)
            padded[name] = tf.pad(column, paddings, constant_values=value)
    return padded


def _finished(batches, batch_size, image_size, bounding_box_format):
    """Converts the boxes of batches, and makes batches in advance."""
    if bounding_box_format != BOX_FORMAT:

        def convert(images, target):
            boxes = target["boxes"]
            boxes = convert_boxes(boxes, BOX_FORMAT, bounding_box_format, images.shape[1:])
            return images, {**target, "boxes": boxes}

        batches = batches.map(convert)
    return prefetched(batches, batch_size, image_size)
