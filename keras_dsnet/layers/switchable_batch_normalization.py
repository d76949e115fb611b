"""Batch normalisation with separate statistics for every width."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_dsnet.layers.slicing import (
    as_options,
    channels_at,
    check_channels,
    first_channels,
    resolve_width,
    variable_slice,
)
from keras_dsnet.utils.argument_checks import check_int, check_number


@keras.saving.register_keras_serializable(package="keras_dsnet")
class SwitchableBatchNormalization(keras.layers.Layer):
    """Batch normalisation with one `gamma` and `beta`, and moving statistics per width.

    The distribution of activations differs between widths. Moving averages can therefore not be
    shared between widths (slimmable networks, ref. 74 of the paper), while scale and offset can.

    Args:
        channels: Int or tuple of ints in ascending order, the channel options.
        num_statistics: Int, number of rows of moving statistics. Additional rows give separate
            statistics to further paths through the same channels. Defaults to one row per channel
            option.
        momentum: Float: `moving = momentum * moving + (1 - momentum) * batch`.
        epsilon: Float, added to the variance.
        synchronized: Bool, whether batch statistics are computed over all replicas of a
            `tf.distribute` strategy. Required for several replicas to match one device at the same
            global batch size.
        gamma_initializer: Keras initializer. Use "zeros" for the last norm of a residual branch.
        **kwargs: Further arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: `[batch, height, width, channels[width]]`.
        width: Python int or int32 scalar tensor, index into `channels`.
        training: Bool, whether to normalise with the statistics of the batch and to update the
            moving statistics. The moving variance uses the unbiased variance of the batch.
        statistics: Python int or int32 scalar tensor, row of the moving statistics. Defaults to
            `width`.
        momentum: Float or scalar tensor, momentum of this call. Defaults to the layer's.

    Returns:
        A tensor of the shape of `inputs`.

    Raises:
        ValueError: If an argument is not one of these, the layer does not have the width, or the
            input has another number of channels.

    Example:

    ```python
    import numpy as np
    from keras_dsnet.layers import SwitchableBatchNormalization

    layer = SwitchableBatchNormalization((8, 16))
    layer.build((None, 3, 3, 16))
    assert layer(np.ones((2, 3, 3, 8), "float32"), width=0).shape == (2, 3, 3, 8)
    assert layer.moving_mean.shape == (2, 16)
    ```
    """

    def __init__(
        self,
        channels: int | Sequence[int],
        num_statistics: int | None = None,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        synchronized: bool = False,
        gamma_initializer: Any = "ones",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.channels = as_options(channels, "channels")
        self.input_spec = keras.layers.InputSpec(ndim=4)
        if num_statistics is None:
            num_statistics = len(self.channels)
        self.num_statistics = check_int("num_statistics", num_statistics, 1)
        self.momentum = check_number("momentum", momentum, "from 0 to 1", lambda m: 0 <= m <= 1)
        self.epsilon = epsilon
        self.synchronized = synchronized
        self.gamma_initializer = keras.initializers.get(gamma_initializer)
        self.supports_jit = len(self.channels) == 1

    def build(self, input_shape):
        vector, table = (self.channels[-1],), (self.num_statistics, self.channels[-1])
        self.gamma = self._add("gamma", vector, self.gamma_initializer)
        self.beta = self._add("beta", vector, "zeros")
        self.moving_mean = self._add("moving_mean", table, "zeros", moving=True)
        self.moving_variance = self._add("moving_variance", table, "ones", moving=True)

    def _add(self, name, shape, initializer, moving=False):
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=initializer,
            trainable=not moving,
            # "mean" would send the statistics of all widths in every update, a table at a time.
            # `_update_statistics` keeps those of the replicas equal by sending a row, or nothing.
            aggregation="none" if moving else "mean",
            autocast=False,
        )

    def __call__(self, inputs, *args, momentum=None, **kwargs):
        if tf.is_tensor(momentum):
            # Keras would cast a tensor to the dtype of the inputs. It leaves a function unchanged,
            # and `call` calls it.
            kwargs["momentum"] = lambda: momentum
        elif momentum is not None:
            kwargs["momentum"] = momentum
        return super().__call__(inputs, *args, **kwargs)

    def call(self, inputs, width=None, training=False, statistics=None, momentum=None):
        width = resolve_width(width, len(self.channels), self.name)
        row = width if statistics is None else statistics
        row = resolve_width(row, self.num_statistics, self.name)
        channels = channels_at(self.channels, width)
        check_channels(inputs, channels, width, self.name)
        gamma, beta = self.scale_and_offset(channels)
        if not training or not self.trainable:
            mean, variance = self.statistics_at(row, channels)
            return self._normalize(inputs, gamma, beta, mean, variance)
        if callable(momentum):
            momentum = tf.cast(momentum(), self.gamma.dtype)
        momentum = self.momentum if momentum is None else momentum
        old = self.statistics_at(row, channels)
        if self.synchronized or inputs.dtype == tf.float64:
            outputs, *new = self._normalize_by_sums(inputs, gamma, beta, old, momentum)
        else:
            outputs, *new = self._batch_normalize(inputs, gamma, beta, old, momentum)
        self._update_statistics(row, channels, [tf.stop_gradient(moving) for moving in new])
        return outputs

    def scale_and_offset(self, channels: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the first `channels` entries of `gamma` and `beta`, float32 `[channels]`."""
        return (
            variable_slice(self.gamma, channels),
            variable_slice(self.beta, channels),
        )

    def statistics_at(self, row: Any, channels: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the moving mean and variance of a row or of a vector of rows.

        Args:
            row: Int, int32 scalar tensor, or int32 tensor `[rows]`.
            channels: Int or int32 scalar tensor.

        Returns:
            float32 `[channels]` or `[rows, channels]`, each.
        """
        tables = map(tf.convert_to_tensor, (self.moving_mean, self.moving_variance))
        if isinstance(row, int) or row.shape.rank == 0:
            return tuple(table[row, :channels] for table in tables)
        return tuple(first_channels(tf.gather(table, row), channels) for table in tables)

    def _normalize(self, inputs, gamma, beta, mean, variance):
        if inputs.dtype == tf.float64:
            return tf.nn.batch_normalization(inputs, mean, variance, beta, gamma, self.epsilon)
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

    def _batch_normalize(self, inputs, gamma, beta, moving, momentum):
        fused = isinstance(momentum, float) and momentum > 0
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=gamma,
            offset=beta,
            mean=moving[0] if fused else [],
            variance=moving[1] if fused else [],
            epsilon=self.epsilon,
            exponential_avg_factor=1.0 - momentum if fused else 1.0,
            is_training=True,
        )
        new = (mean, variance)
        return outputs, *(new if fused else _average(moving, new, momentum))

    def _normalize_by_sums(self, inputs, gamma, beta, moving, momentum):
        # TensorFlow's fused kernel supports neither replicas nor float64.
        values = tf.cast(inputs, gamma.dtype)
        count = tf.cast(tf.size(values[..., 0]), gamma.dtype)
        sums = tf.reduce_sum(values, (0, 1, 2)), tf.reduce_sum(values**2, (0, 1, 2))
        if self.synchronized:
            count, *sums = _over_replicas("SUM", [count, *sums])
        mean = sums[0] / count
        variance = tf.maximum(sums[1] / count - mean**2, 0.0)
        outputs = tf.nn.batch_normalization(values, mean, variance, beta, gamma, self.epsilon)
        unbiased = variance * count / tf.maximum(count - 1.0, 1.0)
        return tf.cast(outputs, inputs.dtype), *_average(moving, (mean, unbiased), momentum)

    def _update_statistics(self, row, channels, new):
        if not self.synchronized:
            # Synchronized, every replica has computed the same.
            new = _over_replicas("MEAN", new)
        for table, moving in zip((self.moving_mean, self.moving_variance), new, strict=True):
            self._assign(table, row, channels, moving)

    def _assign(self, table, row, channels, moving):
        if isinstance(table.value, tf.Variable) and not _has_replicas(table.value):
            table.value[row, :channels].assign(moving)
            return
        value = tf.convert_to_tensor(table)
        new = tf.concat([moving, value[row, channels:]], 0)
        table.assign(tf.tensor_scatter_nd_update(value, [[row]], [new]))

    def compute_output_spec(self, inputs, width=None, **kwargs):
        resolve_width(width, len(self.channels), self.name)
        shape = self.compute_output_shape(inputs.shape, width)
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def compute_output_shape(self, input_shape, width=None):
        return input_shape

    def get_config(self) -> dict:
        config = super().get_config()
        config.update(
            channels=self.channels,
            num_statistics=self.num_statistics,
            momentum=self.momentum,
            epsilon=self.epsilon,
            synchronized=self.synchronized,
            gamma_initializer=keras.initializers.serialize(self.gamma_initializer),
        )
        return config


def _average(moving, batch, momentum):
    return [old * momentum + new * (1.0 - momentum) for old, new in zip(moving, batch)]


def _over_replicas(operation, tensors):
    """Returns the sums or means of tensors over the replicas, in one message for all of them."""
    replicas = tf.distribute.get_replica_context()
    if replicas is None or replicas.num_replicas_in_sync == 1:
        return tensors
    return replicas.all_reduce(operation, tensors)


def _has_replicas(variable):
    # The strategy of the variable may not be the current one. Outside its scope a slice would be
    # assigned on only one replica.
    mirrored = isinstance(variable, tf.distribute.DistributedValues)
    return mirrored and variable.distribute_strategy.num_replicas_in_sync > 1
