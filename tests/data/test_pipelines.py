"""Input pipelines for training, then for evaluation."""

import numpy as np
import pytest
import tensorflow as tf

from keras_dsnet.data import evaluation_pipeline, load_source, training_pipeline
from keras_dsnet.data.image_source import ArraySource

STRONG = {"augmentation": "imagenet", "color_jitter": 0.4, "random_erasing": 0.5}


def _batches(source, steps, seed=1, start_step=0, image_size=8, batch_size=16, **settings):
    dataset = training_pipeline(
        source,
        image_size=image_size,
        batch_size=batch_size,
        seed=seed,
        start_step=start_step,
        preprocess=lambda images: tf.cast(images, tf.float32) / 255.0,
        **settings,
    )
    return list(dataset.take(steps).as_numpy_iterator())


def _assert_equal(left, right):
    assert len(left) == len(right)
    for (images, labels), (other_images, other_labels) in zip(left, right, strict=True):
        np.testing.assert_array_equal(images, other_images)
        np.testing.assert_array_equal(labels, other_labels)


def _image_numbers(images):
    """Returns the indices of the images in a batch of `array_source` without augmentation."""
    return np.rint(images[:, 0, 0, 0] * 255 / 5).astype(int)


def test_batches_are_float_images_and_int_labels(array_source):
    ((images, labels),) = _batches(array_source, 1)
    assert images.shape == (16, 8, 8, 3)
    assert images.dtype == np.float32
    assert images.max() <= 1.0
    assert labels.shape == (16,)
    assert labels.dtype == np.int32


def test_labels_stay_with_their_images(array_source):
    for images, labels in _batches(array_source, 5):
        np.testing.assert_array_equal(_image_numbers(images) % 10, labels)


def test_an_epoch_shows_no_image_twice_and_epochs_differ(array_source):
    batches = _batches(array_source, 6)
    epochs = [
        np.concatenate([_image_numbers(images) for images, _ in batches[start : start + 3]])
        for start in (0, 3)
    ]
    for epoch in epochs:
        assert len(set(epoch)) == 48
    assert not np.array_equal(*epochs)


def test_no_image_is_always_left_out(array_source):
    seen = set()
    for images, _ in _batches(array_source, 30):
        seen |= set(_image_numbers(images))
    assert seen == set(range(50))


@pytest.mark.parametrize(
    "settings", [{"augmentation": "cifar"}, STRONG, {**STRONG, "randaugment": 1}], ids=str
)
def test_a_resumed_stream_equals_the_uninterrupted_one(array_source, settings):
    whole = _batches(array_source, 6, **settings)
    for start in (2, 5):
        _assert_equal(
            whole[start:], _batches(array_source, 6 - start, start_step=start, **settings)
        )


def test_folders_resume_exactly(image_folder):
    source = load_source(image_folder)
    settings = {"augmentation": "imagenet", "image_size": 16, "batch_size": 10}
    whole = _batches(source, 5, **settings)
    _assert_equal(whole[1:], _batches(source, 4, start_step=1, **settings))
    _assert_equal(whole[3:], _batches(source, 2, start_step=3, **settings))


def _assert_shards_make_whole_batches(source, **settings):
    whole = _batches(source, 3, start_step=1, **settings)
    shards = [
        _batches(source, 3, start_step=1, shard_index=index, num_shards=2, **settings)
        for index in range(2)
    ]
    for parts in zip(*shards, strict=True):
        assert [len(labels) for _, labels in parts] == [settings.get("batch_size", 16) // 2] * 2
    joined = [
        tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))
        for parts in zip(*shards, strict=True)
    ]
    _assert_equal(joined, whole)


@pytest.mark.parametrize("settings", [{"augmentation": "cifar"}, STRONG], ids=str)
def test_the_rows_of_all_workers_are_the_batch_of_one(array_source, settings):
    _assert_shards_make_whole_batches(array_source, **settings)


def test_workers_read_their_rows_of_a_folder(image_folder):
    settings = {"augmentation": "imagenet", "image_size": 16, "batch_size": 10}
    _assert_shards_make_whole_batches(load_source(image_folder), **settings)


@pytest.mark.needs_shared
def test_workers_read_their_rows_of_records(shared_tfds):
    source = load_source("cifar10", shared_tfds, eval_split="test[:64]", split="eval")
    _assert_shards_make_whole_batches(source, augmentation="cifar", image_size=32)


@pytest.mark.parametrize("settings", [{"augmentation": "cifar"}, STRONG], ids=str)
def test_another_seed_gives_other_batches(array_source, settings):
    ((images, labels),) = _batches(array_source, 1, **settings)
    ((other_images, other_labels),) = _batches(array_source, 1, seed=2, **settings)
    assert not np.array_equal(labels, other_labels)
    assert not np.array_equal(images, other_images)


