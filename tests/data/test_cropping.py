import numpy as np
import tensorflow as tf

from keras_dsnet.data.augmentation import inception_window, pad_crop_flip, random_erasing


def _numbered(batch, size):
    """Images whose pixels are all different and never 0."""
    pixels = np.arange(1, size * size * 3 + 1, dtype=np.int32).reshape(1, size, size, 3)
    return np.repeat(pixels, batch, axis=0)


def test_crops_are_shifted_copies_padded_with_zeros():
    images = _numbered(200, 12)
    cropped = pad_crop_flip(images, tf.constant([0, 1]), padding=4, hflip=False).numpy()
    padded = np.pad(images[0], ((4, 4), (4, 4), (0, 0)))
    possible = {
        padded[top : top + 12, left : left + 12].tobytes(): (top, left)
        for top in range(9)
        for left in range(9)
    }
    places = {possible[image.tobytes()] for image in cropped}
    assert len(places) > 60
    assert {top for top, _ in places} == {left for _, left in places} == set(range(9))


def test_half_of_the_images_are_mirrored():
    images = _numbered(400, 6)
    flipped = pad_crop_flip(images, tf.constant([0, 1]), padding=0).numpy()
    same = np.all(flipped == images, axis=(1, 2, 3))
    mirrored = np.all(flipped == images[:, :, ::-1], axis=(1, 2, 3))
    assert np.all(same ^ mirrored)
    assert 0.4 < mirrored.mean() < 0.6


def test_dtype_is_kept():
    images = tf.zeros([2, 8, 8, 3], tf.uint8)
    assert pad_crop_flip(images, tf.constant([0, 1])).dtype == tf.uint8


def test_inception_windows_fill_the_range_of_areas_and_aspects():
    shape = tf.constant([200, 300, 3])
    windows = np.array([inception_window(shape, tf.constant([0, seed])) for seed in range(200)])
    top, left, height, width = windows.T
    assert np.all((top >= 0) & (left >= 0) & (top + height <= 200) & (left + width <= 300))
    area = height * width / (200 * 300)
    assert area.min() > 0.07
    assert area.min() < 0.15
    assert area.max() > 0.7
    aspect = width / height
    assert aspect.min() > 0.73
    assert aspect.max() < 1.36


def test_erasing_fills_one_rectangle_of_the_stated_area():
    image = tf.zeros([64, 64, 3])
    for seed in range(20):
        erased = random_erasing(image, tf.constant([0, seed]), 1.0).numpy()[..., 0] > 0
        rows, columns = np.flatnonzero(erased.any(axis=1)), np.flatnonzero(erased.any(axis=0))
        assert erased.sum() == len(rows) * len(columns)
        assert 0.015 < erased.mean() < 0.34


def test_erasing_happens_as_often_as_asked():
    image = tf.zeros([16, 16, 3])
    erased = [
        bool(tf.reduce_any(random_erasing(image, tf.constant([0, seed]), 0.25) > 0))
        for seed in range(200)
    ]
    assert 0.15 < np.mean(erased) < 0.35
