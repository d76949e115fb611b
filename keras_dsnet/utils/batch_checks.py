"""Checks of a batch that a user passes: images, labels, weights.

A mistake raises a `ValueError` in eager code. A traced function does not know the values yet, so
there the check is an assertion, and `line_of_assertion` finds its message in TensorFlow's error.
"""

import numbers
import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_dsnet.utils.argument_checks import UserError

# The largest number up to which all integers are exact in a type. A larger label has been rounded.
_EXACT = {tf.bfloat16: 256, tf.float16: 2048}
# Tolerance for the sum of a row of probabilities, for types with 8 bits of precision.
_SUM_TOLERANCE = 0.01
_EMPTY = (
    "A batch must have at least one image, with several replicas one for each; "
    "`drop_remainder=True` leaves out a small last batch. Received: 0 images in {}"
)
# Programs recognise the message by the same first word as that of a `UserError` in a pipeline.
_MARK = f"{UserError.__name__}: "
_ASSERTED = re.compile(rf"{_MARK}(.*?) \(end of line\)")


def check_images(
    images: Any, input_shape: Sequence[int | None], name: str, dtype: str = "float32"
) -> tf.Tensor:
    """Checks a batch of images.

    Args:
        images: Tensor or array, float `[batch, height, width, channels]`.
        input_shape: `(height, width, channels)`. Height and width can be None.
        name: String, a description of the batch for messages.
        dtype: String, `"float32"` for images of any float type, `"uint8"` for raw pixels. Defaults
            to `"float32"`.

    Returns:
        Tensor of the type of `images`. In a traced function the tensor depends on the assertions.

    Raises:
        ValueError: If the images have another rank, size, number of channels or type, the batch is
            empty, or a value is NaN or infinite.
    """
    images = as_tensor(images, name)
    shape = tf.TensorShape([None, *input_shape])
    sizes = f"`input_shape={tuple(input_shape)}`, in which None is any size"
    right = f"Images must be [batch, height, width, channels] with the network's {sizes}."
    if images.shape.rank == 3 and shape[1:].is_compatible_with(images.shape):
        raise ValueError(
            "Images must be in batches [batch, height, width, channels], which "
            "`dataset.batch(32)` makes of a data set. "
            f"Received: one image of shape {images.shape} as {name}"
        )
    if not shape.is_compatible_with(images.shape):
        raise ValueError(f"{right} Received: images of shape {images.shape} in {name}")
    if images.shape.rank is None:
        raise ValueError(
            f"{right} Received: images of unknown rank in {name}; `tf.ensure_shape` sets it"
        )
    if dtype == "uint8" and images.dtype != tf.uint8:
        raise ValueError(
            f"Images must be raw uint8 pixels here. Received: {images.dtype.name} in {name}"
        )
    if dtype != "uint8" and not images.dtype.is_floating:
        raise ValueError(
            "Images must be preprocessed floats, as `preprocess_input` of the application makes "
            f"them, not raw pixels. Received: images of dtype {images.dtype.name} in {name}"
        )
    images = _check_sizes(images, shape, right, name)
    images = _after(_require(tf.shape(images)[0] > 0, lambda: _EMPTY.format(name)), images)
    if dtype == "uint8":
        return images
    # The sum is finite if all values are. It is the cheapest check of all values.
    finite = tf.math.is_finite(tf.reduce_sum(_at_least_float32(images)))
    line = f"Images must have finite values. Received: NaN or infinite values in {name}"
    return _after(_require(finite, lambda: line), images)


def _check_sizes(images, shape, right, name):
    """Checks the sizes that are known only when a traced function runs."""
    known = shape.merge_with(images.shape)
    if [*known[1:]] == [*images.shape[1:]]:
        return images
    wanted = [-1 if size is None else size for size in shape[1:]]
    sizes = tf.shape(images)[1:]
    fits = tf.reduce_all((sizes == wanted) | (tf.constant(wanted) < 0))

    def line():
        shown = tf.strings.reduce_join(tf.strings.as_string(tf.shape(images)), separator=", ")
        return tf.strings.join([f"{right} Received: images of shape (", shown, f") in {name}"])

    return tf.ensure_shape(_after(_require(fits, line), images), known)


def _at_least_float32(values):
    return values if values.dtype == tf.float64 else tf.cast(values, tf.float32)


