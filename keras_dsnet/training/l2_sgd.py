"""SGD whose weight decay is part of the gradient."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="keras_dsnet")
class L2SGD(keras.optimizers.SGD):
    """SGD with momentum and L2 weight decay: `weight_decay * w` is added to the gradient.

    Keras's own `weight_decay` is decoupled from the gradient (`w -= lr * weight_decay * w`); the
    paper's goes through the momentum, which makes it `1 / (1 - momentum)` times as strong.

    Args:
        learning_rate: float or schedule.
        momentum: float.
        nesterov: bool.
        weight_decay: float or None; variables named to `exclude_from_weight_decay` have none.
        **kwargs: of `keras.optimizers.SGD`.
    """

    def __init__(
        self, learning_rate=0.08, momentum=0.9, nesterov=True, weight_decay=1e-4, **kwargs
    ):
        kwargs.setdefault("name", "l2_sgd")
        super().__init__(
            learning_rate=learning_rate,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            **kwargs,
        )

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        decayed = self._use_weight_decay if self.weight_decay else lambda variable: False
        self._is_decayed = [bool(decayed(variable)) for variable in variables]

    def _apply_weight_decay(self, variables):
        """The decoupled decay of Keras: not here."""

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        if self._is_decayed[index]:
            gradient = tf.cast(gradient, variable.dtype) + self.weight_decay * variable
        if not self.momentum or tf.distribute.get_strategy().num_replicas_in_sync > 1:
            super().update_step(gradient, variable, learning_rate)
            return
        # One pass over memory instead of six: on a CPU the update is a good part of a step.
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=_handle(variable),
            accum=_handle(self.momentums[index]),
            lr=tf.cast(learning_rate, variable.dtype),
            grad=tf.cast(gradient, variable.dtype),
            momentum=tf.cast(self.momentum, variable.dtype),
            use_nesterov=self.nesterov,
        )


def _handle(variable):
    return (variable.value if isinstance(variable, keras.Variable) else variable).handle
