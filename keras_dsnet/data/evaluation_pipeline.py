"""Images for evaluation, in order, without randomness."""

import tensorflow as tf


def resize_and_center_crop(image, image_size, crop_fraction):
    """Resizes the short side to `image_size / crop_fraction` (bicubic) and crops the centre.

    Args:
        image: `[height, width, 3]`, 0..255.
        image_size: `(height, width)` of the result.
        crop_fraction: share of the resized image, per side, that is kept.

    Returns:
        float32 `[*image_size, 3]`, 0..255.
    """
    target = tf.cast(image_size, tf.float32)
    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    scale = tf.reduce_max(target / crop_fraction / shape)
    # Cropping before resizing gives the same pixels for less work.
    crop = tf.minimum(tf.cast(tf.round(target / scale), tf.int32), tf.shape(image)[:2])
    offset = (tf.shape(image)[:2] - crop) // 2
    image = tf.image.crop_to_bounding_box(image, offset[0], offset[1], crop[0], crop[1])
    image = tf.image.resize(image, image_size, method="bicubic", antialias=True)
    return tf.clip_by_value(image, 0.0, 255.0)


def evaluation_pipeline(source, *, image_size, batch_size, preprocess, crop_fraction=0.875):
    """All images of a source once, in a fixed order.

    Images that have the right size already are used whole.

    Args:
        source: an `ImageSource`.
        image_size: int or `(height, width)`.
        batch_size: images per batch; the last batch may be smaller.
        preprocess: function of images `[..., height, width, 3]`, 0..255, to network inputs.
        crop_fraction: share of the resized image, per side, that is kept.

    Returns:
        A finite `tf.data.Dataset` of float32 images `[batch, height, width, 3]` and int32 labels
        `[batch]`.
    """
    image_size = as_size(image_size)
    whole = source.image_shape is not None and tuple(source.image_shape[:2]) == image_size

    def prepare(stored, label):
        image = source.decode(stored)
        if not whole:
            image = resize_and_center_crop(image, image_size, crop_fraction)
        return tf.ensure_shape(image, (*image_size, 3)), label

    dataset = source.ordered_examples()
    dataset = dataset.map(prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    dataset = dataset.batch(batch_size)
    dataset = dataset.map(lambda images, labels: (tf.cast(preprocess(images), tf.float32), labels))
    return dataset.prefetch(tf.data.AUTOTUNE)


def as_size(image_size):
    """`(height, width)` of an `image_size` argument: an int or a pair of them."""
    if isinstance(image_size, int):
        return (image_size, image_size)
    return tuple(int(side) for side in image_size)
