"""A fully connected layer that runs with any of its channel options."""

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
class SlicedDense(keras.layers.Layer):
    """Fully connected layer whose matrix is sliced on both sides, Eq. 2 of the paper.

    Args:
        units: Int or tuple of ints in ascending order, channel options of the output. A single
            option makes the output static, as in the classifier of a slimmable network.
        use_bias: Bool, whether the layer has a bias.
        input_channels: Int, maximum number of channels of an input. Defaults to the channels of the
            first input, which must then be the widest.
        kernel_initializer: Keras initializer.
        bias_initializer: Keras initializer.
        **kwargs: Further arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: `[batch, channels]`.
        width: Python int or int32 scalar tensor, index into `units`.

    Returns:
        `[batch, units[width]]`.

    Raises:
        ValueError: If the layer does not have the width, or the input has too many channels.

    Example:

    ```python
    import numpy as np
    from keras_dsnet.layers import SlicedDense

    layer = SlicedDense((2, 4), input_channels=8)
    assert layer(np.ones((1, 6), "float32"), width=0).shape == (1, 2)
    ```
    """

    def __init__(
        self,
        units: int | Sequence[int],
        use_bias: bool = True,
        input_channels: int | None = None,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.units = as_options(units, "units")
        self.use_bias = use_bias
        if input_channels is not None:
            input_channels = check_int("input_channels", input_channels, 1)
        self.input_channels = input_channels
        self.input_spec = keras.layers.InputSpec(min_ndim=2)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.supports_jit = len(self.units) == 1

    def build(self, input_shape):
        channels = self.input_channels or input_shape[-1]
        if channels is None:
            raise ValueError(
                f"Layer '{self.name}' needs `input_channels`: the channels of its input are open. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        self.kernel = self.add_weight(
            name="kernel",
            shape=(channels, self.units[-1]),
            initializer=self.kernel_initializer,
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias", shape=(self.units[-1],), initializer=self.bias_initializer
            )

    def call(self, inputs, width=None):
        width = resolve_width(width, len(self.units), self.name)
        units = channels_at(self.units, width)
        in_channels = channels_of(inputs)
        if isinstance(in_channels, int) and in_channels > self.kernel.shape[0]:
            raise ValueError(
                f"Layer '{self.name}' takes at most {self.kernel.shape[0]} input channels. "
                f"Received: inputs.shape={tuple(inputs.shape)}"
            )
        kernel = variable_slice(self.kernel, in_channels, units)
        outputs = tf.matmul(inputs, kernel)
        if self.bias is not None:
            outputs += variable_slice(self.bias, units)
        return outputs

    def compute_output_spec(self, inputs, width=None):
        resolve_width(width, len(self.units), self.name)
        shape = self.compute_output_shape(inputs.shape, width)
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def compute_output_shape(self, input_shape, width=None):
        return (*input_shape[:-1], static_channels(self.units, width, self.name))

    def get_config(self) -> dict:
        config = super().get_config()
        config.update(
            units=self.units,
            use_bias=self.use_bias,
            input_channels=self.input_channels,
            kernel_initializer=keras.initializers.serialize(self.kernel_initializer),
            bias_initializer=keras.initializers.serialize(self.bias_initializer),
        )
        return config