def test_augmentation_differs_between_steps_that_show_the_same_image(array_source):
    settings = {"augmentation": "cifar", "batch_size": 50}
    first, second = (
        images[np.argsort(images.max(axis=(1, 2, 3)))]
        for images, _ in _batches(array_source, 2, **settings)
    )
    np.testing.assert_array_equal(
        first.max(axis=(1, 2, 3)) * 255 // 5, second.max(axis=(1, 2, 3)) * 255 // 5
    )
    changed = np.any(first != second, axis=(1, 2, 3))
    assert changed.mean() > 0.9


def test_the_global_seed_changes_nothing(array_source):
    expected = _batches(array_source, 2, **STRONG)
    tf.random.set_seed(77)
    _assert_equal(expected, _batches(array_source, 2, **STRONG))


def test_images_of_another_size_are_resized(array_source):
    ((images, _),) = _batches(array_source, 1, image_size=(12, 10), augmentation="cifar")
    assert images.shape == (16, 12, 10, 3)


def _share_mirrored(source, **settings):
    # The pixels of `array_source` increase from left to right.
    ((images, _),) = _batches(source, 1, batch_size=50, **settings)
    return np.mean(images[:, 0, 0, 0] > images[:, 0, -1, 0])


def test_mirroring_follows_the_data_set_unless_told(array_source):
    assert _share_mirrored(array_source, augmentation="none") == 0.0
    assert 0.2 < _share_mirrored(array_source, augmentation="none", hflip=True) < 0.8
    assert 0.2 < _share_mirrored(array_source, augmentation="imagenet") < 0.8
    assert _share_mirrored(array_source, augmentation="imagenet", hflip=False) == 0.0
    array_source.mirrorable = False
    assert _share_mirrored(array_source, augmentation="imagenet") == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 51}, "at most 50.*batch_size=51"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"augmentation": "strong"}, "Received: 'strong'"),
        ({"image_size": 0}, "image_size"),
        ({"start_step": -1}, "start_step"),
        ({"randaugment": -1}, "randaugment"),
        ({"randaugment_magnitude": 9}, "randaugment_magnitude must be in 0..1"),
        ({"auto_augment": "v9"}, "'imagenet' or 'cifar10'"),
        ({"color_jitter": 2}, "color_jitter"),
        ({"random_erasing": -0.1}, "random_erasing"),
        ({"num_shards": 3}, "multiple of `num_shards`. Received: batch_size=16, num_shards=3"),
        ({"shard_index": 2, "num_shards": 2}, "Received: shard_index=2, num_shards=2"),
    ],
)
def test_arguments_out_of_range_are_named(array_source, settings, message):
    with pytest.raises(ValueError, match=message):
        _batches(array_source, 1, **settings)


@pytest.mark.needs_shared
def test_cifar10_resumes_over_the_end_of_an_epoch(shared_tfds):
    source = load_source("cifar10", shared_tfds, eval_split="test[:1000]", split="eval")
    settings = {"augmentation": "cifar", "image_size": 32, "batch_size": 128}
    whole = _batches(source, 10, **settings)
    _assert_equal(whole[6:], _batches(source, 4, start_step=6, **settings))


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
    # A fraction of 0.75 crops away a border that is one eighth of the image wide.
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


def test_files_of_the_requested_size_are_evaluated_as_they_are(tmp_path, to_float):
    # Tiny-ImageNet is a folder of 64x64 photographs.
    pixels = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        path = tmp_path / f"class_{index % 2}" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(tf.io.encode_png(image).numpy())
    source = load_source(tmp_path, eval_split="train[:1]")
    ((images, _),) = _evaluate(source, to_float, image_size=64)
    order = [int(path.split("/")[-1][0]) for path in source.paths]
    np.testing.assert_array_equal(images, pixels[order])
    # Of another size, the centre is cropped.
    ((cropped, _),) = _evaluate(source, to_float, image_size=(64, 60))
    assert not np.array_equal(cropped, images[:, :, 2:62])


def test_folders_evaluate_in_the_order_of_their_files(image_folder, to_float):
    source = load_source(image_folder)
    batches = _evaluate(source, to_float, image_size=16, batch_size=10)
    assert [len(labels) for _, labels in batches] == [10, 10, 7]
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), source.labels)


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"crop_fraction": 0.0}])
def test_arguments_of_an_evaluation_out_of_range_are_named(array_source, to_float, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        _evaluate(array_source, to_float, **settings)
