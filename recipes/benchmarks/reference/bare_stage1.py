"""Stage I in bare TensorFlow: the reference of `benchmark_training.py`.

One step of In-place Ensemble Bootstrapping (Eqs. 3-5 of the paper) with two random sub-networks, in
one trace for all widths.
"""

import tensorflow as tf
from keras_dsnet_recipes.benchmarks.reference.bare_network import (
    FRONT,
    TAIL,
    MovingNorm,
    TrainingNorm,
)

MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
EMA_MOMENTUM = 0.997
BN_MOMENTUM = 0.9


class BareStageOne:
    """Trains a network.

    Args:
        net: a `BareNetwork`.
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
        """Draws the random paths: int32 `[2, gates]`; of one gate interior widths, ascending."""
        gates, widths = self.net.num_gates, self.net.num_widths
        low, high = (1, widths - 1) if gates == 1 else (0, widths)
        seed = (self.seed, self.step)
        drawn = tf.random.stateless_uniform((2, gates), seed, low, high, tf.int32)
        return tf.sort(drawn, axis=0) if gates == 1 else drawn

    def _train_step(self, images, labels):
        gates = self.net.num_gates
        drawn = [tf.unstack(path, gates) for path in tf.unstack(self.draw_widths(), 2)]
        paths = [[0] * gates, *drawn, [self.net.num_widths - 1] * gates]
        teacher = self._teach(images, paths[1:])
        values = [{n: p.variable.read_value() for n, p in s.items()} for s in self.net.parameters]
        with tf.GradientTape() as tape:
            tape.watch(values[FRONT])
            norm = TrainingNorm()
            features = self.net.front(images, self.net.unpack(FRONT, values[FRONT]), norm)
        self._move_statistics(FRONT, paths[0], norm, BN_MOMENTUM ** len(paths))
        losses, total, reached, features_gradient = [], {}, None, 0.0
        # Of the narrow ones first: their gradients are small.
        for index, path in enumerate(paths):
            # One sub-network after the other, or all their activations would be held at once.
            with tf.control_dependencies(list(total.values())):
                inputs = tf.identity(features)
            loss, gradients = self._learn(index, path, inputs, labels, teacher, values[TAIL])
            losses.append(loss)
            features_gradient += gradients.pop("features")
            last, reached = reached, path
            if index == 2 and gates > 1:
                # The slimmest is a part of every path and the widest holds all; of the two drawn
                # either may be the wider one at a gate.
                reached = [tf.maximum(*widths) for widths in zip(last, path)]
            total = self._add(total, last, gradients, path, reached)
        front = tape.gradient(features, values[FRONT], features_gradient)
        self._update(values, (front, total))
        return tf.stack(losses)

    def _teach(self, images, paths):
        """Returns the teacher's probabilities along the given paths (Eq. 4)."""
        values = [{n: p.average.read_value() for n, p in s.items()} for s in self.net.parameters]
        front = self.net.unpack(FRONT, values[FRONT])
        features = self.net.front(images, front, MovingNorm(self.net, FRONT, paths[0]))
        probabilities = []
        for path in paths:
            slices = self.net.unpack(TAIL, self.net.slice_at(TAIL, values[TAIL], path))
            logits = self.net.tail(features, slices, MovingNorm(self.net, TAIL, path))
            probabilities.append(tf.nn.softmax(logits))
        return probabilities

    def _learn(self, index, path, features, labels, teacher, values):
        """Runs one sub-network: its loss (Eqs. 5), and the gradients by its slices."""
        slices = self.net.slice_at(TAIL, values, path)
        norm = TrainingNorm()
        with tf.GradientTape() as tape:
            tape.watch([features, slices])
            logits = self.net.tail(features, self.net.unpack(TAIL, slices), norm)
            if index == len(teacher):
                loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            else:
                soft = teacher[-1] if index else tf.add_n(teacher) / len(teacher)
                loss = tf.nn.softmax_cross_entropy_with_logits(soft, logits)
            loss = tf.reduce_mean(loss)
        gradients = tape.gradient(loss, {"features": features, **slices})
        self._move_statistics(TAIL, path, norm, BN_MOMENTUM)
        return loss, gradients

    def _add(self, total, last, gradients, path, reached):
        """Adds gradients along `path` to those up to `last`; the sums are as large as `reached`."""
        if not total:
            return gradients
        summed = {}
        for name, gradient in gradients.items():
            axes = self.net.parameters[TAIL][name].axes
            summed[name] = _grow(gradient, axes, path, reached) + _grow(
                total[name], axes, last, reached
            )
        return summed

    def _move_statistics(self, half, path, norm, momentum):
        row = path[0] if half else 0
        for channels, names in self.net.norms[half].items():
            table, _ = self.net.statistics[half][channels]
            batch = tf.stack(
                [
                    tf.stack([norm.means[name] for name in names]),
                    tf.stack([norm.variances[name] for name in names]),
                ]
            )
            size = channels.at(path)
            change = (table.sparse_read(row)[..., :size] - batch) * (1.0 - momentum)
            change = tf.pad(change, [[0, 0], [0, 0], [0, channels.most - size]])
            tf.raw_ops.ResourceScatterSub(resource=table.handle, indices=row, updates=change)

    def _update(self, values, gradients):
        """SGD with Nesterov's momentum and L2 weight decay; the teacher's average (Eq. 3)."""
        step = tf.cast(self.step, tf.float32)
        rest = 1.0 - tf.minimum(EMA_MOMENTUM, (1.0 + step) / (10.0 + step))
        for half in (FRONT, TAIL):
            for name, parameter in self.net.parameters[half].items():
                gradient = gradients[half][name]
                if parameter.decayed:
                    gradient += WEIGHT_DECAY * values[half][name]
                tf.raw_ops.ResourceApplyKerasMomentum(
                    var=parameter.variable.handle,
                    accum=parameter.velocity.handle,
                    lr=self.learning_rate,
                    grad=gradient,
                    momentum=MOMENTUM,
                    use_nesterov=True,
                )
                self._average(parameter.average, parameter.variable, rest)
            for moving, average in self.net.statistics[half].values():
                self._average(average, moving, rest)
        self.step.assign_add(1)

    def _average(self, average, variable, rest):
        tf.raw_ops.ResourceApplyGradientDescent(
            var=average.handle, alpha=rest, delta=average - variable
        )


def _grow(tensor, axes, path, new_path):
    """Pads the slice along a path to that along another, which is nowhere narrower."""
    if path is new_path or all(len(axis.options) == 1 for axis in axes):
        return tensor
    return tf.pad(tensor, [[0, axis.at(new_path) - axis.at(path)] for axis in axes])
