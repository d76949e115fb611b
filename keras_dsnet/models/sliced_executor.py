"""Runs a network along one path, every layer sliced to its width."""

import keras

from keras_dsnet.models.activation import activate
from keras_dsnet.models.topology import Executor


class SlicedExecutor(Executor):
    """Runs steps with the first channels of every layer (Eq. 2 of the paper).

    With Python ints as widths every shape is static: a sub-network. With int32 scalar tensors one
    trace serves every width.

    Args:
        path: a `Path`; its entries are Python ints or int32 scalar tensors.
        training: bool.
        momentum: momentum of the batch-norm statistics for this run; None: each layer's own.
        repeats: int: how many sub-networks this run stands for. Their equal updates of the same
            batch-norm statistics are made in one: momentum to this power.

    Attributes:
        scores: the slimming heads' outputs, in order, filled while running.
    """

    def __init__(self, path, training=False, momentum=None, repeats=1):
        self.path = path
        self.training = training
        self.momentum = momentum
        self.repeats = repeats
        self.scores = []

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
        outputs = step.layer(x, width=self.path.widths[step.section])
        if not step.is_slimming_gate:
            return outputs
        self.scores.append(outputs[1])
        return outputs[0]

    def max_pool(self, step, x):
        return step.layer(x)

    def add(self, step, x, shortcut):
        return activate(step.activation, x + shortcut, self.training)

    def pool(self, step, x):
        # Unlike TensorFlow's own mean this one sums float16 in float32, where it cannot overflow.
        return keras.ops.mean(x, (1, 2))

    def global_max_pool(self, step, x):
        return keras.ops.max(x, (1, 2))

    def dropout(self, step, x):
        return step.layer(x, training=self.training)
