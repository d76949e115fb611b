"""Encoded images to pixels."""

import tensorflow as tf

# EXIF's numbers: those of 5 and more exchange rows and columns before they mirror.
_TRANSPOSED_FROM = 5
_MIRRORED_LEFT_RIGHT = (2, 3, 6, 7)
_MIRRORED_UP_DOWN = (3, 4, 7, 8)


def decode_image(encoded, window_of=None, orientation=None):
    """Decodes an image that TensorFlow knows (of several frames the first) to RGB.

    These are JPEG, PNG, BMP and GIF, and WebP in newer versions. Of a JPEG only the window is
    decoded, which is what makes random crops of photographs cheap.

    Args:
        encoded: scalar string.
        window_of: a function from the image's shape, int32 `[3]`, to the window to return, int32
            `[4]`: top, left, height, width. None returns the whole image. Shape and window are
            those of the upright image.
        orientation: scalar int32 tensor, the EXIF orientation (1 to 8) that the image is turned
            by, or None for images that are upright as stored.

    Returns:
        uint8 `[height, width, 3]`.
    """
    stored_window_of = window_of
    if window_of is not None and orientation is not None:

        def stored_window_of(shape):
            return _stored_window(shape, window_of, orientation)

    def jpeg():
        # TensorFlow's default is a faster transform that other decoders do not use.
        settings = {"channels": 3, "dct_method": "INTEGER_ACCURATE"}
        if window_of is None:
            return tf.io.decode_jpeg(encoded, **settings)
        window = stored_window_of(tf.io.extract_jpeg_shape(encoded))
        return tf.io.decode_and_crop_jpeg(encoded, window, **settings)

    def decode(channels):
        image = tf.io.decode_image(encoded, channels, expand_animations=False)
        return tf.ensure_shape(image, [None, None, channels or None])

    def webp():
        # TensorFlow has no RGB of a transparent WebP.
        return decode(0)[..., :3]

    def other():
        image = tf.cond(_is_webp(encoded), webp, lambda: decode(3))
        if window_of is None:
            return image
        return tf.image.crop_to_bounding_box(image, *tf.unstack(stored_window_of(tf.shape(image))))

    image = tf.cond(tf.io.is_jpeg(encoded), jpeg, other)
    image = tf.ensure_shape(image, [None, None, 3])
    if orientation is None:
        return image
    return tf.cond(orientation > 1, lambda: _upright(image, orientation), lambda: image)


def _upright(image, orientation):
    is_transposed = orientation >= _TRANSPOSED_FROM
    image = tf.cond(is_transposed, lambda: tf.transpose(image, (1, 0, 2)), lambda: image)
    mirrored = [_is_among(orientation, _MIRRORED_UP_DOWN)]
    mirrored.append(_is_among(orientation, _MIRRORED_LEFT_RIGHT))
    for axis, is_mirrored in enumerate(mirrored):
        image = tf.where(is_mirrored, tf.reverse(image, [axis]), image)
    return tf.ensure_shape(image, [None, None, 3])


def _stored_window(shape, window_of, orientation):
    """Where in the stored image the window of the upright one lies."""
    is_transposed = orientation >= _TRANSPOSED_FROM
    upright = tf.where(is_transposed, tf.gather(shape, (1, 0, 2)), shape)
    window = window_of(upright)
    top, left, height, width = tf.unstack(window)
    top = tf.where(_is_among(orientation, _MIRRORED_UP_DOWN), upright[0] - top - height, top)
    left = tf.where(_is_among(orientation, _MIRRORED_LEFT_RIGHT), upright[1] - left - width, left)
    return tf.where(is_transposed, [left, top, width, height], [top, left, height, width])


def _is_webp(encoded):
    return tf.equal(tf.strings.substr(tf.strings.join([encoded, b"\0" * 12]), 8, 4), b"WEBP")


def _is_among(value, values):
    return tf.reduce_any(tf.equal(value, values))
