"""The ensemble teacher's variables."""

import contextlib

import keras
import tensorflow as tf


class MovingAverage:
    """Exponential moving averages of variables, batch-norm statistics included (Eq. 3).

    Args:
        variables: list of `keras.Variable`; those that are not of a float type, such as the states
            of seeds, have no average.
        momentum: float, alpha of Eq. 3.
        warmup: bool: momentum `min(momentum, (1 + t) / (10 + t))` at step t.

    Attributes:
        variables: the variables that have an average.
        averages: list of `keras.Variable`, in the order of `variables`.
    """

    def __init__(self, variables, momentum, warmup):
        self.variables = [v for v in variables if v.dtype.startswith(("float", "bfloat"))]
        self.averages = [_copy(variable) for variable in self.variables]
        self._momentum = momentum
        self._warmup = warmup

    def update(self, steps, num_replicas):
        """Moves every average towards its variable.

        Args:
            steps: int tensor or variable, the steps that the variables have seen.
            num_replicas: int, of the distribution strategy.
        """
        steps = tf.cast(steps, tf.float32)
        momentum = tf.constant(self._momentum)
        if self._warmup:
            momentum = tf.minimum(momentum, steps / (9.0 + steps))
        for average, variable in zip(self.averages, self.variables):
            rest = tf.cast(1.0 - momentum, average.dtype)
            difference = average - tf.cast(variable, average.dtype)
            if num_replicas > 1:
                average.assign_sub(difference * rest)
            else:
                # The product is not written to memory.
                tf.raw_ops.ResourceApplyGradientDescent(
                    var=average.value.handle, alpha=rest, delta=difference
                )

    def scope(self):
        """Returns a context in which the variables have the values of their averages."""
        averages = [tf.convert_to_tensor(average) for average in self.averages]
        return keras.StatelessScope(zip(self.variables, averages))

    def load(self):
        """Gives every variable its average."""
        for average, variable in zip(self.averages, self.variables):
            variable.assign(average)

    @contextlib.contextmanager
    def loaded(self):
        """Gives every variable its average, and at the end of the context its own value back."""
        values = [variable.numpy() for variable in self.variables]
        try:
            self.load()
            yield
        finally:
            for value, variable in zip(values, self.variables):
                variable.assign(value)


def _copy(variable):
    # By NumPy: given a TensorFlow variable, a Keras one would wrap it, not copy it.
    return keras.Variable(
        variable.numpy(),
        dtype=variable.dtype,
        trainable=False,
        name=f"teacher_{variable.name}",
        aggregation="mean",
    )
