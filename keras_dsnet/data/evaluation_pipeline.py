"""Images for evaluation, in order, without randomness."""

import numbers

import tensorflow as tf


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
