"""A convolution that runs with any of its channel options."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_dsnet.layers.slicing import (
    as_options,
    channels_at,
    channels_of,
    resolve_width,
    static_channels,
    variable_slice,
)
from keras_dsnet.utils.argument_checks import check_int


@keras.saving.register_keras_serializable(package="keras_dsnet")
class SlicedConv2D(keras.layers.Layer):
    """2D convolution whose filters are sliced: `W[:rho * N] * X`, Eq. 2 of the paper.

    The layer holds the full kernel once. A call uses the first `filters[width]` filters and as many
    input channels as its input has.

    Args:
        filters: Int or tuple of ints in ascending order, channel options of the output. A single
            option makes the output static.
        kernel_size: Int, height and width of the kernel.
        strides: Int.
        padding: "symmetric" (`kernel_size // 2` on both sides, as in PyTorch), "same" or "valid".
        use_bias: Bool, whether the layer has a bias.
        input_channels: Int, maximum number of channels of an input. Defaults to the channels of the
            first input, which must then be the widest.
        kernel_initializer: Keras initializer.
        bias_initializer: Keras initializer.
        **kwargs: Further arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: `[batch, height, width, channels]`.
        width: Python int or int32 scalar tensor, index into `filters`.

    Returns:
        `[batch, new_height, new_width, filters[width]]`.

    Raises:
        ValueError: If an argument is not one of these, the layer does not have the width, or the
            input has too many channels or is no batch of images.

    Example:

    ```python
    import numpy as np
    from keras_dsnet.layers import SlicedConv2D

    layer = SlicedConv2D((8, 16, 24), kernel_size=3, input_channels=4)
    outputs = layer(np.ones((1, 5, 5, 2), "float32"), width=1)
    assert outputs.shape == (1, 5, 5, 16)
    ```
    """

    def __init__(
        self,
        filters: int | Sequence[int],
        kernel_size: int,
        strides: int = 1,
        padding: str = "symmetric",
        use_bias: bool = False,
        input_channels: int | None = None,
        kernel_initializer: Any = "he_normal",
        bias_initializer: Any = "zeros",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_padding(padding)
        self.filters = as_options(filters, "filters")
        self.kernel_size = check_int("kernel_size", kernel_size, 1)
        self.strides = check_int("strides", strides, 1)
        self.padding = padding
        self.use_bias = use_bias
        if input_channels is not None:
            input_channels = check_int("input_channels", input_channels, 1)
        self.input_channels = input_channels
        self.input_spec = keras.layers.InputSpec(ndim=4)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.supports_jit = len(self.filters) == 1

    def build(self, input_shape):
        channels = self.input_channels or input_shape[-1]
        if channels is None:
            raise ValueError(
                f"Layer '{self.name}' needs `input_channels`: the channels of its input are open. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.kernel_size, self.kernel_size, channels, self.filters[-1]),
            initializer=self.kernel_initializer,
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias", shape=(self.filters[-1],), initializer=self.bias_initializer
            )

    def call(self, inputs, width=None):
        width = resolve_width(width, len(self.filters), self.name)
        out_channels = channels_at(self.filters, width)
        in_channels = channels_of(inputs)
        if isinstance(in_channels, int) and in_channels > self.kernel.shape[2]:
            raise ValueError(
                f"Layer '{self.name}' takes at most {self.kernel.shape[2]} input channels. "
                f"Received: inputs.shape={tuple(inputs.shape)}"
            )
        kernel = variable_slice(self.kernel, in_channels, out_channels)
        if self.kernel_size == self.strides == 1:
            outputs = pointwise(inputs, kernel)
        else:
            padding = tf_padding(self.padding, self.kernel_size, self.strides)
            outputs = tf.nn.conv2d(inputs, kernel, self.strides, padding)
        if self.bias is not None:
            outputs += variable_slice(self.bias, out_channels)
        return outputs

    def compute_output_spec(self, inputs, width=None):
        resolve_width(width, len(self.filters), self.name)
        shape = self.compute_output_shape(inputs.shape, width)
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def compute_output_shape(self, input_shape, width=None):
        sizes = [
            padded_size(size, self.padding, self.kernel_size, self.strides)
            for size in input_shape[1:3]
        ]
        return (input_shape[0], *sizes, static_channels(self.filters, width, self.name))

    def get_config(self) -> dict:
        config = super().get_config()
        config.update(
            filters=self.filters,
            kernel_size=self.kernel_size,
            strides=self.strides,
            padding=self.padding,
            use_bias=self.use_bias,
            input_channels=self.input_channels,
            kernel_initializer=keras.initializers.serialize(self.kernel_initializer),
            bias_initializer=keras.initializers.serialize(self.bias_initializer),
        )
        return config


def tf_padding(padding: str, kernel_size: int, strides: int) -> Any:
    """Returns the `padding` argument of TensorFlow's convolutions.

    "symmetric" pads `kernel_size // 2` on both sides at every stride, as PyTorch does. TensorFlow's
    "SAME" pads only one side at stride 2. If both agree, "SAME" is faster.
    """
    if padding != "symmetric":
        return padding.upper()
    if strides == 1 and kernel_size % 2:
        return "SAME"
    pad = [kernel_size // 2] * 2
    return [[0, 0], pad, pad, [0, 0]]


def pointwise(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Computes a 1x1 convolution as a matrix product, whose gradients are faster on a CPU."""
    channels = [static or size for static, size in zip(kernel.shape, tf.unstack(tf.shape(kernel)))]
    outputs = tf.matmul(tf.reshape(inputs, (-1, channels[2])), tf.reshape(kernel, channels[2:]))
    sizes = [static or size for static, size in zip(inputs.shape[:3], tf.unstack(tf.shape(inputs)))]
    return tf.reshape(outputs, (*sizes, channels[3]))


def check_padding(padding: str) -> None:
    """Raises a ValueError if the sliced convolutions do not support `padding`."""
    if padding not in ("symmetric", "same", "valid"):
        raise ValueError(
            f"`padding` must be 'symmetric', 'same' or 'valid'. Received: padding={padding!r}"
        )


def padded_size(size: int | None, padding: str, kernel_size: int, strides: int) -> int | None:
    """Returns the output height or width of a convolution. None stays None."""
    if size is None:
        return None
    if padding == "same":
        return -(-size // strides)
    padded = size + (2 * (kernel_size // 2) if padding == "symmetric" else 0)
    return (padded - kernel_size) // strides + 1
