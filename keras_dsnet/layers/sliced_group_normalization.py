"""Group normalisation whose number of groups grows with the width."""

import keras
import tensorflow as tf

from keras_dsnet.layers.channel_options import (
    as_options,
    channels_at,
    resolve_width,
)
from keras_dsnet.layers.slice_tape import variable_slice


@keras.saving.register_keras_serializable(package="keras_dsnet")
class SlicedGroupNormalization(keras.layers.Layer):
    """Group normalisation with a constant number of channels per group.

    The groups of a narrow path are then the first groups of a wide one (Sec. 4 and appendix A,
    "Equispaced channel group", of the paper).

    Args:
        channels: int, or ascending tuple of ints: the channel options.
        channels_per_group: int that divides every channel option.
        epsilon: float.
        gamma_initializer: Keras initializer; "zeros" for the last norm of a residual branch.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        inputs: `[batch, height, width, channels[width]]`.
        width: Python int or int32 scalar tensor: the index into `channels`.

    Returns:
        A tensor of the shape of `inputs`.

    Raises:
        ValueError: on a width that the layer does not have, or a channel option that
            `channels_per_group` does not divide.
    """

    def __init__(
        self, channels, channels_per_group, epsilon=1e-5, gamma_initializer="ones", **kwargs
    ):
        super().__init__(**kwargs)
        self.channels = as_options(channels, "channels")
        self.channels_per_group = channels_per_group
        self.epsilon = epsilon
        self.gamma_initializer = keras.initializers.get(gamma_initializer)
        self.supports_jit = len(self.channels) == 1
        if channels_per_group < 1 or any(c % channels_per_group for c in self.channels):
            raise ValueError(
                f"`channels_per_group` must divide every channel option {self.channels}. "
                f"Received: channels_per_group={channels_per_group}"
            )

    def build(self, input_shape):
        shape = (self.channels[-1],)
        self.gamma = self.add_weight(
            name="gamma", shape=shape, initializer=self.gamma_initializer, autocast=False
        )
        self.beta = self.add_weight(name="beta", shape=shape, initializer="zeros", autocast=False)

    def call(self, inputs, width=None):
        width = resolve_width(width, len(self.channels), self.name)
        channels = channels_at(self.channels, width)
        # Statistics of float16 activations overflow, so they are taken in float32.
        values = tf.cast(inputs, tf.float32)
        gamma = variable_slice(self.gamma, channels)
        beta = variable_slice(self.beta, channels)
        scale, offset = self._scale_and_offset(values, gamma, beta)
        outputs = tf.ensure_shape(values * scale + offset, inputs.shape)
        return tf.cast(outputs, inputs.dtype)

    def _scale_and_offset(self, values, gamma, beta):
        """Returns what normalises: `[batch, 1, 1, channels]` each.

        A group's moments come from those of its channels: nothing as large as the input is cut into
        groups, which takes half the time on a CPU.
        """
        rows = tf.stack([-1, 1, 1, tf.shape(values)[3]])
        groups = tf.stack([-1, rows[3] // self.channels_per_group, self.channels_per_group])
        mean, variance = (tf.reshape(m, groups) for m in tf.nn.moments(values, (1, 2)))
        group_mean = tf.reduce_mean(mean, 2, keepdims=True)
        spread = tf.math.squared_difference(mean, group_mean)
        group_variance = tf.reduce_mean(variance + spread, 2, keepdims=True)
        scale = tf.math.rsqrt(group_variance + self.epsilon) * tf.reshape(gamma, groups)
        offset = tf.reshape(beta, groups) - group_mean * scale
        return tf.reshape(scale, rows), tf.reshape(offset, rows)

    def compute_output_shape(self, input_shape, width=None):
        return input_shape

    def get_config(self):
        config = super().get_config()
        config.update(
            channels=self.channels,
            channels_per_group=self.channels_per_group,
            epsilon=self.epsilon,
            gamma_initializer=keras.initializers.serialize(self.gamma_initializer),
        )
        return config
