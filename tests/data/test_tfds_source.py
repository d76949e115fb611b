"""Data sets of TFDS whose records are streamed."""

import numpy as np
import pytest
import tensorflow as tf

from keras_dsnet.data import evaluation_pipeline, load_source, training_pipeline
from keras_dsnet.data.tfds_source import RecordSource

COUNT = 60


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A TFDS data set of 60 images of two sizes in three files; its test images have no labels."""
    import tensorflow_datasets as tfds

    folder = str(tmp_path_factory.mktemp("tfds"))
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=5),
            "id": tfds.features.Scalar(np.int64),
        }
    )

    def examples(count, label_of):
        for index in range(count):
            image = np.full((20 + index % 2, 24, 3), 4 * index, np.uint8)
            yield {"image": image, "label": label_of(index), "id": index}

    def dataset(count, label_of):
        return tf.data.Dataset.from_generator(
            lambda: examples(count, label_of),
            output_signature={
                "image": tf.TensorSpec([None, None, 3], tf.uint8),
                "label": tf.TensorSpec([], tf.int64),
                "id": tf.TensorSpec([], tf.int64),
            },
        )

    tfds.dataset_builders.store_as_tfds_dataset(
        name="grays",
        version="1.0.0",
        features=features,
        split_datasets={
            "train": dataset(COUNT, lambda index: index % 5),
            "validation": dataset(10, lambda index: index % 5),
            "test": dataset(4, lambda index: -1),
        },
        data_dir=folder,
        download_config=tfds.download.DownloadConfig(num_shards=3),
    )
    return folder


def _batches(source, steps, seed=1, start_step=0, **settings):
    dataset = training_pipeline(
        source,
        image_size=16,
        batch_size=8,
        seed=seed,
        start_step=start_step,
        preprocess=lambda images: tf.cast(images, tf.float32),
        **settings,
    )
    return list(dataset.take(steps).as_numpy_iterator())


def _numbers(batches):
    return np.concatenate([np.rint(images[:, 8, 8, 0] / 4).astype(int) for images, _ in batches])


def test_images_of_varying_size_are_streamed(prepared):
    source = load_source("grays", prepared)
    assert isinstance(source, RecordSource)
    assert source.num_examples == COUNT
    assert source.num_classes == 5
    assert source.image_shape is None


def test_a_slice_knows_the_size_of_its_split(prepared):
    for spec in ("train", "train[50:]", "train[:50%]"):
        assert load_source("grays", prepared, train_split=spec).split_size == COUNT
    assert load_source("grays", prepared, train_split="train+validation").split_size is None


def test_a_test_split_without_labels_is_not_evaluated_on(prepared):
    assert load_source("grays", prepared, "eval").num_examples == 10
    with pytest.raises(ValueError, match="split 'test' of 'grays' have no labels"):
        load_source("grays", prepared, "eval", eval_split="test")


def test_epochs_are_complete_and_labels_stay_with_images(prepared):
    batches = _batches(load_source("grays", prepared), 14)
    for start in (0, 7):
        assert len(set(_numbers(batches[start : start + 7]))) == 56
    assert list(_numbers(batches[:7])) != list(_numbers(batches[7:]))
    np.testing.assert_array_equal(
        _numbers(batches) % 5, np.concatenate([labels for _, labels in batches])
    )


@pytest.mark.parametrize("start", [3, 7, 9])
def test_a_resumed_stream_equals_the_uninterrupted_one(prepared, start):
    source = load_source("grays", prepared)
    settings = {"augmentation": "imagenet", "random_erasing": 0.5}
    whole = _batches(source, 12, **settings)
    resumed = _batches(source, 12 - start, start_step=start, **settings)
    for (images, labels), (other_images, other_labels) in zip(whole[start:], resumed, strict=True):
        np.testing.assert_array_equal(images, other_images)
        np.testing.assert_array_equal(labels, other_labels)


@pytest.mark.slow
def test_a_small_window_still_shuffles_files_and_resumes(prepared, monkeypatch):
    monkeypatch.setattr("keras_dsnet.data.tfds_source.SHUFFLE_BUFFER_BYTES", 1)
    source = load_source("grays", prepared)
    whole = _batches(source, 9)
    np.testing.assert_array_equal(_numbers(whole[5:]), _numbers(_batches(source, 4, start_step=5)))
    assert len({tuple(_numbers(_batches(source, 1, seed=seed))) for seed in range(6)}) > 1


def test_evaluation_and_slices_keep_the_order(prepared):
    def numbers(spec):
        source = load_source("grays", prepared, "eval", eval_split=spec)
        dataset = evaluation_pipeline(
            source, image_size=16, batch_size=7, preprocess=lambda images: images
        )
        return _numbers(list(dataset.as_numpy_iterator()))

    assert sorted(numbers("train")) == list(range(COUNT))
    sliced = np.concatenate([numbers("train[:30%]"), numbers("train[30%:]")])
    assert sorted(sliced) == list(range(COUNT))
    np.testing.assert_array_equal(numbers("train[:30%]"), numbers("train[:30%]"))


def test_the_global_seed_changes_nothing(prepared):
    source = load_source("grays", prepared)
    expected = _numbers(_batches(source, 3))
    for global_seed in (0, 77):
        tf.random.set_seed(global_seed)
        np.testing.assert_array_equal(expected, _numbers(_batches(source, 3)))


@pytest.mark.needs_shared
def test_streaming_and_memory_give_the_same_pixels(shared_tfds, monkeypatch):
    settings = {"data_dir": shared_tfds, "split": "eval", "eval_split": "test[100:130]"}
    in_memory = load_source("cifar10", **settings)
    monkeypatch.setattr("keras_dsnet.data.tfds_source.IN_MEMORY_BYTES", 0)
    streamed = load_source("cifar10", **settings)
    assert isinstance(streamed, RecordSource)
    (images, labels), (other_images, other_labels) = (
        next(
            evaluation_pipeline(
                source, image_size=32, batch_size=30, preprocess=lambda images: images
            ).as_numpy_iterator()
        )
        for source in (in_memory, streamed)
    )
    np.testing.assert_array_equal(images, other_images)
    np.testing.assert_array_equal(labels, other_labels)


def test_a_streamed_image_without_a_label_ends_the_stream(prepared):
    import tensorflow_datasets as tfds

    builder = tfds.builder("grays", data_dir=prepared)
    source = RecordSource("grays", builder, "test")
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"grays.* must be in 0\.\.4"):
        list(source.ordered_examples())
    assert load_source("grays", prepared).description == (
        "grays, split 'train': 60 images, 5 classes: 0, 1, 2, 3, 4"
    )
