"""Channel options: the counts of channels that a sliced layer can run with."""

import operator

import tensorflow as tf
from keras import KerasTensor


def as_options(value, name):
    """Returns `value` as a tuple of ascending channel counts.

    Args:
        value: int or sequence of ints. One count makes a static layer.
        name: what is being checked, for the error message.

    Returns:
        Tuple of ints, strictly ascending.

    Raises:
        ValueError: if a count is not a positive integer, or the counts do not ascend.
    """
    counts = value if isinstance(value, (tuple, list)) else (value,)
    try:
        options = tuple(operator.index(count) for count in counts)
    except TypeError:
        options = ()
    ascending = all(a < b for a, b in zip(options, options[1:]))
    if not options or options[0] < 1 or not ascending:
        raise ValueError(
            f"`{name}` must be a positive int or an ascending tuple of them. Received: {value!r}"
        )
    return options


def resolve_width(width, num_widths, layer):
    """Checks a width and returns it as a Python int where its value is known.

    Args:
        width: Python int, int32 scalar tensor, `KerasTensor`, or None (only where there is one
            width).
        num_widths: how many widths the layer has.
        layer: the layer's name, for the error message.

    Returns:
        Python int; an int32 scalar tensor inside a traced function; a `KerasTensor` as it is. A
        layer with one width is static: it takes any width and returns 0.

    Raises:
        ValueError: if the layer does not have this width. A symbolic tensor out of range fails when
            its value is used (`tf.gather` on CPU).
    """
    if num_widths == 1:
        return 0
    if isinstance(width, KerasTensor):
        return width
    if tf.is_tensor(width) and not hasattr(width, "numpy"):
        return tf.cast(width, tf.int32)
    try:
        index = operator.index(width.numpy() if tf.is_tensor(width) else width)
    except TypeError:
        index = -1
    if not 0 <= index < num_widths or isinstance(width, bool):
        raise ValueError(
            f"Layer '{layer}' has the widths 0 to {num_widths - 1}. Received: width={width!r}"
        )
    return index


def option_at(options, width):
    """Returns the channels at a width, a Python int; a static layer has one option for all."""
    return options[width] if len(options) > 1 else options[0]


def channels_at(options, width):
    """Returns the number of channels at a resolved width: an int, or a scalar tensor."""
    if isinstance(width, int):
        return options[width]
    return tf.gather(tf.constant(options, tf.int32), width)


def static_channels(options, width, layer):
    """Returns the number of channels at a width where it is known, else None."""
    if width is None and len(options) > 1:
        return None
    index = resolve_width(width, len(options), layer)
    return options[index] if isinstance(index, int) else None


def first_channels(tensor, *channels):
    """Slices the first channels of the last axes of `tensor` (Eq. 2 of the paper).

    Args:
        tensor: a kernel or a vector.
        *channels: for each of the last axes how many entries to keep: an int, or a scalar tensor.

    Returns:
        The slice; `tensor` itself where nothing is cut.
    """
    full = tensor.shape[-len(channels) :]
    if all(isinstance(count, int) and count == size for count, size in zip(channels, full)):
        return tensor
    leading = [slice(None)] * (len(tensor.shape) - len(channels))
    return tensor[tuple(leading + [slice(count) for count in channels])]


def channels_of(inputs):
    """Returns the channels of a tensor: an int where static, else a scalar tensor.

    Args:
        inputs: a tensor whose last axis is the channels.
    """
    static = inputs.shape[-1]
    return static if static is not None else tf.shape(inputs)[-1]
