"""Input pipelines from an image source to batches, for training or for evaluation."""

import functools
import numbers

import tensorflow as tf

from keras_dsnet.data.augmentation import (
    CIFAR_PADDING,
    image_augmentations,
    inception_window,
    pad_crop_flip,
)
from keras_dsnet.data.image_source import ArraySource


def training_pipeline(
    source,
    *,
    image_size,
    batch_size,
    seed,
    preprocess,
    start_step=0,
    augmentation="none",
    hflip=None,
    randaugment=0,
    randaugment_magnitude=0.5,
    auto_augment=None,
    color_jitter=0.0,
    random_erasing=0.0,
):
    """Endless batches to train on; batch `t` is a function of `(seed, t)`.

    Each epoch shows `source.steps_per_epoch(batch_size)` batches in an order of its own and leaves
    out the remainder. With `start_step=t` the stream goes on exactly where an uninterrupted one
    would be, as long as data, batch size and options are the same: order and augmentation of batch
    `t` are functions of `(seed, t)` too. Images are cropped, flipped, changed by the policies (in
    the order of the arguments) and erased at 0..255, then preprocessed.

    Args:
        source: an `ImageSource`.
        image_size: int or `(height, width)`.
        batch_size: images per batch.
        seed: int.
        preprocess: function of images `[..., height, width, 3]`, 0..255, to network inputs.
        start_step: number of the first batch.
        augmentation: `"none"` (the whole image), `"cifar"` (4 pixels of padding, random crop,
            flip) or `"imagenet"` (inception crop, flip).
        hflip: whether to mirror images at random. None: where there is augmentation, unless the
            data set is one of written characters.
        randaugment: number of RandAugment operations per image, 0 for none.
        randaugment_magnitude: mean strength of these operations, 0..1.
        auto_augment: name of an AutoAugment policy (`"imagenet"` or `"cifar10"`), or None.
        color_jitter: largest relative change of brightness, contrast and saturation, 0..1.
        random_erasing: probability of erasing a rectangle.

    Returns:
        An endless `tf.data.Dataset` of float32 images `[batch, height, width, 3]` and int32 labels
        `[batch]`.

    Raises:
        ValueError: `batch_size` is larger than the data set, or an argument is out of range.
    """
    if augmentation not in ("none", "cifar", "imagenet"):
        raise ValueError(
            f"augmentation must be 'none', 'cifar' or 'imagenet'. Received: '{augmentation}'"
        )
    if start_step < 0:
        raise ValueError(f"start_step must be 0 or more. Received: {start_step}")
    image_size = as_size(image_size)
    steps = source.steps_per_epoch(batch_size)
    if hflip is None:
        hflip = source.mirrorable and augmentation != "none"
    padding = CIFAR_PADDING if augmentation == "cifar" else 0
    policies = image_augmentations(
        randaugment=randaugment,
        randaugment_magnitude=randaugment_magnitude,
        auto_augment=auto_augment,
        color_jitter=color_jitter,
        random_erasing=random_erasing,
    )
    fits = source.image_shape is not None and source.image_shape[:2] == image_size
    if isinstance(source, ArraySource) and fits and augmentation != "imagenet" and not policies:
        batches = _whole_batches(source, batch_size, seed, start_step, padding, hflip)
    else:
        crop = _inception_crop if augmentation == "imagenet" else _no_crop
        prepare = _example_function(source, image_size, seed, crop, padding, hflip, policies)
        examples = source.training_examples(seed, steps * batch_size, start_step * batch_size)
        examples = source.map_examples(examples, prepare, (*image_size, 3), replace_unreadable=True)
        batches = examples.batch(batch_size, drop_remainder=True)
    return batches.map(
        lambda images, labels: (tf.cast(preprocess(images), tf.float32), labels),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    ).prefetch(tf.data.AUTOTUNE)


