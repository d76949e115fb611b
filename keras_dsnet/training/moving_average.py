"""The teacher of stage I: an exponential moving average of the network's variables."""

import contextlib
from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf


class MovingAverage:
    """Exponential moving averages of variables, batch-norm statistics included (Eq. 3).

    Args:
        variables: List of `keras.Variable`. Variables of other than float types, such as the states
            of seeds, have no average.
        momentum: Float in [0, 1), alpha of Eq. 3.
        warmup: Boolean, whether the momentum at step t is `min(momentum, (1 + t) / (10 + t))`.

    Attributes:
        variables: List of the variables that have an average.
        averages: List of `keras.Variable`, in the order of `variables`.

    Example:

    ```python
    import keras
    from keras_dsnet.training.moving_average import MovingAverage

    weight = keras.Variable(0.0)
    average = MovingAverage([weight], momentum=0.9, warmup=False)
    weight.assign(1.0)
    average.update(steps=1, num_replicas=1)
    assert abs(float(average.averages[0]) - 0.1) < 1e-6
    ```
    """

    def __init__(self, variables: Sequence[keras.Variable], momentum: float, warmup: bool):
        self.variables = [v for v in variables if v.dtype.startswith(("float", "bfloat"))]
        self.averages = [_copy(variable) for variable in self.variables]
        self._momentum = momentum
        self._warmup = warmup

    def update(self, steps: int | tf.Tensor | keras.Variable, num_replicas: int) -> None:
        """Moves every average towards its variable (Eq. 3).

        Args:
            steps: Int, tensor or variable, the number of steps that have changed the variables.
            num_replicas: Int, number of replicas of the distribution strategy.
        """
        steps = tf.cast(steps, tf.float32)
        momentum = tf.constant(self._momentum)
        if self._warmup:
            momentum = tf.minimum(momentum, steps / (9.0 + steps))
        for average, variable in zip(self.averages, self.variables):
            rest = tf.cast(1.0 - momentum, average.dtype)
            difference = average - tf.cast(variable, average.dtype)
            if num_replicas > 1 and tf.distribute.in_cross_replica_context():
                average.assign_sub(difference * rest)
            else:
                # The fused operation does not write the product to memory. In a replica it changes
                # only that replica's copy: all copies get equal values, and an assignment of Keras
                # would send every average over the network.
                tf.raw_ops.ResourceApplyGradientDescent(
                    var=average.value.handle, alpha=rest, delta=difference
                )

    def reset(self) -> None:
        """Assigns the variables to their averages."""
        for average, variable in zip(self.averages, self.variables):
            average.assign(variable)

    def scope(self) -> keras.StatelessScope:
        """Returns a context in which the variables have the values of their averages."""
        averages = [tf.convert_to_tensor(average) for average in self.averages]
        return keras.StatelessScope(zip(self.variables, averages))

    def load(self) -> None:
        """Assigns the averages to the variables."""
        for average, variable in zip(self.averages, self.variables):
            variable.assign(average)

    @contextlib.contextmanager
    def loaded(self) -> Iterator[None]:
        """Assigns the averages to the variables, and restores the variables after the context."""
        values = [variable.numpy() for variable in self.variables]
        try:
            self.load()
            yield
        finally:
            for value, variable in zip(values, self.variables):
                variable.assign(value)


def _copy(variable):
    # A NumPy value, because `keras.Variable` would wrap a TensorFlow variable and not copy it.
    return keras.Variable(
        variable.numpy(),
        dtype=variable.dtype,
        trainable=False,
        name=f"teacher_{variable.name}",
        aggregation="mean",
    )
