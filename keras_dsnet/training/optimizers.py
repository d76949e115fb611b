"""The paper's optimizer: SGD with L2 decay in the gradient, with its learning-rate schedules."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_dsnet.utils.private_names import CoupledWeightDecay, has_weight_decay, variable_index

# The global batch size of the paper's learning rates.
BASE_BATCH = 512


@keras.saving.register_keras_serializable(package="keras_dsnet")
class L2SGD(CoupledWeightDecay, keras.optimizers.SGD):
    """SGD with momentum and L2 weight decay: `weight_decay * w` is added to the gradient.

    Keras's `weight_decay` is decoupled from the gradient (`w -= lr * weight_decay * w`). The
    paper's goes through the momentum, which makes it `1 / (1 - momentum)` times as strong.

    Args:
        learning_rate: Float or `keras.optimizers.schedules.LearningRateSchedule`. Defaults to
            `0.08`.
        momentum: Float in [0, 1]. Defaults to `0.9`.
        nesterov: Boolean, whether to use Nesterov momentum. Defaults to `True`.
        weight_decay: Float or None. Variables passed to `exclude_from_weight_decay` do not decay.
            Defaults to `1e-4`.
        **kwargs: Keyword arguments of `keras.optimizers.SGD`.

    Example:

    ```python
    import keras
    from keras_dsnet.training import L2SGD

    weight = keras.Variable([1.0])
    optimizer = L2SGD(learning_rate=0.1, momentum=0.0, nesterov=False, weight_decay=0.5)
    optimizer.apply([keras.ops.zeros(1)], [weight])
    assert abs(float(weight[0]) - 0.95) < 1e-6
    ```
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 0.08,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float | None = 1e-4,
        **kwargs: Any,
    ):
        kwargs.setdefault("name", "l2_sgd")
        super().__init__(
            learning_rate=learning_rate,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            **kwargs,
        )

    def build(self, variables: Sequence[keras.Variable]) -> None:
        if self.built:
            return
        super().build(variables)
        decays = bool(self.weight_decay)
        self._is_decayed = [decays and has_weight_decay(self, variable) for variable in variables]

    def update_step(
        self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor
    ) -> None:
        """Updates one variable with the gradient plus its L2 decay.

        Args:
            gradient: Tensor of the variable's shape.
            variable: `keras.Variable`.
            learning_rate: Scalar tensor.
        """
        index = variable_index(self, variable)
        if self._is_decayed[index]:
            gradient = tf.cast(gradient, variable.dtype) + self.weight_decay * variable
        if not self.momentum or tf.distribute.get_strategy().num_replicas_in_sync > 1:
            super().update_step(gradient, variable, learning_rate)
            return
        # One pass over memory instead of six. On a CPU the update is a large part of a step.
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


def scaled_learning_rate(base: float, batch_size: int, base_batch: int = BASE_BATCH) -> float:
    """Returns the learning rate for a batch size, by the linear scaling rule.

    Args:
        base: Float, the learning rate at `base_batch`. The paper's is 0.08 in stage I and 0.05 in
            stage II.
        batch_size: Int, images per step, over all replicas.
        base_batch: Int, the batch size of `base`. Defaults to `512`.

    Returns:
        Float.

    Example:

    >>> from keras_dsnet.training import scaled_learning_rate
    >>> scaled_learning_rate(0.08, batch_size=256)
    0.04
    """
    return base * batch_size / base_batch


def cosine_schedule(
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    final_fraction: float = 0.01,
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns the schedule of stage I: a linear warm-up from 0, then a cosine decay.

    Args:
        learning_rate: Float, the learning rate at the end of the warm-up.
        total_steps: Int, number of steps of warm-up and cosine. The rate is constant after them.
        warmup_steps: Int, number of steps of the warm-up. Defaults to `0`.
        final_fraction: Float, ratio of the rate at `total_steps` to `learning_rate`. Defaults to
            `0.01`.

    Returns:
        `keras.optimizers.schedules.LearningRateSchedule`.

    Raises:
        ValueError: If the warm-up leaves no steps for the cosine.

    Example:

    ```python
    from keras_dsnet.training import cosine_schedule

    schedule = cosine_schedule(0.08, total_steps=100, warmup_steps=10)
    assert abs(float(schedule(10)) - 0.08) < 1e-6
    ```
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


def exponential_schedule(
    learning_rate: float, steps_per_epoch: int, decay_rate: float = 0.9
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns the schedule of stage II, which multiplies the rate by `decay_rate` every epoch.

    Args:
        learning_rate: Float, the learning rate of the first epoch.
        steps_per_epoch: Int, number of steps of an epoch.
        decay_rate: Float. Defaults to `0.9`.

    Returns:
        `keras.optimizers.schedules.LearningRateSchedule`.

    Example:

    ```python
    from keras_dsnet.training import exponential_schedule

    schedule = exponential_schedule(0.05, steps_per_epoch=100)
    assert abs(float(schedule(100)) - 0.045) < 1e-6
    ```
    """
    return keras.optimizers.schedules.ExponentialDecay(
        learning_rate, steps_per_epoch, decay_rate, staircase=True
    )


def step_schedule(
    learning_rate: float,
    boundaries: Sequence[int],
    warmup_steps: int = 0,
    decay_rate: float = 0.1,
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns the schedule of the detectors: the rate is multiplied by `decay_rate` at given steps.

    Args:
        learning_rate: Float, the learning rate at the end of the warm-up.
        boundaries: Sequence of ascending ints, the steps from which on a smaller rate holds.
        warmup_steps: Int, number of steps of a linear warm-up from 0. Defaults to `0`.
        decay_rate: Float. Defaults to `0.1`.

    Returns:
        `keras.optimizers.schedules.LearningRateSchedule`.

    Raises:
        ValueError: If the boundaries do not ascend.

    Example:

    ```python
    from keras_dsnet.training import step_schedule

    schedule = step_schedule(0.004, boundaries=[200, 250])
    assert abs(float(schedule(200)) - 0.0004) < 1e-8
    ```
    """
    boundaries = [int(step) for step in boundaries]
    if sorted(set(boundaries)) != boundaries:
        raise ValueError(f"`boundaries` must ascend. Received: boundaries={boundaries!r}")
    return StepSchedule(learning_rate, boundaries, warmup_steps, decay_rate)


@keras.saving.register_keras_serializable(package="keras_dsnet")
class StepSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """The schedule that `step_schedule` returns, with the same arguments.

    Keras's `PiecewiseConstantDecay` has no warm-up.
    """

    def __init__(self, learning_rate, boundaries, warmup_steps=0, decay_rate=0.1):
        super().__init__()
        self.learning_rate = learning_rate
        self.boundaries = list(boundaries)
        self.warmup_steps = warmup_steps
        self.decay_rate = decay_rate

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        passed = tf.reduce_sum(tf.cast(step >= tf.constant(self.boundaries, tf.float32), tf.int32))
        rates = [self.learning_rate * self.decay_rate**n for n in range(len(self.boundaries) + 1)]
        warm = tf.minimum(step / max(self.warmup_steps, 1), 1.0) if self.warmup_steps else 1.0
        return tf.gather(tf.constant(rates, tf.float32), passed) * warm

    def get_config(self):
        return {
            "learning_rate": self.learning_rate,
            "boundaries": self.boundaries,
            "warmup_steps": self.warmup_steps,
            "decay_rate": self.decay_rate,
        }
