"""The augmentation of SSD (Liu et al., 2016, section 2.2), whose draws are functions of a seed."""

import tensorflow as tf

from keras_dsnet.detection.boxes import box_iou

# As in the authors' Caffe code: an image is expanded in half of the cases, to at most 16 times its
# area, and a crop has 0.3 to 1 times the side of the expanded image.
MAX_EXPANSION = 4.0
CROP_SCALE = (0.3, 1.0)
CROP_ASPECT = (0.5, 2.0)
# The least overlap of a crop with an object, one for each kind of crop. 0 asks for none.
MIN_OVERLAPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
TRIALS = 50
BRIGHTNESS = 32.0
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE_DEGREES = 18.0
# Gray near the mean of natural images fills the expanded image.
FILL = 114.0


def ssd_window(boxes: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draws the window of an expansion followed by a crop that keeps an object.

    The image is expanded with probability 0.5: it is put at random into a canvas of 1 to 4 times
    its height and width. Then one of seven kinds of crop is drawn: the whole canvas, or a window
    whose overlap (IoU) with an object is at least one of `MIN_OVERLAPS`, of `TRIALS` windows the
    first. Where no window overlaps so, the whole canvas is used.

    Args:
        boxes: float32 tensor `[n, 4]` of ymin, xmin, ymax, xmax in [0, 1].
        seed: Int tensor `[2]`.

    Returns:
        float32 tensor `[4]`: ymin, xmin, ymax, xmax of the window, relative to the image. It can
        reach beyond the image.
    """
    seeds = tf.unstack(tf.random.split(seed))
    draws = tf.random.stateless_uniform([5], seeds[0])
    ratio = tf.where(draws[0] < 0.5, 1.0 + draws[1] * (MAX_EXPANSION - 1.0), 1.0)
    corner = -draws[2:4] * (ratio - 1.0)
    canvas = tf.concat([corner, corner + ratio], axis=0)
    windows = tf.tile(corner, [2]) + _windows(seeds[1]) * ratio
    kind = tf.cast(tf.floor(draws[4] * (len(MIN_OVERLAPS) + 1)), tf.int32)
    least = tf.gather(tf.constant(MIN_OVERLAPS), tf.minimum(kind, len(MIN_OVERLAPS) - 1))
    fits = _holds_an_object(windows, boxes, least) & (kind < len(MIN_OVERLAPS))
    first = tf.argmax(tf.cast(fits, tf.int32))
    return tf.where(tf.reduce_any(fits), windows[first], canvas)


def _windows(seed):
    """Draws the windows of all trials, relative to the canvas, `[trials, 4]`."""
    draws = tf.random.stateless_uniform([4, TRIALS], seed)
    scale = CROP_SCALE[0] + draws[0] * (CROP_SCALE[1] - CROP_SCALE[0])
    # The ratio is drawn where both sides are at most those of the canvas.
    low = tf.maximum(CROP_ASPECT[0], scale**2)
    aspect = low + draws[1] * (tf.minimum(CROP_ASPECT[1], 1.0 / scale**2) - low)
    width = tf.minimum(scale * tf.sqrt(aspect), 1.0)
    height = tf.minimum(scale / tf.sqrt(aspect), 1.0)
    top, left = draws[2] * (1.0 - height), draws[3] * (1.0 - width)
    return tf.stack([top, left, top + height, left + width], axis=1)


def _holds_an_object(windows, boxes, least):
    """Returns whether each window overlaps an object enough and has the centre of one inside."""
    no_object = tf.equal(tf.shape(boxes)[0], 0)
    inside = tf.reduce_any(_has_centre(windows[:, tf.newaxis], boxes), axis=1)
    best = tf.reduce_max(box_iou(windows, boxes), axis=1)
    # The first kind asks for no overlap. An image without an object can only have that one, and
    # its window must show something.
    shows = tf.reduce_all((windows[:, 2:] > 0.05) & (windows[:, :2] < 0.95), axis=1)
    return tf.where(no_object, shows & tf.equal(least, 0.0), inside & (best >= least))


def _has_centre(window, boxes):
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    return tf.reduce_all((centre > window[..., :2]) & (centre < window[..., 2:]), axis=-1)


def boxes_in_window(boxes: tf.Tensor, window: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns boxes relative to a window, clipped to it, and which of them to keep.

    Args:
        boxes: float32 tensor `[n, 4]` of ymin, xmin, ymax, xmax, relative to the image.
        window: float32 tensor `[4]`, relative to the image.

    Returns:
        `(boxes, kept)`: float32 `[n, 4]`, relative to the window, and bool `[n]`, whether the
        centre of a box is in the window.
    """
    corner, size = window[:2], window[2:] - window[:2]
    moved = (boxes - tf.tile(corner, [2])) / tf.tile(size, [2])
    return tf.clip_by_value(moved, 0.0, 1.0), _has_centre(window, boxes)


def flip(image, boxes, seed):
    """Mirrors half of the images left to right, with their boxes."""
    is_flipped = tf.random.stateless_uniform([], seed) < 0.5
    mirrored = tf.stack([boxes[:, 0], 1 - boxes[:, 3], boxes[:, 2], 1 - boxes[:, 1]], axis=1)
    image = tf.cond(is_flipped, lambda: tf.reverse(image, [1]), lambda: image)
    return image, tf.where(is_flipped, mirrored, boxes)


def photometric_distortion(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Changes brightness, contrast, saturation and hue, each with probability 0.5.

    Contrast is changed before or after saturation and hue, with equal probability.

    Args:
        image: float32 tensor `[height, width, 3]`, from 0 to 255.
        seed: Int tensor `[2]`.

    Returns:
        Tensor of the same shape and dtype.
    """
    draws = tf.random.stateless_uniform([2, 4], seed)
    used = draws[0] < 0.5
    order_seed = tf.random.fold_in(seed, 1)
    contrast_first = tf.random.stateless_uniform([], order_seed) < 0.5
    brightness = tf.where(used[0], (2 * draws[1, 0] - 1) * BRIGHTNESS, 0.0)
    contrast = tf.where(used[1], _between(CONTRAST, draws[1, 1]), 1.0)
    image = (image + brightness) * tf.where(contrast_first, contrast, 1.0)
    image = tf.clip_by_value(image, 0.0, 255.0)

    def change_color():
        saturation = tf.where(used[2], _between(SATURATION, draws[1, 2]), 1.0)
        hue = tf.where(used[3], (2 * draws[1, 3] - 1) * HUE_DEGREES / 360.0, 0.0)
        hsv = tf.image.rgb_to_hsv(image / 255.0)
        hue = tf.math.floormod(hsv[..., :1] + hue, 1.0)
        color = tf.clip_by_value(hsv[..., 1:2] * saturation, 0.0, 1.0)
        return tf.image.hsv_to_rgb(tf.concat([hue, color, hsv[..., 2:]], -1)) * 255.0

    image = tf.cond(used[2] | used[3], change_color, lambda: image)
    return tf.clip_by_value(image * tf.where(contrast_first, 1.0, contrast), 0.0, 255.0)


def _between(limits, draw):
    return limits[0] + draw * (limits[1] - limits[0])


def visible_pixels(window, shape):
    """Returns the pixels of an image that a window shows, to the nearest pixel.

    Args:
        window: float32 tensor `[4]`, relative to the image. It overlaps the image.
        shape: int32 tensor `[3]`, the shape of the image.

    Returns:
        int32 tensor `[4]`: top, left, height, width, of at least one pixel.
    """
    size = tf.cast(shape[:2], tf.float32)
    inside = tf.clip_by_value(window, 0.0, 1.0)
    begin = tf.minimum(tf.cast(tf.round(inside[:2] * size), tf.int32), shape[:2] - 1)
    end = tf.clip_by_value(tf.cast(tf.round(inside[2:] * size), tf.int32), begin + 1, shape[:2])
    return tf.concat([begin, end - begin], axis=0)


def visible_place(window):
    """Returns the part of a window that shows the image: ymin, xmin, ymax, xmax in [0, 1]."""
    corner, extent = window[:2], window[2:] - window[:2]
    place = (tf.clip_by_value(window, 0.0, 1.0) - tf.tile(corner, [2])) / tf.tile(extent, [2])
    return tf.clip_by_value(place, 0.0, 1.0)


def paste(image, place, image_size, prepare):
    """Puts an image into its place in a gray image.

    Args:
        image: uint8 tensor `[height, width, 3]`.
        place: float32 tensor `[4]`, ymin, xmin, ymax, xmax of the place in [0, 1].
        image_size: Tuple `(height, width)` of the result.
        prepare: Function of an image and an int32 tensor `[2]`, which resizes the image to that
            size. Other changes that it makes do not change the gray.

    Returns:
        float32 tensor `[*image_size, 3]`, from 0 to 255.
    """
    target = tf.constant(image_size, tf.int32)
    size = tf.cast(target, tf.float32)
    begin = tf.minimum(tf.cast(tf.round(place[:2] * size), tf.int32), target - 1)
    end = tf.clip_by_value(tf.cast(tf.round(place[2:] * size), tf.int32), begin + 1, target)
    part = prepare(image, end - begin) - FILL
    before, after = begin, target - end
    padding = [[before[0], after[0]], [before[1], after[1]], [0, 0]]
    return tf.ensure_shape(tf.pad(part, padding) + FILL, (*image_size, 3))
