"""Reads the data sets that a user passes, of every kind, batch by batch and checked."""

import collections
import itertools
import numbers

import keras
import numpy as np
import tensorflow as tf

from keras_dsnet.utils.batch_checks import as_tensor, check_images, check_labels, describe_value

_BATCH_SIZE = 32


def labelled_batches(data, input_shape, classes, steps=None, name="dataset"):
    """Yields the images and labels of a data set, checked.

    Args:
        data: a `tf.data.Dataset`, `keras.utils.PyDataset`, generator or other iterable of batches
            `(images, labels)` or `(images, labels, sample_weight)`; a callable without arguments
            that returns one; or `(images, labels)`, two arrays of all images. Images are float
            `[batch, height, width, channels]`, labels are as `check_labels` takes them.
        input_shape: `(height, width, channels)`; height and width may be None.
        classes: int.
        steps: int: at most so many batches are read; None: all.
        name: str, of the argument in the caller's signature, for messages.

    Returns:
        A generator of pairs of tensors: images, float32, and labels: class numbers, int32
        `[batch]`, or probabilities, float32 `[batch, classes]`. Sample weights are left out.

    Raises:
        ValueError: at once on what is no data set, on `steps` that is no positive int, and on an
            endless data set without `steps`; by the generator on a batch that does not fit.
    """
    batches = _batches(data, steps, name)

    def generate():
        for number, batch in enumerate(batches()):
            where = f"batch {number} of `{name}`"
            if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
                raise ValueError(
                    f"`{name}` must have batches (images, labels); `dataset.map` can make them. "
                    f"Received: {describe_value(batch)} as batch {number}"
                )
            images = check_images(batch[0], input_shape, where)
            yield tf.cast(images, tf.float32), check_labels(batch[1], images, classes, where)

    return generate()


def image_batches(data, input_shape, steps=None, name="dataset", dtype="float32", single=False):
    """Yields the images of a data set, checked; labels and sample weights are left out.

    Args:
        data: as of `labelled_batches`; its batches may be images without labels, and an array holds
            all images.
        input_shape: `(height, width, channels)`; height and width may be None.
        steps: int: at most so many batches are read; None: all.
        name: str, of the argument in the caller's signature, for messages.
        dtype: "float32": images of any float type; "uint8": raw pixels.
        single: bool: an element may also be one image without a batch axis.

    Returns:
        A generator of tensors of `dtype`, `[batch, height, width, channels]`.

    Raises:
        ValueError: as of `labelled_batches`.
    """
    batches = _batches(data, steps, name)

    def generate():
        for number, batch in enumerate(batches()):
            where = f"batch {number} of `{name}`"
            images = batch
            if isinstance(batch, (tuple, list)) and 1 <= len(batch) <= 3:
                images = batch[0]
            if single:
                images = as_tensor(images, where)
                images = images[None] if images.shape.rank == 3 else images
            yield tf.cast(check_images(images, input_shape, where, dtype), dtype)

    return generate()


def batch_count(data, steps=None):
    """Returns how many batches a data set will give: an int, or None where it is not known.

    Args:
        data: as of `labelled_batches`.
        steps: int or None, as there.
    """
    arrays = _arrays(data)
    if arrays is not None:
        count = -(-arrays[0].shape[0] // _BATCH_SIZE)
    elif isinstance(data, tf.data.Dataset):
        count = int(data.cardinality())
        count = None if count < 0 else count
    elif isinstance(data, keras.utils.PyDataset):
        count = _num_batches(data)
    else:
        try:
            count = len(data)
        except TypeError:
            count = None
    if steps is None or count is None:
        return count if steps is None else None if is_endless(data) is None else steps
    return min(count, steps)


def is_endless(data):
    """Returns whether a data set never ends; None where only reading it could show that.

    Args:
        data: as of `labelled_batches`.
    """
    if isinstance(data, tf.data.Dataset):
        cardinality = int(data.cardinality())
        if cardinality == tf.data.UNKNOWN_CARDINALITY:
            return None
        return cardinality == tf.data.INFINITE_CARDINALITY
    if isinstance(data, keras.utils.PyDataset):
        return _num_batches(data) is None
    if isinstance(data, (itertools.cycle, itertools.count)):
        return True
    return False if hasattr(data, "__len__") else None


def _batches(data, steps, name):
    """Returns a function that gives an iterator of the batches of `data`, at most `steps`."""
    check_steps(steps)
    arrays = _arrays(data)
    is_table = isinstance(data, (str, bytes, dict, tf.RaggedTensor, tf.SparseTensor))
    known = (collections.abc.Iterable, keras.utils.PyDataset)
    if is_table or (arrays is None and not isinstance(data, known) and not callable(data)):
        raise ValueError(
            f"`{name}` must be a tf.data.Dataset, a keras.utils.PyDataset, arrays or another "
            f"iterable of batches. Received: {describe_value(data)}"
        )
    if steps is None and is_endless(data):
        raise ValueError(
            f"`{name}` never ends: pass `steps`, how many batches to read of it, or leave out "
            f"`repeat`. Received: {describe_value(data)} without `steps`"
        )

    def read():
        if arrays is not None:
            return _slices(arrays)
        if isinstance(data, keras.utils.PyDataset):
            return _items(data)
        source = data
        if callable(data) and not isinstance(data, collections.abc.Iterable):
            source = data()
            if not isinstance(source, collections.abc.Iterable):
                raise ValueError(
                    f"`{name}` must return an iterable of batches where it is a function. "
                    f"Received: a function that returns {describe_value(source)}"
                )
        return iter(source)

    return lambda: itertools.islice(read(), steps)


def check_steps(steps, name="steps"):
    """Raises a ValueError unless `steps` is None or a positive int.

    Args:
        steps: what was passed.
        name: str, of the argument.
    """
    if steps is None:
        return
    whole = isinstance(steps, numbers.Integral) and not isinstance(steps, bool)
    if not whole or steps < 1:
        raise ValueError(
            f"`{name}` must be a number of batches, an int of 1 or more, or None. "
            f"Received: {name}={steps!r}"
        )


def _arrays(data):
    """Returns the arrays of a data set that is given whole: a tuple, images first; else None."""
    rank = _rank(data)
    if rank == 4:
        return (data,)
    if isinstance(data, (tuple, list)) and 2 <= len(data) <= 3:
        ranks = [_rank(part) for part in data]
        # A list of batches has images in its second place too.
        if None not in ranks and ranks[0] >= 3 and max(ranks[1:]) <= 2:
            return tuple(data)
    return None


def _rank(value):
    if isinstance(value, (np.ndarray, tf.Tensor, tf.Variable, keras.Variable)):
        return len(value.shape)
    return None


def _slices(arrays):
    counts = [array.shape[0] if len(array.shape) else None for array in arrays]
    if len(set(counts)) > 1:
        raise ValueError(
            "There must be as many labels as images. "
            f"Received: arrays of shapes {', '.join(str(tuple(a.shape)) for a in arrays)}"
        )
    for start in range(0, counts[0], _BATCH_SIZE):
        batch = tuple(array[start : start + _BATCH_SIZE] for array in arrays)
        yield batch if len(batch) > 1 else batch[0]


def _items(dataset):
    count = _num_batches(dataset)
    for index in itertools.count() if count is None else range(count):
        yield dataset[index]


def _num_batches(dataset):
    try:
        return dataset.num_batches
    except NotImplementedError:
        return None
