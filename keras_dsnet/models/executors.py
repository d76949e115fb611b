"""The executors that compute a network, sliced along one path or masked for stage II.

They run a whole batch along one path. `keras_dsnet.models.routing` splits a batch whose images take
different paths.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_dsnet.layers import SwitchableBatchNormalization
from keras_dsnet.layers.slicing import option_at
from keras_dsnet.models.path import Path
from keras_dsnet.models.topology import Executor


class SlicedExecutor(Executor):
    """Runs steps with the first channels of every layer (Eq. 2 of the paper).

    With Python ints as widths all shapes are static, as in a sub-network. With int32 scalar tensors
    one trace serves every width.

    Args:
        path: A `Path`, whose entries are Python ints or int32 scalar tensors.
        training: Bool.
        momentum: Float or scalar tensor, momentum of the batch-norm statistics in this run.
            Defaults to the momentum of each layer.
        repeats: Int, number of sub-networks that this run stands for. Their equal updates of the
            same batch-norm statistics become one update, with the momentum to this power.
        with_scores: Bool, whether the slimming heads run.

    Attributes:
        scores: List of the outputs of the slimming heads, in order, filled by `run`.
    """

    def __init__(
        self,
        path: Path,
        training: bool = False,
        momentum: Any = None,
        repeats: int = 1,
        with_scores: bool = True,
    ):
        self.path = path
        self.training = training
        self.momentum = momentum
        self.repeats = repeats
        self.with_scores = with_scores
        self.scores: list = []

    def conv(self, step, x):
        return step.layer(x, width=self.path.widths[step.section])

    depthwise = conv
    dense = conv

    def norm(self, step, x):
        width = self.path.widths[step.section]
        if step.is_batch_norm:
            x = step.layer(
                x,
                width=width,
                statistics=self.path.statistics[step.section],
                momentum=self._momentum(step.layer),
                training=self.training,
            )
        else:
            x = step.layer(x, width=width, training=self.training)
        return activate(step.activation, x, self.training)

    def _momentum(self, layer):
        momentum = layer.momentum if self.momentum is None else self.momentum
        return momentum**self.repeats

    def gate(self, step, x):
        width = self.path.widths[step.section]
        if not (step.is_slimming_gate and self.with_scores):
            return step.layer(x, width=width, with_scores=False)
        outputs = step.layer(x, width=width)
        self.scores.append(outputs[1])
        return outputs[0]

    def max_pool(self, step, x):
        return step.layer(x)

    stock = max_pool

    def resize(self, step, x):
        return resize(x, step.size)

    def add(self, step, x, shortcut):
        return activate(step.activation, x + shortcut, self.training)

    def pool(self, step, x):
        # Keras sums float16 in float32, where the sum cannot overflow; `tf.reduce_mean` does not.
        return keras.ops.mean(x, (1, 2))

    def global_max_pool(self, step, x):
        return keras.ops.max(x, (1, 2))

    def dropout(self, step, x):
        return step.layer(x, training=self.training)


class MaskedExecutor(SlicedExecutor):
    """Runs the widest route and masks the channels that an image's choice leaves out.

    The choice stays differentiable, as stage II needs. The mask of an image is its straight-through
    one-hot choice times a table of zeros and ones. It multiplies the outputs of convolutions and
    norms and the logits of attention heads. The batch-norm statistics are the choice times the
    statistics of the routes. The outputs equal those of the sliced path, and the gradient of the
    choice equals that of the authors' code.

    The authors released no network with group norm. Group norm does not mix groups, so one mask
    after norm, sum and activation is enough. The gradient of the choice then shows what the masked
    channels would change, whereas a mask before a ReLU would give no gradient.

    Args:
        network: A `DynamicSlimmableNetwork`.
        routes: Tuple of ints, candidate widths in ascending order.
        choose: Function of a gate layer, its scores and the index of the gate. It returns one-hot
            choices `[batch, len(routes)]`.

    Attributes:
        choices: List of the one-hot choices, in the order of the gates, filled by `run`.
    """

    def __init__(
        self, network: Any, routes: tuple[int, ...], choose: Callable[[Any, Any, int], tf.Tensor]
    ):
        widest = (routes[-1],) * network.num_gates
        super().__init__(Path((0, *widest), (0, *widest)))
        self.routes = routes
        self.choose = choose
        self.choices: list = []
        self._has_batch_norm = any(
            isinstance(layer, SwitchableBatchNormalization) for layer in network.supernet_layers
        )
        # Layers whose outputs a later step masks.
        self._unmasked: set = set()

    def run(self, steps, x):
        for step, after in zip(steps, steps[1:]):
            if after.kind == "norm" and not after.is_batch_norm:
                self._unmasked.add(step.layer)
        return super().run(steps, x)

    def residual(self, step, x):
        for steps in (step.branch, step.shortcut):
            if steps and steps[-1].kind == "norm" and not steps[-1].is_batch_norm:
                self._unmasked.add(steps[-1].layer)
        return super().residual(step, x)

    def conv(self, step, x):
        return self._masked(step, super().conv(step, x), step.layer.filters)

    def depthwise(self, step, x):
        return self._masked(step, super().depthwise(step, x), step.layer.channels)

    def _masked(self, step, x, options):
        if step.section == 0 or len(options) == 1 or step.layer in self._unmasked:
            return x
        return x * self._mask(step, options, x.dtype)

    def norm(self, step, x):
        if step.section == 0:
            return super().norm(step, x)
        if not step.is_batch_norm:
            return self._masked(step, super().norm(step, x), step.layer.channels)
        x = self._normalize(step, x)
        mask = self._mask(step, step.layer.channels, x.dtype)
        x = activate(step.activation, x * mask, training=True)
        # An activation that is not zero at zero makes the masked channels nonzero again.
        return x if _keeps_zero(step.activation) else x * tf.stop_gradient(mask)

    def add(self, step, x, shortcut):
        x = super().add(step, x, shortcut)
        last = step.branch[-1].layer
        ends = {steps[-1].layer for steps in (step.branch, step.shortcut) if steps}
        is_masked = not ends & self._unmasked and _keeps_zero(step.activation)
        if step.section == 0 or is_masked:
            return x
        options = last.filters if hasattr(last, "filters") else last.channels
        return x * self._mask(step, options, x.dtype)

    def _normalize(self, step, x):
        layer, choice = step.layer, self.choices[step.section - 1]
        gamma, beta = layer.scale_and_offset(option_at(layer.channels, self.routes[-1]))
        table = tf.cast(self._table(layer.channels), gamma.dtype)
        rows = layer.statistics_at(tf.constant(self.routes), table.shape[1])
        choice = tf.cast(choice, gamma.dtype)
        mean, variance = (choice @ (statistics * table) for statistics in rows)
        scale = gamma * tf.math.rsqrt(variance + layer.epsilon)
        offset = beta - mean * scale
        scale, offset = (tf.cast(v, x.dtype)[:, None, None, :] for v in (scale, offset))
        return x * scale + offset

    def _mask(self, step, options, dtype):
        choice = self.choices[step.section - 1]
        return tf.cast(choice @ self._table(options), dtype)[:, None, None, :]

    def _table(self, options):
        """Returns the channels of each route as ones and zeros `[routes, channels]`."""
        counts = [option_at(options, width) for width in self.routes]
        return tf.sequence_mask(counts, counts[-1], dtype=tf.float32)

    def gate(self, step, x):
        if step.section == 0:
            x = super().gate(step, x)
        else:
            mask = None
            if self._has_batch_norm:
                mask = self._mask(step, step.layer.channels, x.dtype)[:, 0, 0]
            x = step.layer(x, width=self.routes[-1], attention_mask=mask)
            if step.is_slimming_gate:
                x, scores = x
                self.scores.append(scores)
        if step.is_slimming_gate:
            self.choices.append(self.choose(step.layer, self.scores[-1], len(self.choices)))
        return x


def _keeps_zero(activation):
    """Whether an activation maps zero to zero."""
    if activation is None:
        return True
    with tf.init_scope():
        return float(keras.activations.get(activation)(tf.zeros(()))) == 0.0


def resize(x: Any, size: tuple[int, int]) -> Any:
    """Resizes features by bilinear interpolation.

    The layer `Resizing` of Keras does the same, but its call has the default `training=True`, and
    Keras would run all layers after it in training mode.

    Args:
        x: Tensor or symbolic tensor `[batch, height, width, channels]`.
        size: `(height, width)` of the result.
    """
    return keras.ops.image.resize(x, size, "bilinear", data_format="channels_last")


def activate(name: str | None, x: Any, training: bool = False) -> Any:
    """Applies the activation of a "norm" or "residual" step.

    Args:
        name: Name of a Keras activation, or None for no activation.
        x: Tensor.
        training: Bool, whether a gradient will be computed. It changes only the speed.
    """
    if name is None:
        return x
    if training and name in ("swish", "silu"):
        return _swish(x)
    return keras.activations.get(name)(x)


@tf.custom_gradient
def _swish(x):
    """Swish that keeps its derivative for the gradient instead of `x`.

    This needs the same memory and less computation. The derivative is
    `s(x) + x * s(x) * (1 - s(x))` with the sigmoid `s`.
    """
    gate = tf.sigmoid(x)
    derivative = gate + tf.raw_ops.SigmoidGrad(y=gate, dy=x)
    return x * gate, lambda gradient: gradient * derivative
