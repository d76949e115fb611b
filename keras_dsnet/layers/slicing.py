"""Slices of variables to their first channels, with the gradients of such slices.

The channel options of a layer are the channel counts that it can run with, in ascending order. A
width is an index into them.
"""

import contextvars
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf
from keras import KerasTensor


def as_options(value: int | Sequence[int], name: str) -> tuple[int, ...]:
    """Returns `value` as a tuple of channel options.

    Args:
        value: Int or sequence of ints. A single count makes a static layer.
        name: Str, name of the argument for the error message.

    Returns:
        Tuple of ints in strictly ascending order.

    Raises:
        ValueError: If a count is not a positive int, or the counts are not in ascending order.
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


def resolve_width(width: Any, num_widths: int, layer: str) -> Any:
    """Checks a width and returns it as a Python int if its value is known.

    Args:
        width: Python int, int32 scalar tensor, `KerasTensor`, or None if the layer has one width.
        num_widths: Int, number of widths of the layer.
        layer: Str, name of the layer for the error message.

    Returns:
        A Python int, or an int32 scalar tensor inside a traced function, or the given
        `KerasTensor`. A layer with one width is static: every width resolves to 0.

    Raises:
        ValueError: If the layer does not have this width. A symbolic tensor out of range fails when
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


def option_at(options: Sequence[int], width: int) -> int:
    """Returns the channels at a width. A static layer has one option for all widths.

    Args:
        options: Tuple of ints, channel options.
        width: Python int.
    """
    return options[width] if len(options) > 1 else options[0]


def channels_at(options: Sequence[int], width: Any) -> Any:
    """Returns the channels at a width that `resolve_width` returned, an int or a scalar tensor.

    Args:
        options: Tuple of ints, channel options.
        width: Python int or int32 scalar tensor.
    """
    if isinstance(width, int):
        return options[width]
    return tf.gather(tf.constant(options, tf.int32), width)


def check_channels(inputs: Any, channels: Any, width: Any, layer: str) -> None:
    """Raises a ValueError if an input is known to have other channels than those of its width.

    Args:
        inputs: `[batch, height, width, channels]`.
        channels: Int or int32 scalar tensor, the channels at the width.
        width: Python int or int32 scalar tensor.
        layer: Str, name of the layer for the error message.
    """
    received = channels_of(inputs)
    if isinstance(channels, int) and isinstance(received, int) and channels != received:
        raise ValueError(
            f"Layer '{layer}' has {channels} channels at width {width}. "
            f"Received: inputs.shape={tuple(inputs.shape)}"
        )


def static_channels(options: Sequence[int], width: Any, layer: str) -> int | None:
    """Returns the channels at a width if they are known without running the layer, else None.

    Args:
        options: Tuple of ints, channel options.
        width: As in `resolve_width`.
        layer: Str, name of the layer for the error message.
    """
    if width is None and len(options) > 1:
        return None
    index = resolve_width(width, len(options), layer)
    return options[index] if isinstance(index, int) else None


def first_channels(tensor: Any, *channels: Any) -> Any:
    """Slices the first channels of the last axes of `tensor` (Eq. 2 of the paper).

    Args:
        tensor: A kernel or a vector.
        *channels: Number of entries to keep on each of the last axes, an int or a scalar tensor.

    Returns:
        The slice, or `tensor` itself if the slice is the whole tensor.
    """
    full = tensor.shape[-len(channels) :]
    if all(isinstance(count, int) and count == size for count, size in zip(channels, full)):
        return tensor
    leading = [slice(None)] * (len(tensor.shape) - len(channels))
    return tensor[tuple(leading + [slice(count) for count in channels])]


def channels_of(inputs: Any) -> Any:
    """Returns the number of channels of a tensor, an int if it is static, else a scalar tensor.

    Args:
        inputs: Tensor with the channels on its last axis.
    """
    static = inputs.shape[-1]
    return static if static is not None else tf.shape(inputs)[-1]


_current: contextvars.ContextVar = contextvars.ContextVar("slice_tape", default=None)


