"""Input pipelines, from an image source to batches."""

import functools
import numbers
from collections.abc import Callable

import tensorflow as tf

from keras_dsnet.data.augmentation import (
    CIFAR_PADDING,
    image_augmentations,
    inception_window,
    pad_crop_flip,
    pad_crop_flip_image,
)
from keras_dsnet.data.image_source import ArraySource, ImageSource, is_large_batch
from keras_dsnet.data.sharding import Shard

_GRAY = 127.5  # replaces an unreadable image in training


def training_pipeline(
    source: ImageSource,
    *,
    image_size: int | tuple[int, int],
    batch_size: int,
    seed: int,
    preprocess: Callable,
    start_step: int = 0,
    augmentation: str = "none",
    hflip: bool | None = None,
    randaugment: int = 0,
    randaugment_magnitude: float = 0.5,
    auto_augment: str | None = None,
    color_jitter: float = 0.0,
    random_erasing: float = 0.0,
    shard_index: int = 0,
    num_shards: int = 1,
) -> tf.data.Dataset:
    """Returns an endless stream of shuffled and augmented batches.

    The order and the augmentation of batch `t` are functions of `(seed, t)`. A stream with
    `start_step=t` therefore continues exactly where an uninterrupted one would be, if the data, the
    batch size and the options are the same. Each epoch has `source.steps_per_epoch(batch_size)`
    batches in its own order and leaves out the remaining images.

    Images are cropped and flipped, then changed by RandAugment, AutoAugment, color jitter and
    random erasing in this order, all on pixels from 0 to 255, and finally preprocessed.

    Args:
        source: `ImageSource`.
        image_size: Int or `(height, width)`, in pixels.
        batch_size: Int, images per batch, over all workers.
        seed: Int.
        preprocess: Function from images `[..., height, width, 3]`, RGB from 0 to 255, to inputs of
            the network.
        start_step: Int, index of the first batch. Defaults to 0.
        augmentation: `"none"` for the largest centred part of the shape of `image_size`, `"cifar"`
            for 4 pixels of padding, a random crop and a flip, or `"imagenet"` for an inception crop
            and a flip. Defaults to `"none"`.
        hflip: Bool, whether to mirror images at random. Defaults to True with augmentation, unless
            the data set shows written characters.
        randaugment: Int, number of RandAugment operations per image. Defaults to 0.
        randaugment_magnitude: Float in [0, 1], mean magnitude of these operations. Defaults to 0.5.
        auto_augment: Name of an AutoAugment policy, `"imagenet"` or `"cifar10"`. Defaults to None.
        color_jitter: Float in [0, 1], largest relative change of brightness, contrast and
            saturation. Defaults to 0.
        random_erasing: Float in [0, 1], probability of erasing a rectangle. Defaults to 0.
        shard_index: Int, the number of this worker of several. Defaults to 0.
        num_shards: Int, the number of workers. Each reads its rows of every batch, and all together
            the batches of one worker. Defaults to 1.

    Returns:
        Endless `tf.data.Dataset` of float32 images `[batch, height, width, 3]` and int32 labels
        `[batch]`.

    Raises:
        ValueError: `batch_size` is larger than the data set, or an argument is out of range.

    Example:

    ```python
    from keras_dsnet.data import load_source, training_pipeline

    dataset = training_pipeline(
        load_source("digits"),
        image_size=32,
        batch_size=16,
        seed=0,
        preprocess=lambda images: images / 255,
        augmentation="cifar",
    )
    images, labels = next(iter(dataset))
    print(images.shape)  # (16, 32, 32, 3)
    ```
    """
    if augmentation not in ("none", "cifar", "imagenet"):
        raise ValueError(
            f"augmentation must be 'none', 'cifar' or 'imagenet'. Received: '{augmentation}'"
        )
    if start_step < 0:
        raise ValueError(f"start_step must be 0 or more. Received: {start_step}")
    size = as_size(image_size)
    shard = Shard(batch_size, shard_index, num_shards)
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
    fits = source.image_shape is not None and source.image_shape[:2] == size
    if isinstance(source, ArraySource) and fits and augmentation != "imagenet" and not policies:
        batches = _gathered_batches(source, batch_size, seed, start_step, padding, hflip)
        batches = shard.of_batches(batches).map(
            lambda images, labels: (as_input(preprocess, images), labels),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
    else:
        crop = _inception_crop if augmentation == "imagenet" else _no_crop
        prepare = _example_function(source, size, seed, crop, padding, hflip, policies)

        def make_input(position, stored, label):
            return as_input(preprocess, prepare(position, stored)), label

        batches = source.map_training(
            make_input,
            lambda label: (gray_input(preprocess, size), label),
            seed=seed,
            batch_size=batch_size,
            start_step=start_step,
            shard=shard,
        )
    return prefetched(batches, shard.rows, size)


def as_input(preprocess, images):
    """Returns images from 0 to 255 as float32 inputs of a network."""
    return tf.cast(preprocess(images), tf.float32)


def gray_input(preprocess, image_size):
    """Returns the input that replaces an unreadable image in training."""
    return as_input(preprocess, tf.fill((*image_size, 3), _GRAY))


def prefetched(batches, batch_size, image_size):
    """Makes batches in advance, only one of them if they are large."""
    large = is_large_batch(batch_size, (*image_size, 3))
    return batches.prefetch(1 if large else tf.data.AUTOTUNE)


def _gathered_batches(source, batch_size, seed, start_step, padding, hflip):
    def augment_batch(step, images, labels):
        if padding or hflip:
            images = pad_crop_flip(images, _key(seed, step), padding, hflip)
        return images, labels

    batches = source.training_batches(seed, batch_size, start_step)
    return batches.map(augment_batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _example_function(source, image_size, seed, crop, padding, hflip, policies):
    def prepare(position, stored):
        crop_seed, shift_seed, *seeds = tf.unstack(
            tf.random.split(_key(seed, position), 2 + len(policies))
        )
        image = crop(source, stored, image_size, crop_seed)
        if padding or hflip:
            image = pad_crop_flip_image(image, shift_seed, padding, hflip)
        for policy, policy_seed in zip(policies, seeds, strict=True):
            image = policy(image, policy_seed)
        return tf.ensure_shape(image, (*image_size, 3))

    return prepare


def _inception_crop(source, stored, image_size, seed):
    window_of = functools.partial(inception_window, seed=seed)
    return resize(source.decode(stored, window_of), image_size)


def _no_crop(source, stored, image_size, seed):
    del seed
    return whole_image(source, stored, image_size)


def _key(seed, position):
    return tf.stack([tf.constant(seed, tf.int64), position])


def evaluation_pipeline(
    source: ImageSource,
    *,
    image_size: int | tuple[int, int],
    batch_size: int,
    preprocess: Callable,
    crop_fraction: float = 0.875,
) -> tf.data.Dataset:
    """Returns all images of a source once, in batches of a fixed order.

    Images of the requested size are used as they are. The short side of other images is resized to
    `image_size / crop_fraction` (bicubic), and the centre is cropped.

    Args:
        source: `ImageSource`.
        image_size: Int or `(height, width)`, in pixels.
        batch_size: Int, images per batch. The last batch may be smaller.
        preprocess: Function from images `[..., height, width, 3]`, RGB from 0 to 255, to inputs of
            the network.
        crop_fraction: Float in (0, 1], the fraction of each side of the resized image that is kept.
            Defaults to 0.875.

    Returns:
        `tf.data.Dataset` of float32 images `[batch, height, width, 3]` and int32 labels `[batch]`.

    Raises:
        ValueError: An argument is out of range.

    Example:

    ```python
    from keras_dsnet.data import evaluation_pipeline, load_source

    dataset = evaluation_pipeline(
        load_source("digits", split="eval"),
        image_size=32,
        batch_size=100,
        preprocess=lambda images: images / 255,
    )
    print(len(list(dataset)))  # 4 batches of the 360 test images
    ```
    """
    size = as_size(image_size)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1. Received: batch_size={batch_size}")
    if not 0 < crop_fraction <= 1:
        raise ValueError(f"crop_fraction must be in (0, 1]. Received: {crop_fraction}")

    def make_input(stored, label):
        return as_input(preprocess, whole_image(source, stored, size, crop_fraction)), label

    batches = source.map_evaluation(make_input, batch_size)
    return prefetched(batches, batch_size, size)


def whole_image(source, stored, image_size, crop_fraction=1.0):
    """Decodes an image to a fixed size, without randomness.

    Args:
        source: `ImageSource`.
        stored: Stored image of the source.
        image_size: Tuple `(height, width)`.
        crop_fraction: Float in (0, 1], the fraction of each side that is kept if the image is
            resized.

    Returns:
        float32 tensor `[*image_size, 3]`, from 0 to 255.
    """
    if source.image_shape is not None and tuple(source.image_shape[:2]) == image_size:
        return tf.cast(source.decode(stored), tf.float32)

    # Cropping before resizing shows the same pixels as resizing first, and is cheaper.
    def centre(shape):
        target = tf.constant(image_size, tf.float32)
        # The images of a folder may have the requested size too, which is known only here.
        fraction = tf.where(tf.reduce_all(shape[:2] == image_size), 1.0, crop_fraction)
        scale = tf.reduce_max(target / fraction / tf.cast(shape[:2], tf.float32))
        size = tf.clip_by_value(tf.cast(tf.round(target / scale), tf.int32), 1, shape[:2])
        return tf.concat([(shape[:2] - size) // 2, size], axis=0)

    return resize(source.decode(stored, centre), image_size)


def resize(image, image_size):
    """Resizes an image by a bicubic filter with antialiasing.

    Args:
        image: Tensor `[height, width, 3]`, from 0 to 255.
        image_size: Tuple `(height, width)` of the result.

    Returns:
        float32 tensor `[*image_size, 3]`, from 0 to 255.
    """
    # A bicubic filter overshoots at edges. Other libraries, which resize in uint8, clip there too.
    resized = tf.image.resize(image, image_size, method="bicubic", antialias=True)
    return tf.ensure_shape(tf.clip_by_value(resized, 0.0, 255.0), (*image_size, 3))


def as_size(image_size):
    """Returns an `image_size` argument, an int or two ints, as `(height, width)`."""
    size = (image_size,) * 2 if isinstance(image_size, numbers.Integral) else tuple(image_size)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(
            f"image_size must be a positive int or (height, width). Received: {image_size}"
        )
    return size
