"""Encoded images to pixels."""

import tensorflow as tf


def decode_image(encoded, window_of=None):
    """Decodes a JPEG, PNG, BMP or GIF image (its first frame) to RGB.

    Of a JPEG only the window is decoded, which is what makes random crops of photographs cheap.

    Args:
        encoded: scalar string.
        window_of: a function from the image's shape, int32 `[3]`, to the window to return, int32
            `[4]`: top, left, height, width. None returns the whole image.

    Returns:
        uint8 `[height, width, 3]`.
    """

    def jpeg():
        # TensorFlow's default is a faster transform that other decoders do not use.
        settings = {"channels": 3, "dct_method": "INTEGER_ACCURATE"}
        if window_of is None:
            return tf.io.decode_jpeg(encoded, **settings)
        window = window_of(tf.io.extract_jpeg_shape(encoded))
        return tf.io.decode_and_crop_jpeg(encoded, window, **settings)

    def other():
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        if window_of is None:
            return image
        return tf.image.crop_to_bounding_box(image, *tf.unstack(window_of(tf.shape(image))))

    image = tf.cond(tf.io.is_jpeg(encoded), jpeg, other)
    return tf.ensure_shape(image, [None, None, 3])
