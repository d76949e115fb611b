"""The data sets that a user passes, of every kind, read batch by batch with checks."""

import collections
import itertools
import numbers
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_dsnet.utils.batch_checks import as_tensor, check_images, check_labels, describe_value

# Of arrays that are passed whole, as in `keras.Model.fit`.
_BATCH_SIZE = 32


def labelled_batches(
    data: Any,
    input_shape: Sequence[int | None],
    classes: int,
    num_batches: int | None = None,
    name: str = "dataset",
) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
    """Yields the images and labels of a data set, checked.

    Args:
        data: A `tf.data.Dataset`, `keras.utils.PyDataset`, generator or other iterable of batches
            `(images, labels)` or `(images, labels, sample_weight)`; a callable without arguments
            that returns one; or `(images, labels)`, two arrays of all images. Images are float
            `[batch, height, width, channels]`. `check_labels` describes the labels.
        input_shape: `(height, width, channels)`. Height and width can be None.
        classes: Int, number of classes.
        num_batches: Int, the maximum number of batches to read. Defaults to all batches.
        name: String, the name of the caller's argument, for messages.

    Returns:
        Generator of pairs of tensors: images, float32, and labels, which are class numbers, int32
        `[batch]`, or probabilities, float32 `[batch, classes]`. Sample weights are left out.

    Raises:
        ValueError: At once if `data` is not a data set, `num_batches` is not a positive int, or the
            data set is endless and `num_batches` is None. The generator raises it for a batch that
            does not fit.
    """
    batches = _batches(data, num_batches, name)

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


def image_batches(
    data: Any,
    input_shape: Sequence[int | None],
    num_batches: int | None = None,
    name: str = "dataset",
    dtype: str = "float32",
    single: bool = False,
    count_name: str = "num_batches",
) -> Iterator[tf.Tensor]:
    """Yields the images of a data set, checked. Labels and sample weights are left out.

    Args:
        data: As in `labelled_batches`. Batches can also be images without labels, and an array
            holds all images.
        input_shape: `(height, width, channels)`. Height and width can be None.
        num_batches: Int, the maximum number of batches to read. Defaults to all batches.
        name: String, the name of the caller's argument, for messages.
        dtype: String, `"float32"` for images of any float type, `"uint8"` for raw pixels. Defaults
            to `"float32"`.
        single: Boolean, whether an element can also be one image without a batch axis. Defaults to
            `False`.
        count_name: String, the name of the caller's argument for `num_batches`, for messages.

    Returns:
        Generator of tensors of type `dtype`, `[batch, height, width, channels]`.

    Raises:
        ValueError: As in `labelled_batches`.
    """
    batches = _batches(data, num_batches, name, count_name)

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


def batch_count(data: Any, num_batches: int | None = None) -> int | None:
    """Returns the number of batches that a data set will give, or None if it is not known.

    Args:
        data: As in `labelled_batches`.
        num_batches: Int, the maximum number of batches to read. Defaults to all batches.
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
    if num_batches is None:
        return count
    if count is not None:
        return min(count, num_batches)
    # A data set whose end is not known can end before `num_batches`.
    return None if is_endless(data) is None else num_batches


def is_endless(data: Any) -> bool | None:
    """Returns whether a data set never ends, or None if only reading it can show that.

    Args:
        data: As in `labelled_batches`.
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
    if isinstance(data, itertools.repeat):
        # Only one that ends has a length.
        return operator.length_hint(data, -1) < 0
    return False if hasattr(data, "__len__") else None


def refuse_endless(
    data: Any, num_batches: int | None, name: str = "dataset", count_name: str = "num_batches"
) -> None:
    """Raises a ValueError if all batches of an endless data set are asked for.

    Args:
        data: As in `labelled_batches`.
        num_batches: Int, the number of batches to read, or None for all.
        name: String, the name of the caller's argument.
        count_name: String, the name of the caller's argument of the number.
    """
    if num_batches is None and is_endless(data):
        raise ValueError(
            f"`{name}` never ends: pass `{count_name}`, the number of batches to read, or leave "
            f"out `repeat`. Received: {describe_value(data)} without `{count_name}`"
        )


def _batches(data, num_batches, name, count_name="num_batches"):
    """Returns a function that returns an iterator of at most `num_batches` batches of `data`."""
    check_num_batches(num_batches, count_name)
    arrays = _arrays(data)
    is_table = isinstance(data, (str, bytes, dict, tf.RaggedTensor, tf.SparseTensor))
    known = (collections.abc.Iterable, keras.utils.PyDataset)
    if is_table or (arrays is None and not isinstance(data, known) and not callable(data)):
        raise ValueError(
            f"`{name}` must be a tf.data.Dataset, a keras.utils.PyDataset, arrays or another "
            f"iterable of batches. Received: {describe_value(data)}"
        )
    refuse_endless(data, num_batches, name, count_name)

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
                    f"If `{name}` is a function, it must return an iterable of batches. "
                    f"Received: a function that returns {describe_value(source)}"
                )
        return iter(source)

    return lambda: itertools.islice(read(), num_batches)


def check_num_batches(num_batches: Any, name: str = "num_batches") -> None:
    """Checks a number of batches.

    Args:
        num_batches: The argument.
        name: String, the name of the caller's argument.

    Raises:
        ValueError: If it is neither None nor a positive int.
    """
    if num_batches is None:
        return
    whole = isinstance(num_batches, numbers.Integral) and not isinstance(num_batches, bool)
    if not whole or num_batches < 1:
        raise ValueError(
            f"`{name}` must be a number of batches, an int of 1 or more, or None. "
            f"Received: {name}={num_batches!r}"
        )


def _arrays(data):
    """Returns the tuple of arrays, images first, of a data set that is passed whole, else None."""
    rank = _rank(data)
    if rank == 4:
        return (data,)
    if isinstance(data, (tuple, list)) and 2 <= len(data) <= 3:
        ranks = [_rank(part) for part in data]
        # The second element of a list of batches has images too, not labels.
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
