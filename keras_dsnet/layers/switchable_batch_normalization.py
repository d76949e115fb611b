"""Batch normalisation with statistics of its own for every width."""

import keras
import tensorflow as tf

from keras_dsnet.layers.channel_options import (
    as_options,
    channels_at,
    first_channels,
    resolve_width,
)
from keras_dsnet.layers.slice_tape import variable_slice


@keras.saving.register_keras_serializable(package="keras_dsnet")
class SwitchableBatchNormalization(keras.layers.Layer):
    """Batch normalisation: one `gamma` and `beta`, moving statistics per width.

    A sub-network of another width sees another distribution, so moving averages cannot be shared
    between widths (slimmable networks, ref. 74 of the paper), while scale and offset can.

    Args:
        channels: int, or ascending tuple of ints: the channel options.
        num_statistics: int or None: rows of moving statistics; None: one per channel option. More
            rows than options give further paths through the same channels statistics of their own.
        momentum: float: `moving = momentum * moving + (1 - momentum) * batch`.
        epsilon: float.
        synchronized: bool: batch statistics over all replicas of a `tf.distribute` strategy.
            Replicas equal one device with the same global batch only so.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        inputs: `[batch, height, width, channels[width]]`.
        width: Python int or int32 scalar tensor: the index into `channels`.
        training: bool: normalise with the batch's statistics and update the moving ones. The moving
            variance takes the unbiased variance of the batch.
        statistics: the row of moving statistics; None: `width`.
        momentum: float or scalar tensor for this call alone; None: the layer's.

    Returns:
        A tensor of the shape of `inputs`.

    Raises:
        ValueError: on a width that the layer does not have.
    """

    def __init__(
        self,
        channels,
        num_statistics=None,
        momentum=0.9,
        epsilon=1e-5,
        synchronized=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.channels = as_options(channels, "channels")
        self.num_statistics = num_statistics or len(self.channels)
        self.momentum = momentum
        self.epsilon = epsilon
        self.synchronized = synchronized
        self.supports_jit = len(self.channels) == 1

    def build(self, input_shape):
        vector, table = (self.channels[-1],), (self.num_statistics, self.channels[-1])
        self.gamma = self._add("gamma", vector, "ones", trainable=True)
        self.beta = self._add("beta", vector, "zeros", trainable=True)
        self.moving_mean = self._add("moving_mean", table, "zeros", trainable=False)
        self.moving_variance = self._add("moving_variance", table, "ones", trainable=False)

    def _add(self, name, shape, initializer, trainable):
        # Without aggregation="mean" the moving statistics of replicas drift apart.
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=initializer,
            trainable=trainable,
            aggregation="mean",
            autocast=False,
        )

    def call(self, inputs, width=None, training=False, statistics=None, momentum=None):
        width = resolve_width(width, len(self.channels), self.name)
        row = width if statistics is None else statistics
        row = resolve_width(row, self.num_statistics, self.name)
        channels = channels_at(self.channels, width)
        gamma, beta = self.scale_and_offset(channels)
        if not training or not self.trainable:
            mean, variance = self.statistics_at(row, channels)
            return self._normalize(inputs, gamma, beta, mean, variance)
        if self.synchronized:
            outputs, mean, variance = self._synchronized(inputs, gamma, beta)
        else:
            outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
                x=inputs,
                scale=gamma,
                offset=beta,
                mean=[],
                variance=[],
                epsilon=self.epsilon,
                is_training=True,
            )
        momentum = self.momentum if momentum is None else momentum
        self._update(self.moving_mean, row, channels, mean, momentum)
        self._update(self.moving_variance, row, channels, variance, momentum)
        return outputs

    def scale_and_offset(self, channels):
        """Returns the first `channels` entries of `gamma` and `beta`, float32."""
        return (
            variable_slice(self.gamma, channels),
            variable_slice(self.beta, channels),
        )

    def statistics_at(self, row, channels):
        """Returns moving mean and variance of one row, or of a vector of rows, float32."""
        return tuple(
            first_channels(tf.gather(tf.convert_to_tensor(table), row), channels)
            for table in (self.moving_mean, self.moving_variance)
        )

    def _normalize(self, inputs, gamma, beta, mean, variance):
        outputs, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=gamma,
            offset=beta,
            mean=mean,
            variance=variance,
            epsilon=self.epsilon,
            is_training=False,
        )
        return outputs

    def _synchronized(self, inputs, gamma, beta):
        values = tf.cast(inputs, tf.float32)
        count = tf.cast(tf.size(values[..., 0]), tf.float32)
        sums = tf.reduce_sum(values, (0, 1, 2)), tf.reduce_sum(values**2, (0, 1, 2))
        replicas = tf.distribute.get_replica_context()
        if replicas is not None and replicas.num_replicas_in_sync > 1:
            count, *sums = replicas.all_reduce("SUM", [count, *sums])
        mean = sums[0] / count
        variance = tf.maximum(sums[1] / count - mean**2, 0.0)
        outputs = tf.nn.batch_normalization(values, mean, variance, beta, gamma, self.epsilon)
        unbiased = variance * count / tf.maximum(count - 1.0, 1.0)
        return tf.cast(outputs, inputs.dtype), mean, unbiased

    def _update(self, table, row, channels, batch, momentum):
        if isinstance(table.value, tf.Variable) and not _has_replicas():
            # Only one row is read and written.
            old = first_channels(table.value.sparse_read(row), channels)
            change = (old - tf.stop_gradient(batch)) * (1.0 - momentum)
            change = tf.pad(change, [[0, table.shape[1] - channels]])
            table.value.scatter_sub(tf.IndexedSlices(change, row))
            return
        value = tf.convert_to_tensor(table)
        old = first_channels(tf.gather(value, row), channels)
        new = old * momentum + tf.stop_gradient(batch) * (1.0 - momentum)
        rest = tf.gather(value, row)[channels:]
        table.assign(tf.tensor_scatter_nd_update(value, [[row]], [tf.concat([new, rest], 0)]))

    def compute_output_shape(self, input_shape, **kwargs):
        return input_shape

    def get_config(self):
        config = super().get_config()
        config.update(
            channels=self.channels,
            num_statistics=self.num_statistics,
            momentum=self.momentum,
            epsilon=self.epsilon,
            synchronized=self.synchronized,
        )
        return config


def _has_replicas():
    return tf.distribute.get_strategy().num_replicas_in_sync > 1
