"""Runs a network at full width with a channel mask for every image: stage II."""

import keras
import tensorflow as tf

from keras_dsnet.layers import SwitchableBatchNormalization
from keras_dsnet.layers.channel_options import option_at
from keras_dsnet.models.activation import activate
from keras_dsnet.models.path import Path
from keras_dsnet.models.sliced_executor import SlicedExecutor


class MaskedExecutor(SlicedExecutor):
    """Runs the widest route and masks the channels that an image's choice leaves out.

    The choice stays differentiable: the mask of an image is its straight-through one-hot choice
    times a table of zeros and ones, and it multiplies the outputs of convolutions, of norms and the
    logits of attention heads; the batch-norm statistics are the choice times those of the routes.
    The outputs are those of the sliced path, and the gradient of the choice that of the authors'
    code.

    They released no network with group norm. Its groups do not see one another, so that one mask
    behind norm, sum and activation is enough; its gradient then is what the channels left out would
    change, where a mask before a ReLU would have none.

    Args:
        network: a `DynamicSlimmableNetwork`.
        routes: tuple of candidate widths, ascending.
        choose: function of (gate layer, scores, index of the gate) that gives one-hot choices
            `[batch, len(routes)]`.

    Attributes:
        choices: the one-hot choices, in the order of the gates, filled while running.
    """

    def __init__(self, network, routes, choose):
        widest = (routes[-1],) * network.num_gates
        super().__init__(Path((0, *widest), (0, *widest)))
        self.routes = routes
        self.choose = choose
        self.choices = []
        self._has_batch_norm = any(
            isinstance(layer, SwitchableBatchNormalization) for layer in network.supernet_layers
        )
        # Layers whose outputs are masked by a step behind them.
        self._unmasked = set()

    def run(self, steps, x):
        for step, behind in zip(steps, steps[1:]):
            if behind.kind == "norm" and not behind.is_batch_norm:
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
        # An activation that is not zero at zero would fill the masked channels again.
        return x if _keeps_zero(step.activation) else x * tf.stop_gradient(mask)

    def add(self, step, x, shortcut):
        x = super().add(step, x, shortcut)
        last = step.branch[-1].layer
        if step.section == 0 or (last not in self._unmasked and _keeps_zero(step.activation)):
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
        """Returns which channels each route has: zeros and ones `[routes, channels]`."""
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
    if activation is None:
        return True
    with tf.init_scope():
        return float(keras.activations.get(activation)(tf.zeros(()))) == 0.0
