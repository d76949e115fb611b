"""A sub-network as a plain Keras model of stock layers."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_dsnet.layers.slicing import option_at
from keras_dsnet.models.executors import resize
from keras_dsnet.models.path import Path
from keras_dsnet.models.topology import Executor, Step

# A plain sub-network is for every runtime, so it does not depend on the dtype policy of the network
# or of Keras, nor on Keras's global data format.
DTYPE = "float32"
FORMAT = "channels_last"


def plain_subnetwork(network: Any, path: Path, fold_batch_norm: bool = False) -> keras.Model:
    """Returns one sub-network as a functional Keras model with a copy of the weights.

    Args:
        network: A `DynamicSlimmableNetwork`.
        path: A `Path` of Python ints.
        fold_batch_norm: Bool, whether batch normalisation is folded into the kernels and biases of
            the convolutions before it.

    Returns:
        A `keras.Model` of stock layers, which saves and loads without this package.
    """
    x = inputs = keras.Input(network.input_shape[1:], name="image", dtype=DTYPE)
    executor = PlainExecutor(path, fold_batch_norm)
    for steps in network.sections:
        x = executor.run(steps, x)
    if network.include_top and network.classifier_activation != "linear":
        x = keras.layers.Activation(network.classifier_activation, name="predictions", dtype=DTYPE)(
            x
        )
    return keras.Model(inputs, x, name="_".join([network.name, *map(str, path.gates)]))


class PlainExecutor(Executor):
    """Runs steps over symbolic tensors with stock Keras layers that hold sliced weights.

    Args:
        path: A `Path` of Python ints.
        fold_batch_norm: Bool, whether batch normalisation is folded into the convolutions.
    """

    def __init__(self, path: Path, fold_batch_norm: bool):
        self.path = path
        self.fold_batch_norm = fold_batch_norm
        self._norm_after: dict = {}
        self._folded: set = set()

    def run(self, steps, x):
        if self.fold_batch_norm:
            for layer, norm in foldable_norms(steps).items():
                self.fold(layer, norm)
        return super().run(steps, x)

    def fold(self, layer: Any, norm: Step, first: int = 0) -> None:
        """Folds a batch norm, or some of its channels, into a convolution that runs later.

        Args:
            layer: The layer of the convolution, which has no activation before the norm.
            norm: A "norm" step with batch norm.
            first: Int, the channel of the norm that the first filter of the convolution is.
        """
        self._norm_after[layer] = (norm, first)
        self._folded.add(norm.layer)

    def conv(self, step, x):
        layer = step.layer
        filters = option_at(layer.filters, self.path.widths[step.section])
        kernel = as_numpy(layer.kernel)[:, :, : x.shape[-1], :filters]
        return self._convolve(keras.layers.Conv2D, step, x, kernel, filters, filters=filters)

    def depthwise(self, step, x):
        kernel = as_numpy(step.layer.kernel)[:, :, : x.shape[-1]]
        return self._convolve(keras.layers.DepthwiseConv2D, step, x, kernel, x.shape[-1])

    def _convolve(self, stock, step, x, kernel, channels, **arguments):
        layer = step.layer
        bias = None if layer.bias is None else as_numpy(layer.bias)[:channels]
        if layer in self._norm_after:
            norm, first = self._norm_after[layer]
            values = scale_and_offset(norm.layer, self._row(norm), first + channels)
            scale, offset = (vector[first:] for vector in values)
            # A depthwise kernel [size, size, channels, 1] has its channels on the third axis.
            kernel = kernel * (scale[:, None] if stock is keras.layers.DepthwiseConv2D else scale)
            bias = offset + (0.0 if bias is None else bias * scale)
        padding = layer.padding
        if padding == "symmetric":
            padding = "same" if layer.strides == 1 and layer.kernel_size % 2 else "valid"
            if padding == "valid":
                pad = keras.layers.ZeroPadding2D(
                    layer.kernel_size // 2, FORMAT, name=f"{layer.name}_pad", dtype=DTYPE
                )
                x = pad(x)
        made = stock(
            kernel_size=layer.kernel_size,
            strides=layer.strides,
            padding=padding,
            data_format=FORMAT,
            use_bias=bias is not None,
            name=layer.name,
            dtype=DTYPE,
            **arguments,
        )
        return _apply(made, x, kernel, bias)

    def norm(self, step, x):
        layer = step.layer
        if not step.is_batch_norm:
            x = self._group_norm(layer, x)
        elif layer not in self._folded:
            x = self._batch_norm(step, x)
        if step.activation is None:
            return x
        return keras.layers.Activation(
            step.activation, name=f"{layer.name}_activation", dtype=DTYPE
        )(x)

    def _batch_norm(self, step, x):
        layer = step.layer
        stock = keras.layers.BatchNormalization(
            momentum=layer.momentum, epsilon=layer.epsilon, name=layer.name, dtype=DTYPE
        )
        return _apply(stock, x, *batch_norm_values(layer, self._row(step), x.shape[-1]))

    def _row(self, step):
        return self.path.statistics[step.section]

    def _group_norm(self, layer, x):
        channels = x.shape[-1]
        stock = keras.layers.GroupNormalization(
            channels // layer.channels_per_group,
            epsilon=layer.epsilon,
            name=layer.name,
            dtype=DTYPE,
        )
        return _apply(stock, x, as_numpy(layer.gamma)[:channels], as_numpy(layer.beta)[:channels])

    def gate(self, step, x):
        layer, channels = step.layer, x.shape[-1]
        if not layer.attention:
            return x
        pool = keras.layers.GlobalAveragePooling2D(
            FORMAT, keepdims=True, name=f"{layer.name}_pool", dtype=DTYPE
        )
        hidden = keras.layers.Dense(
            layer.hidden_units, activation="relu", name=f"{layer.name}_hidden", dtype=DTYPE
        )
        hidden = _apply(hidden, pool(x), as_numpy(layer.w1)[:channels], as_numpy(layer.b1))
        head = keras.layers.Dense(
            channels, activation=layer.attention, name=f"{layer.name}_head", dtype=DTYPE
        )
        attention = _apply(
            head, hidden, as_numpy(layer.w3)[:, :channels], as_numpy(layer.b3)[:channels]
        )
        if layer.attention == "tanh":
            one_plus = keras.layers.Rescaling(
                1.0, offset=1.0, name=f"{layer.name}_one_plus", dtype=DTYPE
            )
            attention = one_plus(attention)
        return keras.layers.Multiply(name=f"{layer.name}_attend", dtype=DTYPE)([x, attention])

    def max_pool(self, step, x):
        return self.stock(step, x)

    def stock(self, step, x):
        return type(step.layer).from_config({**step.layer.get_config(), "dtype": DTYPE})(x)

    def resize(self, step, x):
        return resize(x, step.size)

    def pool(self, step, x):
        return keras.layers.GlobalAveragePooling2D(FORMAT, name="pool", dtype=DTYPE)(x)

    def global_max_pool(self, step, x):
        return keras.layers.GlobalMaxPooling2D(FORMAT, name="pool", dtype=DTYPE)(x)

    def dropout(self, step, x):
        return keras.layers.Dropout(step.layer.rate, name=step.layer.name, dtype=DTYPE)(x)

    def dense(self, step, x):
        layer = step.layer
        units = option_at(layer.units, self.path.widths[step.section])
        stock = keras.layers.Dense(units, use_bias=layer.use_bias, name=layer.name, dtype=DTYPE)
        bias = None if layer.bias is None else as_numpy(layer.bias)[:units]
        return _apply(stock, x, as_numpy(layer.kernel)[: x.shape[-1], :units], bias)

    def add(self, step, x, shortcut):
        # Keras would number its default names on from call to call.
        name = f"{step.branch[-1].layer.name}_add"
        x = keras.layers.Add(name=name, dtype=DTYPE)([x, shortcut])
        if step.activation is None:
            return x
        return keras.layers.Activation(step.activation, name=f"{name}_activation", dtype=DTYPE)(x)


def _apply(layer, x, *weights):
    """Calls a new stock layer and sets its weights, without those that are None."""
    outputs = layer(x)
    layer.set_weights([weight for weight in weights if weight is not None])
    return outputs


def foldable_norms(steps: Sequence[Step]) -> dict:
    """Returns the batch norms that directly follow a convolution.

    Args:
        steps: Sequence of `Step`.

    Returns:
        Dict from the layer of the convolution to the "norm" step.
    """
    return {
        step.layer: after
        for step, after in zip(steps, steps[1:])
        if step.kind in ("conv", "depthwise") and after.is_batch_norm
    }


def batch_norm_values(layer: Any, row: int, channels: int) -> list[np.ndarray]:
    """Returns gamma, beta, moving mean and moving variance, each float32 `[channels]`.

    Args:
        layer: A `SwitchableBatchNormalization`.
        row: Int, row of its statistics.
        channels: Int, number of channels, counted from the first.
    """
    vectors = [as_numpy(v)[:channels] for v in (layer.gamma, layer.beta)]
    tables = [as_numpy(v)[row, :channels] for v in (layer.moving_mean, layer.moving_variance)]
    return [*vectors, *tables]


def scale_and_offset(layer: Any, row: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a batch norm as a scale and an offset, each float32 `[channels]`.

    Args:
        layer: A `SwitchableBatchNormalization`.
        row: Int, row of its statistics.
        channels: Int, number of channels, counted from the first.
    """
    gamma, beta, mean, variance = batch_norm_values(layer, row, channels)
    scale = gamma / np.sqrt(variance + layer.epsilon)
    return scale, beta - mean * scale


def as_numpy(variable: Any) -> np.ndarray:
    """Returns the current value of a variable as float32, also inside a traced function."""
    with tf.init_scope():
        return keras.ops.convert_to_numpy(variable).astype("float32")
