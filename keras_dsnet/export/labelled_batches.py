"""Batches of a data set that a user passes, looked at before they are trained on."""

from collections.abc import Iterable

import numpy as np


def labelled_batches(dataset, shape, classes, count=None):
    """Yields batches of a data set, from its beginning again where it ends.

    Args:
        dataset: iterable of pairs: images `[batch, height, width, 3]` and labels `[batch]`.
        shape: `(height, width, 3)` of the images.
        classes: int.
        count: int, how many batches; None: as many as there are, once.

    Yields:
        Images, float32, and labels, int32: numpy arrays.

    Raises:
        ValueError: on a batch that does not fit, or where there is none left.
    """
    if not isinstance(dataset, Iterable):
        raise ValueError(
            "`dataset` must be a tf.data.Dataset or another iterable of batches. "
            f"Received: dataset={dataset!r}"
        )
    number = 0
    while count is None or number < count:
        first = number
        for batch in dataset:
            number += 1
            yield _checked(batch, shape, classes)
            if number == count:
                return
        if number == first:
            raise ValueError(
                f"`dataset` has no batches: it ended after {number}. An iterator can be read only "
                "once: pass what makes one."
            )
        if count is None:
            return


def _checked(batch, shape, classes):
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise ValueError(
            "`dataset` must have batches (images, labels). "
            f"Received: a batch of type {type(batch).__name__}"
        )
    images, labels = map(np.asarray, batch)
    if images.ndim != 4 or images.shape[1:] != shape or not len(images):
        raise ValueError(
            f"`dataset` must have images of shape [batch, {', '.join(map(str, shape))}]. "
            f"Received: images of shape {images.shape}"
        )
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(
            "`dataset` must have preprocessed float images, not raw pixels; see "
            f"`preprocess_input`. Received: images of {images.dtype}"
        )
    if not np.isfinite(images).all():
        raise ValueError("`dataset` has an image with values that are not finite.")
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"`dataset` must have a class number, an int, for each of the {len(images)} images. "
            f"Received: labels of shape {labels.shape} and type {labels.dtype}"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"`dataset` must have labels from 0 to {classes - 1}. "
            f"Received: labels from {labels.min()} to {labels.max()}"
        )
    return images.astype("float32"), labels.astype("int32")
