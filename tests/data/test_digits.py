"""Handwritten digits, as they are and distorted."""

import sys

import numpy as np
import pytest

from keras_dsnet.data import digits, load_source
from keras_dsnet.data.digits import DISTORTED_SPLITS, load_distorted_digits


def test_digits_are_rgb_images_with_a_fixed_split():
    train, test = load_source("digits"), load_source("digits", split="eval")
    assert (train.num_examples, test.num_examples) == (1437, 360)
    assert train.images.shape == (1437, 32, 32, 3)
    assert train.images.dtype == np.uint8
    assert np.min(train.images) == 0
    assert np.max(train.images) == 255
    assert train.num_classes == 10
    np.testing.assert_array_equal(train.images[..., 0], train.images[..., 2])
    np.testing.assert_array_equal(train.images, load_source("digits").images)


def _contents(source):
    return {image.numpy().tobytes() for image in source.images}


def test_digits_splits_share_no_image_and_cover_every_class_alike():
    train, test = load_source("digits"), load_source("digits", split="eval")
    assert not _contents(train) & _contents(test)
    shares = np.bincount(test.labels) / np.bincount(train.labels)
    np.testing.assert_allclose(shares, 0.25, atol=0.02)


def test_written_characters_are_not_mirrorable():
    assert not load_source("digits").mirrorable


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match="pip install scikit-learn"):
        load_source("digits")


@pytest.mark.parametrize(
    ("spec", "count"), [("train[:90%]", 1293), ("train[1400:]", 37), ("test[:5]", 5)]
)
def test_splits_slice_by_percent_and_by_examples(spec, count):
    source = load_source("digits", train_split=spec)
    assert source.num_examples == count


def test_the_two_sides_of_a_slice_are_disjoint_and_complete():
    whole = load_source("digits")
    front = load_source("digits", train_split="train[:80%]")
    back = load_source("digits", split="eval", eval_split="train[80%:]")
    np.testing.assert_array_equal(whole.images, np.concatenate([front.images, back.images]))


@pytest.mark.parametrize("spec", ["trian", "train[:x]", "train[:0%]", "train+test"])
def test_a_wrong_split_is_named_with_the_splits_there_are(spec):
    with pytest.raises(ValueError, match=r"'train' \(1437 images\)"):
        load_source("digits", train_split=spec)


def test_digits_describe_themselves():
    source = load_source("digits", split="eval", eval_split="test[:100]")
    assert source.description.startswith("digits, split 'test[:100]': 100 images, 10 classes: 0 (")
    assert sum(source.class_counts) == 100
    assert source.split_size == 360


@pytest.fixture(scope="module")
def distorted():
    """Images and labels of the test split and of two rounds of the training digits."""
    return {
        "train": load_distorted_digits("train", stop=2394),
        "validation": load_distorted_digits("validation"),
        "test": load_distorted_digits("test"),
    }


def test_distorted_digits_are_a_source_like_the_digits():
    source = load_source("distorted_digits", split="eval")
    assert (source.num_examples, source.num_classes) == (4000, 10)
    assert source.images.shape == (4000, 32, 32, 3)
    assert source.images.dtype == np.uint8
    assert source.labels.dtype == np.int32
    assert source.description.startswith("distorted_digits, split 'test': 4000 images, 10 classes")
    assert not source.mirrorable
    np.testing.assert_array_equal(source.images[..., 0], source.images[..., 2])


def test_distorted_digits_have_three_splits():
    assert {name: digits * copies for name, (digits, copies) in DISTORTED_SPLITS.items()} == {
        "train": 47880,
        "validation": 2000,
        "test": 4000,
    }
    assert load_source("distorted_digits", train_split="train[:64]").num_examples == 64
    source = load_source("distorted_digits", split="eval", eval_split="validation")
    assert (source.num_examples, source.split) == (2000, "validation")
    with pytest.raises(ValueError, match=r"'train' \(47880 images\), 'validation' \(2000 images\)"):
        load_source("distorted_digits", train_split="trian")


def test_a_slice_of_distorted_digits_is_that_part_of_the_split(distorted):
    images, labels = distorted["test"]
    for start, stop in ((0, 30), (390, 410), (799, 1201), (3990, 4000)):
        part = load_distorted_digits("test", start, stop)
        np.testing.assert_array_equal(part[0], images[start:stop])
        np.testing.assert_array_equal(part[1], labels[start:stop])


def test_a_wrong_split_of_distorted_digits_is_named():
    with pytest.raises(ValueError, match=r"'train', 'validation', 'test'. Received: split='eval'"):
        load_distorted_digits("eval")


def _handwriting(split):
    images, _ = digits._digits_of_split(split)
    return {image.tobytes() for image in images}


def test_splits_of_distorted_digits_share_no_handwriting():
    """Neighbours come from the digits of the split too: `_distort` sees no others."""
    splits = [_handwriting(split) for split in DISTORTED_SPLITS]
    assert [len(split) for split in splits] == [1197, 200, 400]
    assert len(set.union(*splits)) == 1797


def test_every_class_is_as_frequent_in_each_split_of_distorted_digits(distorted):
    for _, labels in distorted.values():
        np.testing.assert_allclose(np.bincount(labels) / len(labels), 0.1, atol=0.01)


def test_images_of_one_distorted_digit_differ(distorted):
    images, labels = distorted["train"]
    np.testing.assert_array_equal(labels[:1197], labels[1197:])
    assert len({image.tobytes() for image in images}) == 2394


def test_distorted_digits_mix_easy_and_hard_images(distorted):
    """A nearest neighbour among undistorted digits reads the easy images and not the hard ones."""
    known, known_labels = digits._digits_of_split("train")
    small = distorted["test"][0][:400, :, :, 0] / np.float32(255)
    scores = _unit(small) @ _unit(known).T
    right = known_labels[scores.argmax(axis=1)] == distorted["test"][1][:400]
    assert 0.3 < np.mean(right) < 0.8


def _unit(images):
    flat = images.reshape(len(images), -1) - np.mean(images, axis=(1, 2))[:, None]
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


# Means over each quarter of the image: of all images, of the first image, of the last one.
CHECKSUMS = {
    "train": [62.1, 61.7, 59.0, 63.1, 60.7, 118.5, 62.7, 51.5, 83.8, 32.1, 77.6, 102.0],
    "validation": [63.2, 62.7, 60.5, 63.8, 62.0, 25.0, 64.5, 58.1, 43.7, 79.4, 81.1, 106.9],
    "test": [62.4, 61.7, 58.9, 63.9, 77.6, 110.8, 74.1, 33.9, 48.1, 70.7, 78.0, 43.9],
}


@pytest.mark.parametrize("split", CHECKSUMS)
def test_distorted_digits_are_the_same_everywhere(split, distorted):
    images = distorted[split][0][..., 0].astype(np.float64)
    quarters = images.reshape(-1, 2, 16, 2, 16).mean(axis=(2, 4))
    found = [*quarters.mean(axis=0).ravel(), *quarters[0].ravel(), *quarters[-1].ravel()]
    np.testing.assert_allclose(found, CHECKSUMS[split], atol=0.5)


def test_an_unknown_name_suggests_the_distorted_digits():
    with pytest.raises(ValueError, match="did you mean 'distorted_digits'"):
        load_source("distorted_digit")


def test_distorted_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r"'distorted_digits' .* `pip install scikit-learn"):
        load_source("distorted_digits")
