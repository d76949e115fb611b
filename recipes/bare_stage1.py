"""Stage I in bare TensorFlow: the reference of `benchmark_training.py`.

One step of In-place Ensemble Bootstrapping (Eqs. 3-5 of the paper) with two random widths, in one
trace for all widths.
"""

import tensorflow as tf
from bare_mobilenet import (
    FRONT,
    TAIL,
    WIDEST,
    MovingNorm,
    TrainingNorm,
    channels_at,
)

MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
EMA_MOMENTUM = 0.997
BN_MOMENTUM = 0.9


class BareStageOne:
    """Trains a `BareMobileNet`.

    Args:
        net: a `BareMobileNet`.
        batch_size: int.
        image_size: int.
        learning_rate: float.
        seed: int, of the random widths.
    """

    def __init__(self, net, batch_size, image_size, learning_rate=0.05, seed=0):
        self.net = net
        self.learning_rate = learning_rate
        self.seed = seed
        self.step = tf.Variable(0)
        self.train_step = tf.function(
            self._train_step,
            input_signature=[
                tf.TensorSpec((batch_size, image_size, image_size, 3)),
                tf.TensorSpec((batch_size,), tf.int32),
            ],
            autograph=False,
        )

    def draw_widths(self):
        """Draws the random widths, ascending: int32 `[2]`."""
        drawn = tf.random.stateless_uniform((2,), (self.seed, self.step), 1, WIDEST, tf.int32)
        return tf.sort(drawn)

    def _train_step(self, images, labels):
        widths = [0, *tf.unstack(self.draw_widths(), 2), WIDEST]
        teacher = self._teach(images, widths[1:])
        values = [{n: p.variable.read_value() for n, p in s.items()} for s in self.net.parameters]
        with tf.GradientTape() as tape:
            tape.watch(values[FRONT])
            norm = TrainingNorm()
            features = self.net.front(images, self.net.unpack(FRONT, values[FRONT]), norm)
        self._move_statistics(FRONT, 0, norm, BN_MOMENTUM ** len(widths))
        losses, total, features_gradient = [], {}, 0.0
        # The narrow ones first: their gradients are small.
        for index, width in enumerate(widths):
            # One sub-network after the other, or all their activations would be held at once.
            with tf.control_dependencies(list(total.values())):
                inputs = tf.identity(features)
            loss, gradients = self._learn(index, width, inputs, labels, teacher, values[TAIL])
            losses.append(loss)
            features_gradient += gradients.pop("features")
            total = self._add(total, widths[index - 1], gradients, width)
        front = tape.gradient(features, values[FRONT], features_gradient)
        self._update(values, (front, total))
        return tf.stack(losses)

    def _teach(self, images, widths):
        """Returns the teacher's probabilities at the given widths (Eq. 4)."""
        values = [{n: p.average.read_value() for n, p in s.items()} for s in self.net.parameters]
        front = self.net.unpack(FRONT, values[FRONT])
        features = self.net.front(images, front, MovingNorm(self.net, FRONT, 0))
        probabilities = []
        for width in widths:
            slices = self.net.unpack(TAIL, self.net.slice_at(TAIL, values[TAIL], width))
            logits = self.net.tail(features, slices, MovingNorm(self.net, TAIL, width))
            probabilities.append(tf.nn.softmax(logits))
        return probabilities

    def _learn(self, index, width, features, labels, teacher, values):
        """Runs one sub-network: its loss (Eqs. 5), and the gradients by its slices."""
        slices = self.net.slice_at(TAIL, values, width)
        norm = TrainingNorm()
        with tf.GradientTape() as tape:
            tape.watch([features, slices])
            logits = self.net.tail(features, self.net.unpack(TAIL, slices), norm)
            if width is WIDEST:
                loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            else:
                soft = teacher[-1] if index else tf.add_n(teacher) / len(teacher)
                loss = tf.nn.softmax_cross_entropy_with_logits(soft, logits)
            loss = tf.reduce_mean(loss)
        gradients = tape.gradient(loss, {"features": features, **slices})
        self._move_statistics(TAIL, width, norm, BN_MOMENTUM)
        return loss, gradients

    def _add(self, total, last, gradients, width):
        """Adds the gradients of a sub-network to those of narrower ones."""
        if not total:
            return gradients
        summed = {}
        for name, gradient in gradients.items():
            axes = self.net.parameters[TAIL][name].axes
            grown = total[name]
            if any(len(options) > 1 for options in axes):
                missing = [[0, channels_at(o, width) - channels_at(o, last)] for o in axes]
                grown = tf.pad(grown, missing)
            summed[name] = gradient + grown
        return summed

    def _move_statistics(self, section, width, norm, momentum):
        for options, names in self.net.norms[section].items():
            table, _ = self.net.statistics[section][options]
            batch = tf.stack(
                [
                    tf.stack([norm.means[name] for name in names]),
                    tf.stack([norm.variances[name] for name in names]),
                ]
            )
            channels = channels_at(options, width)
            change = (table.sparse_read(width)[..., :channels] - batch) * (1.0 - momentum)
            change = tf.pad(change, [[0, 0], [0, 0], [0, options[-1] - channels]])
            tf.raw_ops.ResourceScatterSub(resource=table.handle, indices=width, updates=change)

    def _update(self, values, gradients):
        """SGD with Nesterov's momentum and L2 weight decay; the teacher's average (Eq. 3)."""
        step = tf.cast(self.step, tf.float32)
        rest = 1.0 - tf.minimum(EMA_MOMENTUM, (1.0 + step) / (10.0 + step))
        for section in (FRONT, TAIL):
            for name, parameter in self.net.parameters[section].items():
                gradient = gradients[section][name]
                if parameter.decayed:
                    gradient += WEIGHT_DECAY * values[section][name]
                tf.raw_ops.ResourceApplyKerasMomentum(
                    var=parameter.variable.handle,
                    accum=parameter.velocity.handle,
                    lr=self.learning_rate,
                    grad=gradient,
                    momentum=MOMENTUM,
                    use_nesterov=True,
                )
                self._average(parameter.average, parameter.variable, rest)
            for moving, average in self.net.statistics[section].values():
                self._average(average, moving, rest)
        self.step.assign_add(1)

    def _average(self, average, variable, rest):
        tf.raw_ops.ResourceApplyGradientDescent(
            var=average.handle, alpha=rest, delta=average - variable
        )
