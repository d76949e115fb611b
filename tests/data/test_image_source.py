"""Images and labels in memory, and those that are rejected."""

import numpy as np
import pytest

from keras_dsnet.data.image_source import ArraySource

IMAGES = np.zeros((4, 8, 8, 3), np.uint8)


@pytest.mark.parametrize("labels", [[0, 1, 2, 1], [[0], [1], [2], [1]], [0.0, 1.0, 2.0, 1.0]])
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32"])
def test_labels_of_any_type_are_taken(labels, dtype):
    source = ArraySource("squares", IMAGES, np.array(labels, dtype), 3)
    np.testing.assert_array_equal(source.labels, [0, 1, 2, 1])
    assert source.class_counts == (1, 2, 1)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2, 3], "must be in 0..2. Received: 3"),
        ([0, 1, -1, 2], "Received: -1"),
        ([0, 1, 2, np.nan], "Received: nan"),
        ([0, 1, 2, 0.5], "Received: 0.5"),
        (np.array([0, 1, 2, 255], np.uint8), "Received: 255"),
        ([0, 1, 2], "one label for each of its 4 images"),
        (np.eye(4), r"labels of shape \(4, 4\)"),
        (["a", "b", "c", "d"], "whole numbers"),
    ],
)
def test_labels_that_are_not_there_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        ArraySource("squares", IMAGES, labels, 3)


@pytest.mark.parametrize(
    "images", [IMAGES / 255.0, IMAGES[..., :1], IMAGES[0], IMAGES[..., 0], IMAGES.astype(int)]
)
def test_images_of_another_kind_are_refused(images):
    with pytest.raises(ValueError, match="must be uint8"):
        ArraySource("squares", images, np.zeros(len(images)), 3)


def test_a_source_without_images_or_with_other_class_names_is_refused():
    with pytest.raises(ValueError, match="one image or more"):
        ArraySource("squares", IMAGES[:0], [], 3)
    with pytest.raises(ValueError, match=r"a name for each of its 3 classes. Received: 2 names"):
        ArraySource("squares", IMAGES, [0, 1, 2, 1], 3, ("a", "b"))
