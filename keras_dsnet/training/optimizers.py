"""The paper's optimizer: SGD with L2 decay in the gradient, with its learning-rate schedules."""

import keras
import tensorflow as tf

from keras_dsnet.utils.private_names import CoupledWeightDecay, has_weight_decay, variable_index


@keras.saving.register_keras_serializable(package="keras_dsnet")
class L2SGD(CoupledWeightDecay, keras.optimizers.SGD):
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
        decays = bool(self.weight_decay)
        self._is_decayed = [decays and has_weight_decay(self, variable) for variable in variables]

    def update_step(self, gradient, variable, learning_rate):
        index = variable_index(self, variable)
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


BASE_BATCH = 512


def scaled_learning_rate(base, batch_size, base_batch=BASE_BATCH):
    """Returns the learning rate for a batch size, by the linear scaling rule.

    Args:
        base: float, the learning rate at `base_batch`: 0.08 in stage I, 0.05 in stage II.
        batch_size: int, images per step, of all replicas.
        base_batch: int.
    """
    return base * batch_size / base_batch


def cosine_schedule(learning_rate, total_steps, warmup_steps=0, final_fraction=0.01):
    """Stage I: linear warm-up from 0, then a cosine to a fraction of the learning rate.

    Args:
        learning_rate: float, at the end of the warm-up.
        total_steps: int, of warm-up and cosine; the rate is constant after it.
        warmup_steps: int.
        final_fraction: float, of `learning_rate` at `total_steps`.

    Returns:
        A `keras.optimizers.schedules.LearningRateSchedule`.

    Raises:
        ValueError: the warm-up leaves no steps for the cosine.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"`warmup_steps` must be from 0 to less than `total_steps`={total_steps}. "
            f"Received: warmup_steps={warmup_steps}"
        )
    return keras.optimizers.schedules.CosineDecay(
        0.0 if warmup_steps else learning_rate,
        decay_steps=total_steps - warmup_steps,
        alpha=final_fraction,
        warmup_target=learning_rate if warmup_steps else None,
        warmup_steps=warmup_steps,
    )


def exponential_schedule(learning_rate, steps_per_epoch, decay_rate=0.9):
    """Stage II: the learning rate is multiplied by `decay_rate` after every epoch.

    Args:
        learning_rate: float, of the first epoch.
        steps_per_epoch: int.
        decay_rate: float.

    Returns:
        A `keras.optimizers.schedules.LearningRateSchedule`.
    """
    return keras.optimizers.schedules.ExponentialDecay(
        learning_rate, steps_per_epoch, decay_rate, staircase=True
    )
