"""Images for training: endless, shuffled and augmented, and resumable at any step."""

import tensorflow as tf

from keras_dsnet.data import augmentation as augment
from keras_dsnet.data.array_source import ArraySource
from keras_dsnet.data.evaluation_pipeline import as_size


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
):
    """Endless batches to train on; batch `t` is a function of `(seed, t)`.

    Each epoch shows `source.steps_per_epoch(batch_size)` batches in an order of its own and leaves
    out the remainder. With `start_step=t` the stream goes on exactly where an uninterrupted one
    would be.

    Args:
        source: an `ImageSource`.
        image_size: int or `(height, width)`.
        batch_size: images per batch.
        seed: int.
        preprocess: function of images `[..., height, width, 3]`, 0..255, to network inputs.
        start_step: number of the first batch.
        augmentation: `"none"`, or `"cifar"` (4 pixels of padding, random crop, flip).
        hflip: whether to mirror images at random; None mirrors unless the images are characters.

    Returns:
        A `tf.data.Dataset` of float32 images `[batch, height, width, 3]` and int32 labels `[batch]`.

    Raises:
        ValueError: `batch_size` is larger than the data set, or an argument is out of range.
    """
    image_size = as_size(image_size)
    source.steps_per_epoch(batch_size)
    if hflip is None:
        hflip = source.mirrorable
    hflip = hflip and augmentation != "none"

    def augment_batch(images, key):
        padding = augment.CIFAR_PADDING if augmentation == "cifar" else 0
        if padding or hflip:
            images = augment.pad_crop_flip(images, key, padding, hflip)
        return images

    if not isinstance(source, ArraySource) or source.image_shape[:2] != image_size:
        raise NotImplementedError
    lookup = source.lookup()

    def batch(step, indices):
        images, labels = lookup(indices)
        images = augment_batch(images, tf.stack([tf.constant(seed, tf.int64), step]))
        return tf.cast(preprocess(images), tf.float32), labels

    dataset = source.training_batches(seed, batch_size, start_step)
    dataset = dataset.map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.prefetch(tf.data.AUTOTUNE)