class SliceTape:
    """A gradient tape whose sources are the slices of variables that sliced layers use.

    The gradient of a narrow sub-network with respect to whole variables is mostly zeros, which
    TensorFlow writes out and adds for every sub-network. Under this tape each slice that a sliced
    layer uses is a separate source. `add_slices` sums the gradients of slices.

    Args:
        reads: Dict in which the tapes of one step share the variables that they read. No variable
            may change between these tapes. Defaults to a new dict.

    Example:

    ```python
    import tensorflow as tf
    from keras_dsnet.layers import SlicedDense
    from keras_dsnet.layers.slicing import SliceTape, whole_gradient

    layer = SlicedDense((2, 4), input_channels=3)
    layer.build((None, 3))
    with SliceTape() as tape:
        loss = tf.reduce_sum(layer(tf.ones((1, 3)), width=0))
    _, gradients = tape.gradient(loss)
    assert whole_gradient(gradients, layer.kernel).shape == (3, 4)
    ```
    """

    def __init__(self, reads: dict | None = None):
        self._tape = tf.GradientTape(watch_accessed_variables=False)
        self._reads = {} if reads is None else reads
        # Both dicts map the id of a variable to one entry per slice.
        self._slices: dict[int, list] = {}
        self._sizes: dict[int, list] = {}

    def __enter__(self):
        self._tape.__enter__()
        self._token = _current.set(self)
        return self

    def __exit__(self, *exception):
        _current.reset(self._token)
        self._tape.__exit__(*exception)

    def watch(self, tensor: tf.Tensor) -> None:
        """Makes a tensor a source of gradients.

        Args:
            tensor: Tensor of a float type.
        """
        self._tape.watch(tensor)

    def take(self, variable: Any, channels: tuple) -> tf.Tensor:
        """Returns a slice of a variable and records it as a source.

        Args:
            variable: A `keras.Variable`.
            channels: Tuple with the number of entries to keep on each of the last axes.
        """
        with self._tape.stop_recording():
            if id(variable) not in self._reads:
                self._reads[id(variable)] = tf.convert_to_tensor(variable)
            piece = tf.identity(first_channels(self._reads[id(variable)], *channels))
        self._tape.watch(piece)
        self._slices.setdefault(id(variable), []).append(piece)
        leading = piece.shape[: len(piece.shape) - len(channels)]
        self._sizes.setdefault(id(variable), []).append([*leading, *channels])
        return piece

    def gradient(
        self, target: Any, sources: Iterable = (), output_gradients: Any = None
    ) -> tuple[list, dict]:
        """Returns the gradients with respect to `sources` and to the slices.

        Args:
            target: The tensor to differentiate.
            sources: Watched tensors.
            output_gradients: As in `tf.GradientTape.gradient`.

        Returns:
            `(gradients, slices)`: a list with one gradient per source, and a dict that maps the
            `id` of a variable to a pair. The pair is the gradient of the largest slice, in the
            dtype of the slice, and its size, a list of ints and scalar tensors.
        """
        values, slices = self._tape.gradient(
            target, (list(sources), self._slices), output_gradients=output_gradients
        )
        summed: dict = {}
        for key, gradients in slices.items():
            for gradient, size in zip(gradients, self._sizes[key]):
                if gradient is not None:
                    add_slices(summed, {key: (gradient, size)})
        return values, summed


def variable_slice(variable: Any, *channels: Any) -> tf.Tensor:
    """Returns the first channels of the last axes of a variable (Eq. 2 of the paper).

    Layers must slice their variables by this function: it records the slice on the current
    `SliceTape`.

    Args:
        variable: A `keras.Variable`.
        *channels: As in `first_channels`.
    """
    tape = _current.get()
    if tape is None:
        return first_channels(tf.convert_to_tensor(variable), *channels)
    return tape.take(variable, channels)


def add_slices(total: dict, gradients: dict, ascending: bool = False) -> None:
    """Adds gradients of slices to `total` in place. A sum has the larger size on each axis.

    Args:
        total: Dict of the sums so far, as returned by `SliceTape.gradient`.
        gradients: Dict of the gradients to add.
        ascending: Bool, whether no axis of a gradient is smaller than that of its sum. This saves
            operations.
    """
    for key, (gradient, size) in gradients.items():
        if key in total:
            old, old_size = total[key]
            if not ascending:
                size = [_larger(a, b) for a, b in zip(old_size, size)]
                gradient = _grow(gradient, gradients[key][1], size)
            gradient += _grow(old, old_size, size)
        total[key] = gradient, size


def whole_gradient(total: dict, variable: Any) -> tf.Tensor:
    """Returns the gradient of a whole variable, with zeros outside the slices.

    Args:
        total: Dict of gradients, as returned by `SliceTape.gradient`.
        variable: A `keras.Variable`.

    Raises:
        ValueError: If no layer used a slice of the variable.
    """
    if id(variable) not in total:
        raise ValueError(
            f"No sliced layer used the variable '{variable.path}', so it has no gradient: "
            "a layer must slice its variables with `variable_slice`."
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
    """Pads with zeros at the end. Equal sizes make equal operations, which TensorFlow merges."""
    if all(map(_is_same, size, new_size)):
        return tensor
    return tf.pad(tensor, [[0, new - old] for old, new in zip(size, new_size)])
