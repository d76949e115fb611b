"""Group normalisation whose number of groups grows with the width."""

import keras
import tensorflow as tf

from keras_dsnet.layers.slicing import as_options, channels_at, resolve_width, variable_slice


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
        training: bool: whether a gradient will be asked for; changes speed alone.

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

    def call(self, inputs, width=None, training=False):
        width = resolve_width(width, len(self.channels), self.name)
        channels = channels_at(self.channels, width)
        # Statistics of float16 activations overflow, so they are taken in float32 at least.
        dtype = keras.backend.result_type(inputs.dtype, "float32")
        values = tf.cast(inputs, dtype)
        gamma = tf.cast(variable_slice(self.gamma, channels), dtype)
        beta = tf.cast(variable_slice(self.beta, channels), dtype)

        def normalized(*arguments):
            return _normalized(*arguments, self.channels_per_group, self.epsilon)

        if training:
            outputs = tf.custom_gradient(normalized)(values, gamma, beta)
        else:
            # An exported graph has no use for what a gradient of one's own leaves in it.
            outputs, _ = normalized(values, gamma, beta)
        return tf.cast(tf.ensure_shape(outputs, inputs.shape), inputs.dtype)

    def compute_output_spec(self, inputs, width=None, training=False):
        resolve_width(width, len(self.channels), self.name)
        shape = self.compute_output_shape(inputs.shape, width)
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

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


def _normalized(x, gamma, beta, group_size, epsilon):
    """Returns the normalised `x`, and a function from their gradient to those by `x`, gamma, beta.

    A group's moments come from those of its channels: nothing as large as the input is cut into
    groups, which takes half the time on a CPU. The gradient, with the same means of channels, takes
    fewer passes over memory than the one that TensorFlow would find.
    """
    channels = tf.shape(x)[3]
    rows = tf.stack([-1, 1, 1, channels])
    groups = tf.stack([-1, channels // group_size, group_size])
    means, variances = (tf.reshape(m, groups) for m in tf.nn.moments(x, (1, 2)))
    mean = _group_mean(means)
    variance = _group_mean(variances + tf.math.squared_difference(means, mean))
    slope = tf.math.rsqrt(variance + epsilon)
    weights = tf.reshape(gamma, groups)
    scale = slope * weights
    offset = tf.reshape(beta, groups) - mean * scale
    outputs = x * tf.reshape(scale, rows) + tf.reshape(offset, rows)

    def gradient(outer):
        # Means over the pixels: of the gradient, and of its product with the normalised input.
        plain = tf.reshape(tf.reduce_mean(outer, (1, 2)), groups)
        product = tf.reshape(tf.reduce_mean(outer * x, (1, 2)), groups)
        product = slope * (product - mean * plain)
        by_x = -tf.square(slope) * _group_mean(weights * product)
        constant = -slope * _group_mean(weights * plain) - by_x * mean
        by_x, constant = (tf.reshape(v + tf.zeros_like(scale), rows) for v in (by_x, constant))
        inner = outer * tf.reshape(scale, rows) + (x * by_x + constant)
        pixels = tf.cast(tf.shape(x)[1] * tf.shape(x)[2], x.dtype)
        return inner, *(pixels * tf.reshape(tf.reduce_sum(v, 0), [-1]) for v in (product, plain))

    return outputs, gradient


def _group_mean(values):
    return tf.reduce_mean(values, 2, keepdims=True)