def check_labels(labels: Any, images: tf.Tensor, classes: int, name: str) -> tf.Tensor:
    """Checks the labels of a batch and converts them to one of two forms.

    Args:
        labels: Tensor or array of class numbers, `[batch]` or `[batch, 1]`, of any integer or float
            type or bool, or of probabilities, one-hot included, `[batch, classes]`. With one class
            `[batch, 1]` are class numbers.
        images: Tensor, the images of the batch.
        classes: Int, number of classes.
        name: String, a description of the batch for messages.

    Returns:
        Class numbers, int32 `[batch]`, or probabilities, float32 `[batch, classes]`. In a traced
        function the tensor depends on the assertions. Labels of unknown form become probabilities.

    Raises:
        ValueError: If the labels have another shape or type, a label is not a class, or
            probabilities are negative or do not sum to 1.
    """
    if labels is None:
        raise ValueError(f"There must be labels beside the images. Received: no labels in {name}")
    labels = as_tensor(labels, name, what="labels")
    right = (
        f"Labels must be class numbers 0 to {classes - 1}, [batch] or [batch, 1], or probabilities "
        f"[batch, {classes}]."
    )
    if not (labels.dtype.is_integer or labels.dtype.is_floating or labels.dtype.is_bool):
        raise ValueError(f"{right} Received: labels of dtype {labels.dtype.name} in {name}")
    count = images.shape[0]
    forms = ([count], [count, 1], [count, classes])
    if not any(labels.shape.is_compatible_with(form) for form in forms):
        raise ValueError(
            f"{right} Received: labels of shape {labels.shape} for images of shape {images.shape} "
            f"in {name}"
        )
    if labels.shape.rank is None or (labels.shape.rank == 2 and labels.shape[1] is None):
        return _check_open_form(labels, images, classes, right, name)
    labels = _check_count(labels, images, "labels", name)
    if labels.shape.rank == 2 and labels.shape[1] > 1:
        return _check_probabilities(labels, right, name)
    return _check_numbers(tf.reshape(labels, [-1]), classes, right, name)


def _check_open_form(labels, images, classes, right, name):
    """Checks labels whose form is known only when a traced function runs; returns probabilities.

    TensorFlow traces a function that has seen one form of labels with open shapes for the next.
    """
    shape, rank = tf.shape(labels), tf.rank(labels)
    # A scalar has no first and no last size.
    first, last = tf.concat([shape, [-1]], 0)[0], tf.concat([[-1], shape], 0)[-1]
    is_numbers = (rank == 1) | ((rank == 2) & (last == 1))
    is_rows = (rank == 2) & (last == classes) & ~is_numbers

    def line():
        shown = tf.strings.reduce_join(tf.strings.as_string(shape), separator=", ")
        count = tf.strings.as_string(tf.shape(images)[0])
        parts = [f"{right} Received: labels of shape (", shown, ") for ", count, " images in "]
        return tf.strings.join([*parts, name])

    fits = (is_numbers | is_rows) & (first == tf.shape(images)[0])
    labels = _after(_require(fits, line), labels)

    def from_rows():
        return _check_probabilities(tf.reshape(labels, [-1, classes]), right, name)

    def from_numbers():
        flat = tf.reshape(labels, [-1])
        return tf.one_hot(_check_numbers(flat, classes, right, name), classes)

    return tf.ensure_shape(tf.cond(is_rows, from_rows, from_numbers), [None, classes])


def _check_count(values, images, what, name):
    """Checks the number of labels or weights if it is known only when a traced function runs."""
    if None not in (values.shape[0], images.shape[0]):
        return values
    counts = [tf.shape(values)[0], tf.shape(images)[0]]

    def line():
        first, second = map(tf.strings.as_string, counts)
        parts = [f"There must be as many {what} as images. Received: ", first, f" {what} and "]
        return tf.strings.join([*parts, second, f" images in {name}"])

    return _after(_require(counts[0] == counts[1], line), values)


def _check_numbers(labels, classes, right, name):
    if classes - 1 > _EXACT.get(labels.dtype, classes):
        raise ValueError(
            f"Labels of {labels.dtype.name} are exact only up to {_EXACT[labels.dtype]}, and there "
            f"are {classes} classes: pass int32. Received: labels of {labels.dtype.name} in {name}"
        )
    is_floating = labels.dtype.is_floating
    # 64 bits hold any number of classes. A huge uint64 becomes negative, and is refused.
    values = tf.cast(labels, tf.float64 if is_floating else tf.int64)
    right_ones = (values >= 0) & (values < classes)
    if is_floating:
        right_ones &= values == tf.floor(values)

    def line():
        wrong = tf.boolean_mask(values if is_floating else labels, ~right_ones)[0]
        shown = tf.strings.as_string(wrong, shortest=is_floating)
        return tf.strings.join([f"{right} Received: label ", shown, f" in {name}"])

    held = _require(tf.reduce_all(right_ones), line)
    return _after(held, tf.cast(labels, tf.int32))


def _check_probabilities(labels, right, name):
    labels = tf.cast(labels, tf.float32)
    sums = tf.reduce_sum(labels, axis=1)
    # NaN compares as False.
    right_rows = tf.reduce_all(labels >= 0, axis=1) & (tf.abs(sums - 1) <= _SUM_TOLERANCE)

    def line():
        wrong = tf.boolean_mask(labels, ~right_rows)[0]
        figures = [tf.reduce_min(wrong), tf.reduce_sum(wrong)]
        low, total = (tf.strings.as_string(figure, shortest=True) for figure in figures)
        parts = [f"{right} Received: a row with minimum ", low, " and sum ", total, f" in {name}"]
        return tf.strings.join(parts)

    return _after(_require(tf.reduce_all(right_rows), line), labels)


