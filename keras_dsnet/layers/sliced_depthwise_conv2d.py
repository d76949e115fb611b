"""A depthwise convolution that runs with any of its channel options."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_dsnet.layers.sliced_conv2d import check_padding, padded_size, tf_padding
from keras_dsnet.layers.slicing import (
    as_options,
    channels_at,
    check_channels,
    resolve_width,
    variable_slice,
)
from keras_dsnet.utils.argument_checks import check_int


@keras.saving.register_keras_serializable(package="keras_dsnet")
class SlicedDepthwiseConv2D(keras.layers.Layer):
    """2D depthwise convolution whose kernels are sliced (Eq. 2 of the paper, channel by channel).

    Args:
        channels: Int or tuple of ints in ascending order, channel options of input and output.
        kernel_size: Int, height and width of the kernel.
        strides: Int.
        padding: "symmetric" (`kernel_size // 2` on both sides, as in PyTorch), "same" or "valid".
        use_bias: Bool, whether the layer has a bias.
        depthwise_initializer: Keras initializer. Defaults to `depthwise_he_normal(kernel_size)`.
        bias_initializer: Keras initializer.
        **kwargs: Further arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: `[batch, height, width, channels[width]]`.
        width: Python int or int32 scalar tensor, index into `channels`.

    Returns:
        `[batch, new_height, new_width, channels[width]]`.

    Raises:
        ValueError: If an argument is not one of these, the layer does not have the width, or the
            input has another number of channels or is no batch of images.

    Example:

    ```python
    import numpy as np
    from keras_dsnet.layers import SlicedDepthwiseConv2D

    layer = SlicedDepthwiseConv2D((8, 16), kernel_size=3, strides=2)
    layer.build((None, 6, 6, 16))
    assert layer(np.ones((1, 6, 6, 8), "float32"), width=0).shape == (1, 3, 3, 8)
    ```
    """

    def __init__(
        self,
        channels: int | Sequence[int],
        kernel_size: int,
        strides: int = 1,
        padding: str = "symmetric",
        use_bias: bool = False,
        depthwise_initializer: Any = None,
        bias_initializer: Any = "zeros",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_padding(padding)
        self.channels = as_options(channels, "channels")
        self.kernel_size = check_int("kernel_size", kernel_size, 1)
        self.strides = check_int("strides", strides, 1)
        self.input_spec = keras.layers.InputSpec(ndim=4)
        self.padding = padding
        self.use_bias = use_bias
        self.depthwise_initializer = keras.initializers.get(
            depthwise_initializer or depthwise_he_normal(kernel_size)
        )
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.supports_jit = len(self.channels) == 1

    def build(self, input_shape):
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.kernel_size, self.kernel_size, self.channels[-1], 1),
            initializer=self.depthwise_initializer,
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias", shape=(self.channels[-1],), initializer=self.bias_initializer
            )

    def call(self, inputs, width=None):
        width = resolve_width(width, len(self.channels), self.name)
        channels = channels_at(self.channels, width)
        check_channels(inputs, channels, width, self.name)
        kernel = variable_slice(self.kernel, channels, 1)
        padding = self._padding(inputs.shape)
        strides = (1, self.strides, self.strides, 1)
        outputs = tf.nn.depthwise_conv2d(inputs, kernel, strides, padding)
        if self.bias is not None:
            outputs += variable_slice(self.bias, channels)
        return outputs

    def _padding(self, shape):
        padding = tf_padding(self.padding, self.kernel_size, self.strides)
        small = None not in shape[1:3] and max(shape[1:3]) < self.kernel_size
        if padding == "SAME" and self.strides == 1 and self.kernel_size % 2 and small:
            # If the features are smaller than the kernel, the filter gradient of oneDNN is many
            # times slower than TensorFlow's, which explicit padding selects.
            pad = [self.kernel_size // 2] * 2
            return [[0, 0], pad, pad, [0, 0]]
        return padding

    def compute_output_spec(self, inputs, width=None):
        resolve_width(width, len(self.channels), self.name)
        shape = self.compute_output_shape(inputs.shape, width)
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def compute_output_shape(self, input_shape, width=None):
        sizes = [
            padded_size(size, self.padding, self.kernel_size, self.strides)
            for size in input_shape[1:3]
        ]
        return (input_shape[0], *sizes, input_shape[3])

    def get_config(self) -> dict:
        config = super().get_config()
        config.update(
            channels=self.channels,
            kernel_size=self.kernel_size,
            strides=self.strides,
            padding=self.padding,
            use_bias=self.use_bias,
            depthwise_initializer=keras.initializers.serialize(self.depthwise_initializer),
            bias_initializer=keras.initializers.serialize(self.bias_initializer),
        )
        return config


def depthwise_he_normal(kernel_size: int) -> keras.initializers.Initializer:
    """Returns a He initializer for filters with one input channel.

    Keras computes the fan of a kernel `[size, size, channels, 1]` from all its channels, so that
    the initial values of a depthwise kernel would be far too small.
    """
    stddev = (2.0 / kernel_size**2) ** 0.5
    return keras.initializers.TruncatedNormal(stddev=stddev / 0.87962566103423978)
