"""Runs a network at full width with a channel mask for every image: stage II."""

import tensorflow as tf

from keras_dsnet.models.activation import activate
from keras_dsnet.models.path import Path
from keras_dsnet.models.sliced_executor import SlicedExecutor


class MaskedExecutor(SlicedExecutor):
    """Runs the widest route and masks the channels that an image's choice leaves out.

    The choice stays differentiable: the mask of an image is its straight-through one-hot choice
    times a table of zeros and ones. Each image is normalised with the batch-norm statistics of the
    width it chose, so that its outputs are those of the sliced path.

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

    def norm(self, step, x):
        if step.section == 0:
            return super().norm(step, x)
        choice = self.choices[step.section - 1]
        if hasattr(step.layer, "moving_mean"):
            x = self._normalize(step.layer, x, choice)
        else:
            x = step.layer(x, width=self.routes[-1])
        activated = activate(step.activation, x, training=True)
        return activated * self._mask(step.layer.channels, choice, x.dtype)

    def _normalize(self, layer, x, choice):
        channels = layer.channels[self.routes[-1]]
        rows = tf.gather(tf.constant(self.routes), tf.argmax(choice, axis=1))
        mean, variance = layer.statistics_at(rows, channels)
        gamma, beta = layer.scale_and_offset(channels)
        scale = gamma * tf.math.rsqrt(variance + layer.epsilon)
        offset = beta - mean * scale
        scale, offset = (tf.cast(v, x.dtype)[:, None, None, :] for v in (scale, offset))
        return x * scale + offset

    def _mask(self, options, choice, dtype):
        counts = [options[width] for width in self.routes]
        table = tf.sequence_mask(counts, options[self.routes[-1]], dtype=tf.float32)
        return tf.cast(choice @ table, dtype)[:, None, None, :]

    def gate(self, step, x):
        x = super().gate(step, x)
        if step.is_slimming_gate:
            self.choices.append(self.choose(step.layer, self.scores[-1], len(self.choices)))
        return x
