"""The images that the ranges of an int8 file are measured on."""

from collections.abc import Iterable

import numpy as np


def representative_images(data, shape, dtype="float32"):
    """Returns the images of a data set, one by one: a list of arrays `[1, height, width, 3]`.

    Args:
        data: a `tf.data.Dataset`, an array or another iterable of images `[height, width, 3]` or of
            batches `[batch, height, width, 3]`; of a pair the first is taken, the second may be
            labels.
        shape: `(height, width, 3)` that the file takes.
        dtype: "float32": preprocessed images; "uint8": raw pixels.

    Raises:
        ValueError: without an image, or on one of another shape or type.
    """
    if data is None:
        raise ValueError(
            "quantize='int8' needs `representative_data`: a hundred or more images that are like "
            "those the file will see, as a tf.data.Dataset or an iterable. Received: None"
        )
    if not isinstance(data, Iterable):
        raise ValueError(
            "`representative_data` must be a tf.data.Dataset or another iterable of images. "
            f"Received: {data!r}"
        )
    images = []
    for element in data:
        element = element[0] if isinstance(element, (tuple, list)) else element
        batch = np.asarray(element)
        batch = batch[None] if batch.ndim == 3 else batch
        _check(batch, tuple(shape), dtype)
        images.extend(image[None].astype(dtype) for image in batch)
    if not images:
        raise ValueError("`representative_data` has no image; a hundred or more are right.")
    return images


def _check(batch, shape, dtype):
    if batch.ndim != 4 or batch.shape[1:] != shape:
        raise ValueError(
            f"`representative_data` must have images of shape {shape}, or batches of them. "
            f"Received: an element of shape {batch.shape}"
        )
    if dtype == "uint8" and batch.dtype != np.uint8:
        raise ValueError(
            "`representative_data` must have raw uint8 pixels, as the file's input_type='uint8' "
            f"takes them. Received: images of {batch.dtype}"
        )
    if dtype != "uint8" and not np.issubdtype(batch.dtype, np.floating):
        raise ValueError(
            "`representative_data` must have preprocessed float images, not raw pixels; see "
            f"`preprocess_input`. Received: images of {batch.dtype}"
        )
    if not np.isfinite(batch).all():
        raise ValueError("`representative_data` has an image with values that are not finite.")
