"""The images that the ranges of an int8 file are measured on."""

import warnings

import keras
import numpy as np
import tensorflow as tf

from keras_dsnet.utils.batches import image_batches

# Of an endless data set as of a long one; more images change the ranges little, and fill memory.
MOST_IMAGES = 500
FEWEST_IMAGES = 8
# Augmented images, and those of tests, leave the range of normalised pixels, but not by so much.
_MOST_RANGES = 20
_LEAST_SHARE = 0.5


def representative_images(data, shape, dtype="float32", normalization=None, stacklevel=3):
    """Returns the first 500 images of a data set: a list of arrays `[1, height, width, 3]`.

    Args:
        data: a `tf.data.Dataset`, `keras.utils.PyDataset`, array, generator or other iterable of
            images `[height, width, 3]` or of batches `[batch, height, width, 3]`; or a function
            that returns one, as `tf.lite.TFLiteConverter` takes it. An element may be a tuple, of
            which the first is taken, or a dict with one entry or with "image". It may be endless.
        shape: `(height, width, 3)` that the file takes.
        dtype: "float32": preprocessed images; "uint8": raw pixels.
        normalization: the network's `Normalization`, whose range images must have; None: any.
        stacklevel: of warnings, as of `warnings.warn`.

    Raises:
        ValueError: without an image, on one of another shape or type, on images that are all one
            value, or on those of another scale than the file takes.
    """
    if data is None:
        raise ValueError(
            "quantize='int8' needs `representative_data`: a hundred or more images that are like "
            "those the file will see, as a tf.data.Dataset or an iterable. Received: None"
        )
    images, more = [], False
    batches = image_batches(
        _unnamed(data),
        tuple(shape),
        steps=MOST_IMAGES + 1,
        name="representative_data",
        dtype=dtype,
        single=True,
    )
    for batch in batches:
        batch = batch.numpy()
        left = MOST_IMAGES - len(images)
        images.extend(image[None] for image in batch[:left])
        if len(batch) > left:
            more = True
            break
    if not images:
        raise ValueError(
            "`representative_data` has no image; a hundred or more are right. An iterator can be "
            "read only once: pass what makes one. Received: 0 images"
        )
    _check_values(images, dtype, normalization, stacklevel + 1)
    if more:
        warnings.warn(
            f"The ranges are measured on the first {MOST_IMAGES} images of `representative_data`; "
            "it has more.",
            stacklevel=stacklevel,
        )
    if len(images) < FEWEST_IMAGES:
        warnings.warn(
            f"The ranges of an int8 file measured on so few images may cut off what others reach; "
            f"a hundred or more are right. Received: {len(images)} images in "
            "`representative_data`",
            stacklevel=stacklevel,
        )
    return images


def _unnamed(data):
    """Returns the data set with images in place of dicts that name them."""
    if isinstance(data, dict):
        return _image_of(data)
    if isinstance(data, tf.data.Dataset):
        return data.map(_image_of) if isinstance(data.element_spec, dict) else data
    if hasattr(data, "shape"):
        # Batches in one array.
        return list(data) if len(data.shape) == 5 else data
    if isinstance(data, (str, bytes, keras.utils.PyDataset, tuple)):
        return data
    if isinstance(data, list):
        return [_image_of(element) for element in data]
    if callable(data) and not hasattr(data, "__iter__"):
        return lambda: _unnamed(data())
    return map(_image_of, data) if hasattr(data, "__iter__") else data


def _image_of(element):
    """Returns the image of a dict, and anything else as it is."""
    if not isinstance(element, dict):
        return element
    (name,) = element if len(element) == 1 else ("image",)
    if name not in element:
        raise ValueError(
            "`representative_data` with dicts needs one entry in each, or one that is called "
            f"'image'. Received: entries {', '.join(map(repr, element))}"
        )
    return element[name]


def _check_values(images, dtype, normalization, stacklevel):
    """Raises a ValueError on images of another scale, and warns where they may be of one."""
    low = min(float(image.min()) for image in images)
    high = max(float(image.max()) for image in images)
    received = f"Received: {len(images)} images with values from {low:g} to {high:g}"
    if low == high:
        raise ValueError(
            "`representative_data` must have images like those the file will see; int8 ranges "
            f"measured on images of one value fit no other. {received}"
        )
    if dtype == "uint8":
        least, most = 0.0, 255.0
        right = "raw pixels from 0 to 255, as the file's input_type='uint8' takes them"
        wrong = high <= 1
    elif normalization is None:
        return
    else:
        mean, std = np.array(normalization.mean), np.array(normalization.std)
        least, most = float(min(-mean / std)), float(max((1 - mean) / std))
        right = (
            f"images normalised as the network's `normalization` does, from about {least:.2f} to "
            f"{most:.2f}"
        )
        limit = max(abs(least), abs(most))
        # Where the normalised range begins about zero, it is the scale from 0 to 1 itself.
        is_unit = low >= 0 and high <= 1 and least < -0.1
        is_pixels = low >= 0 and high > 2 * most and all(_is_whole(image) for image in images)
        wrong = is_unit or is_pixels or max(-low, high) > _MOST_RANGES * limit
        wrong |= low >= 0 and least < -0.1 and high > 4 * most
    if wrong:
        raise ValueError(f"`representative_data` must have {right}. {received}")
    if high - low < _LEAST_SHARE * (most - least):
        warnings.warn(
            f"`representative_data` should have {right}; the ranges of an int8 file measured on "
            f"less cut off what other images reach. {received}",
            stacklevel=stacklevel,
        )


def _is_whole(image):
    return bool(np.all(image == np.rint(image)))
