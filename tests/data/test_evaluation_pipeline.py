import numpy as np
import pytest
import tensorflow as tf

from keras_dsnet.data import evaluation_pipeline, load_source
from keras_dsnet.data.image_source import ArraySource


def _evaluate(source, to_float, image_size=8, batch_size=16, **settings):
    return list(
        evaluation_pipeline(
            source,
            image_size=image_size,
            batch_size=batch_size,
            preprocess=to_float,
            **settings,
        ).as_numpy_iterator()
    )


def test_every_image_comes_once_in_order_with_a_smaller_last_batch(array_source, to_float):
    batches = _evaluate(array_source, to_float)
    assert [len(labels) for _, labels in batches] == [16, 16, 16, 2]
    images = np.concatenate([images for images, _ in batches])
    np.testing.assert_array_equal(images, array_source.images)
    np.testing.assert_array_equal(
        np.concatenate([labels for _, labels in batches]), array_source.labels
    )
    assert images.dtype == np.float32


def test_the_centre_is_cropped_where_images_are_resized(to_float):
    # A frame of one colour, one eighth of the image wide, is cropped away at a fraction of 0.75.
    image = np.full((1, 64, 96, 3), 200, np.uint8)
    image[:, 8:56, 24:72] = 50
    source = ArraySource("framed", image, [0], 1)
    ((images, _),) = _evaluate(source, to_float, image_size=24, crop_fraction=0.75)
    assert images.shape == (1, 24, 24, 3)
    np.testing.assert_allclose(images, 50, atol=1.0)
    ((images, _),) = _evaluate(source, to_float, image_size=24, crop_fraction=1.0)
    assert images[0, 0, 0, 0] == pytest.approx(200, abs=25)


def test_resizing_agrees_with_resize_then_crop(to_float):
    smooth = tf.image.resize(np.random.default_rng(0).uniform(0, 255, (1, 6, 6, 3)), (120, 160))
    image = tf.cast(smooth, tf.uint8).numpy()
    ((images, _),) = _evaluate(ArraySource("smooth", image, [0], 1), to_float, image_size=56)
    resized = tf.image.resize(image[0], (64, 85), method="bicubic", antialias=True).numpy()
    expected = resized[4:60, 14:70]
    assert np.abs(images[0] - expected).mean() < 2.0


def test_folders_evaluate_in_the_order_of_their_files(image_folder, to_float):
    source = load_source(image_folder)
    batches = _evaluate(source, to_float, image_size=16, batch_size=10)
    assert [len(labels) for _, labels in batches] == [10, 10, 7]
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), source.labels)


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"crop_fraction": 0.0}])
def test_arguments_out_of_range_are_named(array_source, to_float, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        _evaluate(array_source, to_float, **settings)
