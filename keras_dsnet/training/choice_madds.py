"""Multiply-adds of what gates choose, image by image."""

import tensorflow as tf

from keras_dsnet.models.section_costs import section_costs


class ChoiceMAdds:
    """Multiply-adds of the paths that a batch of images takes, as a function of choices.

    Choices are a list of one tensor `[batch, len(routes)]` per gate: one-hot, or soft.

    Args:
        network: a `DynamicSlimmableNetwork`.
        routes: tuple of candidate widths.
    """

    def __init__(self, network, routes):
        self._front, self._sections = section_costs(network, routes)
        self._widest = network.madds("widest")

    def relative(self, choices):
        """Returns the MAdds over those of the widest path, differentiable: float32 `[batch]`.

        MAdds themselves overflow float16 and are inexact in float32.

        Args:
            choices: as above.
        """
        total = self._front / self._widest
        before = tf.ones_like(choices[0][:, :1])
        for choice, table in zip(choices, self._sections):
            relative = tf.constant(table / self._widest, tf.float32)
            total += tf.reduce_sum((before @ relative) * choice, axis=1)
            before = choice
        return total

    def exact(self, choices):
        """Returns the MAdds of every image, whole numbers without an error: float64 `[batch]`.

        Args:
            choices: as above, one-hot.
        """
        total = tf.constant(self._front, tf.float64)
        before = tf.zeros_like(choices[0][:, 0], tf.int64)
        for choice, table in zip(choices, self._sections):
            after = tf.argmax(choice, axis=1)
            pairs = tf.stack([before, after], axis=1)
            total += tf.cast(tf.gather_nd(tf.constant(table), pairs), tf.float64)
            before = after
        return total