def _whole_batches(source, batch_size, seed, start_step, padding, hflip):
    def augment_batch(step, images, labels):
        if padding or hflip:
            images = pad_crop_flip(images, _key(seed, step), padding, hflip)
        return images, labels

    batches = source.training_batches(seed, batch_size, start_step)
    return batches.map(augment_batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _example_function(source, image_size, seed, crop, padding, hflip, policies):
    def prepare(number, stored, label):
        crop_seed, shift_seed, *seeds = tf.unstack(
            tf.random.split(_key(seed, number), 2 + len(policies))
        )
        image = crop(source, stored, image_size, crop_seed)
        if padding or hflip:
            image = pad_crop_flip(image[tf.newaxis], shift_seed, padding, hflip)[0]
        for policy, policy_seed in zip(policies, seeds, strict=True):
            image = policy(image, policy_seed)
        return tf.ensure_shape(image, (*image_size, 3)), label

    return prepare


def _inception_crop(source, stored, image_size, seed):
    window_of = functools.partial(inception_window, seed=seed)
    return resize(source.decode(stored, window_of), image_size)


def _no_crop(source, stored, image_size, seed):
    del seed
    return whole_image(source, stored, image_size)


def _key(seed, number):
    return tf.stack([tf.constant(seed, tf.int64), number])


def evaluation_pipeline(source, *, image_size, batch_size, preprocess, crop_fraction=0.875):
    """All images of a source once, in a fixed order.

    Images that have the right size already are used whole; of others the short side is resized to
    `image_size / crop_fraction` (bicubic) and the centre is cropped.

    Args:
        source: an `ImageSource`.
        image_size: int or `(height, width)`.
        batch_size: images per batch; the last batch may be smaller.
        preprocess: function of images `[..., height, width, 3]`, 0..255, to network inputs.
        crop_fraction: share of the resized image, per side, that is kept.

    Returns:
        A finite `tf.data.Dataset` of float32 images `[batch, height, width, 3]` and int32 labels
        `[batch]`.

    Raises:
        ValueError: an argument is out of range.
    """
    image_size = as_size(image_size)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1. Received: batch_size={batch_size}")
    if not 0 < crop_fraction <= 1:
        raise ValueError(f"crop_fraction must be in (0, 1]. Received: {crop_fraction}")

    def prepare(stored, label):
        return whole_image(source, stored, image_size, crop_fraction), label

    dataset = source.map_examples(
        source.ordered_examples(), prepare, (*image_size, 3), replace_unreadable=False
    )
    dataset = dataset.batch(batch_size).map(
        lambda images, labels: (tf.cast(preprocess(images), tf.float32), labels)
    )
    return dataset.prefetch(tf.data.AUTOTUNE)


def whole_image(source, stored, image_size, crop_fraction=1.0):
    """Decodes an image to a size, without randomness.

    Args:
        source: an `ImageSource`.
        stored: a stored image of it.
        image_size: `(height, width)`.
        crop_fraction: share of the resized image, per side, that is kept where it is resized.

    Returns:
        float32 `[*image_size, 3]`, 0..255.
    """
    if source.image_shape is not None and tuple(source.image_shape[:2]) == image_size:
        return tf.cast(source.decode(stored), tf.float32)

    # The centre of the original is cropped, then resized: the same pixels for less work.
    def centre(shape):
        target = tf.constant(image_size, tf.float32)
        scale = tf.reduce_max(target / crop_fraction / tf.cast(shape[:2], tf.float32))
        size = tf.clip_by_value(tf.cast(tf.round(target / scale), tf.int32), 1, shape[:2])
        return tf.concat([(shape[:2] - size) // 2, size], axis=0)

    return resize(source.decode(stored, centre), image_size)


def resize(image, image_size):
    """Resizes an image, bicubic with antialiasing.

    Args:
        image: `[height, width, 3]`, 0..255.
        image_size: `(height, width)` of the result.

    Returns:
        float32 `[*image_size, 3]`, 0..255.
    """
    # A bicubic filter overshoots at edges, which uint8 decoders of other libraries clip too.
    resized = tf.image.resize(image, image_size, method="bicubic", antialias=True)
    return tf.ensure_shape(tf.clip_by_value(resized, 0.0, 255.0), (*image_size, 3))


def as_size(image_size):
    """`(height, width)` of an `image_size` argument, an int or two of them."""
    size = (image_size,) * 2 if isinstance(image_size, numbers.Integral) else tuple(image_size)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(
            f"image_size must be a positive int or (height, width). Received: {image_size}"
        )
    return size