def check_weights(weights: Any, images: tf.Tensor, name: str) -> tf.Tensor | None:
    """Checks the sample weights of a batch.

    Args:
        weights: Tensor or array of numbers, `[batch]` or `[batch, 1]`, or None.
        images: Tensor, the images of the batch.
        name: String, a description of the batch for messages.

    Returns:
        float32 tensor `[batch]`, or None if there are no weights. In a traced function the tensor
        depends on the assertions.

    Raises:
        ValueError: If the weights have another shape or type, or one is NaN or infinite.
    """
    if weights is None:
        return None
    weights = as_tensor(weights, name, what="sample weights")
    right = "Sample weights must be a finite number for each image, [batch] or [batch, 1]."
    count = images.shape[0]
    fits = any(weights.shape.is_compatible_with(form) for form in ([count], [count, 1]))
    if not fits:
        raise ValueError(
            f"{right} Received: weights of shape {weights.shape} for images of shape "
            f"{images.shape} in {name}"
        )
    if not (weights.dtype.is_integer or weights.dtype.is_floating or weights.dtype.is_bool):
        raise ValueError(f"{right} Received: weights of dtype {weights.dtype.name} in {name}")
    weights = tf.cast(tf.reshape(weights, [-1]), tf.float32)
    weights = _check_count(weights, images, "sample weights", name)
    finite = tf.reduce_all(tf.math.is_finite(weights))
    line = f"{right} Received: a weight that is NaN or infinite in {name}"
    return _after(_require(finite, lambda: line), weights)


def class_numbers(labels: tf.Tensor) -> tf.Tensor:
    """Returns the class of each image, the likeliest one for probabilities.

    Args:
        labels: Tensor that `check_labels` returned.

    Returns:
        int32 tensor `[batch]`.
    """
    return labels if labels.shape.rank == 1 else tf.argmax(labels, axis=1, output_type=tf.int32)


def as_tensor(value: Any, name: str, what: str = "images") -> tf.Tensor:
    """Converts an array to a tensor.

    Args:
        value: Tensor or array.
        name: String, a description of the batch for messages.
        what: String, the contents for messages. Defaults to `"images"`.

    Raises:
        ValueError: If `value` is something else, such as a dictionary, a ragged tensor or a list of
            unequal rows.
    """
    if isinstance(value, tf.Tensor):
        return value
    if isinstance(value, (tf.Variable, keras.Variable)):
        return tf.convert_to_tensor(value)
    try:
        if isinstance(value, (dict, set, tf.RaggedTensor, tf.SparseTensor, type(None))):
            raise TypeError
        return tf.convert_to_tensor(np.asarray(value))
    except (TypeError, ValueError, tf.errors.OpError):
        raise ValueError(
            f"The {what} of a batch must be one array or tensor. "
            f"Received: {describe_value(value)} in {name}"
        ) from None


def line_of_assertion(error: Exception) -> str | None:
    """Returns the message of a check that failed inside a traced function.

    Args:
        error: Exception of TensorFlow.

    Returns:
        String, or None if the error is not of such a check.
    """
    found = _ASSERTED.search(str(error))
    return found[1] if found else None


def checked(value: tf.Tensor, holds: tf.Tensor, line: Callable[[], Any]) -> tf.Tensor:
    """Checks a condition on a batch, in a traced function by an assertion.

    Args:
        value: Tensor that the condition is about.
        holds: Boolean scalar tensor.
        line: Function that returns the message, a string or a string tensor.

    Returns:
        `value`. In a traced function it depends on the assertion.

    Raises:
        ValueError: If the condition does not hold, in eager code.
    """
    return _after(_require(holds, line), value)


def _require(holds, line):
    """Checks a condition, in a traced function by an assertion.

    Args:
        holds: Boolean scalar tensor.
        line: Function that returns the message, a string or a string tensor.

    Returns:
        Tensor that the checked values must depend on, or None in eager code.
    """
    if tf.executing_eagerly():
        if not holds:
            text = line()
            raise ValueError(text if isinstance(text, str) else text.numpy().decode())
        return None

    def refuse():
        # The raw operation, because `tf.debugging.Assert` would add another `tf.cond`.
        text = tf.strings.join([_MARK, line(), " (end of line)"])
        failed = tf.raw_ops.Assert(condition=tf.constant(False), data=[text], summarize=1)
        with tf.control_dependencies([failed]):
            return tf.constant(False)

    return tf.cond(holds, lambda: tf.constant(True), refuse)


def _after(held, value):
    if held is None:
        return value
    with tf.control_dependencies([held]):
        return tf.identity(value)


def describe_value(value: Any) -> str:
    """Describes a value in a few words, without its contents."""
    if isinstance(value, dict):
        return f"a dict with the keys {sorted(map(str, value))[:5]}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)} elements"
    if hasattr(value, "shape"):
        return f"a {type(value).__name__} of shape {value.shape}"
    if value is None or isinstance(value, (str, bytes, numbers.Number)):
        return repr(value)[:80]
    return f"a {type(value).__name__}"
