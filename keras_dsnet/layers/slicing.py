"""How layers use the first channels of a variable, forward and in gradients.

A layer's channel options are the ascending channel counts that it can run with; a width is an index
into them.
"""

import contextvars
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


_current = contextvars.ContextVar("slice_tape", default=None)


class SliceTape:
    """A gradient tape that differentiates by the slices of variables that the layers use.

    By a whole variable the gradient of a narrow sub-network is mostly zeros, which TensorFlow
    writes out for every sub-network and then adds up. Under this tape each slice that a sliced
    layer takes is a source of its own, and `add_slices` sums them.

    Args:
        reads: dictionary in which tapes of one step share what they read of variables, or None. No
            variable may change in between.

    Example:

    >>> with SliceTape() as tape:
    ...     loss = loss_of(model.run_sections(images, path, training=True))
    >>> _, gradients = tape.gradient(loss)
    >>> whole = whole_gradient(gradients, variable)
    """

    def __init__(self, reads=None):
        self._tape = tf.GradientTape(watch_accessed_variables=False)
        self._reads = {} if reads is None else reads
        # The slices that were taken of each variable, and beside them their sizes.
        self._slices, self._sizes = {}, {}

    def __enter__(self):
        self._tape.__enter__()
        self._token = _current.set(self)
        return self

    def __exit__(self, *exception):
        _current.reset(self._token)
        self._tape.__exit__(*exception)

    def watch(self, tensor):
        """Makes a tensor a source.

        Args:
            tensor: a tensor of a float type.
        """
        self._tape.watch(tensor)

    def take(self, variable, channels):
        """Returns the slice of a variable, and remembers it as a source.

        Args:
            variable: `keras.Variable`.
            channels: tuple: for each of its last axes how many entries to keep.
        """
        with self._tape.stop_recording():
            if id(variable) not in self._reads:
                self._reads[id(variable)] = tf.convert_to_tensor(variable)
            taken = tf.identity(first_channels(self._reads[id(variable)], *channels))
        self._tape.watch(taken)
        self._slices.setdefault(id(variable), []).append(taken)
        leading = taken.shape[: len(taken.shape) - len(channels)]
        self._sizes.setdefault(id(variable), []).append([*leading, *channels])
        return taken

    def gradient(self, target, sources=(), output_gradients=None):
        """Returns the gradients by `sources`, and those by slices.

        Args:
            target: the tensor to differentiate.
            sources: watched tensors.
            output_gradients: of `tf.GradientTape.gradient`.

        Returns:
            A list, and a dictionary from a variable's `id` to the gradient by its slice, in the
            type of the slice, with its size, a list of ints and scalar tensors.
        """
        values, slices = self._tape.gradient(
            target, (list(sources), self._slices), output_gradients=output_gradients
        )
        summed = {}
        for key, gradients in slices.items():
            for gradient, size in zip(gradients, self._sizes[key]):
                if gradient is not None:
                    add_slices(summed, {key: (gradient, size)})
        return values, summed


def variable_slice(variable, *channels):
    """Returns the first channels of the last axes of a variable (Eq. 2 of the paper).

    Args:
        variable: a Keras variable.
        *channels: as of `first_channels`.
    """
    tape = _current.get()
    if tape is None:
        return first_channels(tf.convert_to_tensor(variable), *channels)
    return tape.take(variable, channels)


def add_slices(total, gradients, ascending=False):
    """Adds gradients by slices to `total` in place; the sum has the larger size of each axis.

    Args:
        total: dictionary of sums so far, as `SliceTape.gradient` returns.
        gradients: dictionary of what to add.
        ascending: bool: no axis of a gradient is smaller than that of its sum; saves operations.
    """
    for key, (gradient, size) in gradients.items():
        if key in total:
            old, old_size = total[key]
            if not ascending:
                size = [_larger(a, b) for a, b in zip(old_size, size)]
                gradient = _grow(gradient, gradients[key][1], size)
            gradient += _grow(old, old_size, size)
        total[key] = gradient, size


def whole_gradient(total, variable):
    """Returns the gradient by the whole variable: zeros where no slice reached.

    Raises:
        ValueError: if no layer took a slice of the variable.
    """
    if id(variable) not in total:
        raise ValueError(
            f"No sliced layer used the variable '{variable.path}', so it has no gradient: "
            "a layer must take its variables by `variable_slice`."
        )
    gradient, size = total[id(variable)]
    full = list(variable.shape)
    return tf.ensure_shape(_grow(tf.cast(gradient, variable.dtype), size, full), full)


def _larger(first, second):
    if _is_same(first, second):
        return first
    static = isinstance(first, int) and isinstance(second, int)
    return max(first, second) if static else tf.maximum(first, second)


def _is_same(first, second):
    """Whether two sizes are known to be equal."""
    if isinstance(first, int) and isinstance(second, int):
        return first == second
    return first is second


def _grow(tensor, size, new_size):
    """Pads with zeros at the end; equal sizes make equal operations, which TensorFlow merges."""
    if all(map(_is_same, size, new_size)):
        return tensor
    return tf.pad(tensor, [[0, new - old] for old, new in zip(size, new_size)])
