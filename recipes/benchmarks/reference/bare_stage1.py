"""Stage I in bare TensorFlow: the reference of `benchmark_training.py`.

A step does In-place Ensemble Bootstrapping (Eq. 3 to 5 of the paper) with two random sub-networks,
and one trace serves all widths. The other files of this folder hold the networks that it trains,
which are subclasses of `BareNetwork`.

Nothing here uses Keras or this package. The code is written to be fast on a CPU: 1x1 convolutions
are matrix products, and the gradient of Swish reuses its derivative. Vectors of equal length are
packed into one matrix, and the slices of a sub-network are taken once and shared by all layers.
"""

import math
from typing import NamedTuple

import tensorflow as tf

FRONT, TAIL = 0, 1
EPSILON = 1e-5
MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
EMA_MOMENTUM = 0.997
BN_MOMENTUM = 0.9


class BareStageOne:
    """Trains a network by the steps of stage I.

    Args:
        net: `BareNetwork` to train.
        batch_size: Int, images per step.
        image_size: Int, side of the square images in pixels.
        learning_rate: Float. Defaults to 0.05.
        seed: Int, seed of the random widths. Defaults to 0.
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
        """Draws the two random paths of a step.

        With one gate the widths are interior ones, in ascending order. With several gates each
        width is drawn from all widths.

        Returns:
            int32 tensor `[2, gates]`.
        """
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
        # Narrow sub-networks come first, because their gradients are small.
        for index, path in enumerate(paths):
            # Sub-networks run one after another, so that only one holds its activations.
            with tf.control_dependencies(list(total.values())):
                inputs = tf.identity(features)
            loss, gradients = self._learn(index, path, inputs, labels, teacher, values[TAIL])
            losses.append(loss)
            features_gradient += gradients.pop("features")
            last, reached = reached, path
            if index == 2 and gates > 1:
                # The slimmest path is part of every path, and the widest contains every path. Of
                # the two random paths either can be the wider one at a gate.
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
        """Returns the loss of one sub-network (Eq. 5) and the gradients of its slices."""
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
        """Adds the gradients along `path` to the sums so far.

        The sums cover the path `last` before the addition, and `reached` after it.
        """
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
        """Applies Nesterov SGD with L2 weight decay, then moves the teacher's average (Eq. 3)."""
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
    """Pads a slice along `path` to the size along `new_path`, which is at least as wide."""
    if path is new_path or all(len(axis.options) == 1 for axis in axes):
        return tensor
    return tf.pad(tensor, [[0, axis.at(new_path) - axis.at(path)] for axis in axes])


class BareNetwork:
    """The base of the reference networks.

    A network has two halves: the front ends at the first slimming gate, and the tail follows it.
    A subclass creates its variables in `_make_front` and `_make_tail`, and runs the halves in
    `front(x, values, norm)` and `tail(x, values, norm)`.

    Args:
        spec: Object with the fields of the package's network spec.
        classes: Int, number of classes.
        seed: Int, seed of the weights. Defaults to 0.
    """

    def __init__(self, spec, classes, seed=0):
        self.spec = spec
        self.seed = seed
        self.num_gates = sum(stage.gated for stage in spec.stages)
        self.num_widths = next(len(stage.channels) for stage in spec.stages if stage.gated)
        self.parameters, self.vectors, self.norms = ({}, {}), ({}, {}), ({}, {})
        self._make_front()
        self._add_classifier(self._make_tail(), classes)
        self.statistics = [self._pack(half) for half in (FRONT, TAIL)]

    def _he_normal(self, shape, fan_in):
        seed = (self.seed, sum(map(len, self.parameters)))
        return tf.random.stateless_normal(shape, seed) * math.sqrt(2.0 / fan_in)

    def _add(self, half, name, value, axes=None, decayed=False):
        variables = tf.Variable(value), tf.Variable(tf.zeros_like(value)), tf.Variable(value)
        axes = axes or [None] * len(value.shape)
        axes = tuple(axis or Channels((size,)) for axis, size in zip(axes, value.shape))
        self.parameters[half][name] = Parameter(*variables, axes, decayed)

    def _add_vector(self, half, name, channels):
        self.vectors[half].setdefault(channels, []).append(name)

    def _add_norm(self, half, name, channels, has_statistics=True):
        if has_statistics:
            self.norms[half].setdefault(channels, []).append(name)
        self._add_vector(half, f"{name}/gamma", channels)
        self._add_vector(half, f"{name}/beta", channels)

    def _add_conv(self, half, name, inputs, outputs, size=1):
        shape, axes = (inputs.most, outputs.most), (inputs, outputs)
        if size > 1:
            shape, axes = (size, size, *shape), (None, None, *axes)
        kernel = self._he_normal(shape, size * size * inputs.most)
        self._add(half, f"{name}/kernel", kernel, axes, decayed=True)

    def _add_depthwise(self, half, name, channels, size=3):
        kernel = self._he_normal((size, size, channels.most, 1), size * size)
        self._add(half, f"{name}/kernel", kernel, (None, None, channels, None), decayed=True)

    def _add_gate(self, half, name, channels, hidden):
        most = channels.most
        self._add(half, f"{name}/w1", self._he_normal((most, hidden), most), (channels, None))
        self._add_vector(half, f"{name}/b1", Channels((hidden,)))
        self._add(half, f"{name}/w3", tf.zeros((hidden, most)), (None, channels))
        self._add_vector(half, f"{name}/b3", channels)

    def _add_classifier(self, features, classes):
        kernel = self._he_normal((features.most, classes), 2 * features.most)
        self._add(TAIL, "classifier/kernel", kernel, (features, None), decayed=True)
        self._add_vector(TAIL, "classifier/bias", Channels((classes,)))

    def _pack(self, half):
        """Packs vectors of equal length into one matrix, and their statistics into one table."""
        for channels, names in self.vectors[half].items():
            start = [[float(name.endswith("gamma"))] for name in names]
            matrix = start * tf.ones((1, channels.most))
            self._add(half, f"vectors {channels}", matrix, (None, channels))
        tables = {}
        for channels, names in self.norms[half].items():
            shape = (self.num_widths if half else 1, 1, len(names), channels.most)
            table = tf.concat([tf.zeros(shape), tf.ones(shape)], axis=1)
            tables[channels] = tf.Variable(table), tf.Variable(table)
        return tables

    def slice_at(self, half, values, path):
        """Returns the slices of all values of a half along a path (Eq. 2)."""
        slices = {}
        for name, value in values.items():
            axes = self.parameters[half][name].axes
            ends = [axis.at(path) for axis in axes]
            # Only a slice without an end keeps the static size of an axis that is not cut.
            cuts = [None if _is(end, axis.most) else end for end, axis in zip(ends, axes)]
            # A slice that cuts nothing off would still copy its gradient.
            whole = all(cut is None for cut in cuts)
            slices[name] = value if whole else value[tuple(map(slice, cuts))]
        return slices

    def unpack(self, half, slices):
        """Returns the slices, with the packed vectors split up again and listed by name."""
        named = dict(slices)
        for channels, names in self.vectors[half].items():
            named.update(zip(names, tf.unstack(slices[f"vectors {channels}"], len(names))))
        return named


class Channels(NamedTuple):
    """Channel options, and the index of the gate that chooses among them.

    A single option means a static number of channels.
    """

    options: tuple
    gate: int = 0

    @property
    def most(self):
        return self.options[-1]

    def at(self, path):
        """Returns the channel count along a path.

        Args:
            path: Sequence of widths, one per gate, as ints or scalar tensors.

        Returns:
            Int where the width is an int or the count is static, otherwise a scalar tensor.
        """
        if len(self.options) == 1:
            return self.options[0]
        width = path[self.gate]
        return self.options[width] if isinstance(width, int) else tf.gather(self.options, width)


class Parameter(NamedTuple):
    """A variable with its velocity and moving average; `axes` has the `Channels` of each axis."""

    variable: tf.Variable
    velocity: tf.Variable
    average: tf.Variable
    axes: tuple
    decayed: bool


class TrainingNorm:
    """Batch norm that uses the statistics of the batch and records them."""

    def __init__(self):
        self.means, self.variances = {}, {}

    def __call__(self, name, x, gamma, beta):
        outputs, self.means[name], self.variances[name] = batch_norm(x, gamma, beta)
        return outputs


class MovingNorm:
    """Batch norm that uses the teacher's averaged statistics of one half along a path."""

    def __init__(self, net, half, path):
        self.means, self.variances = {}, {}
        for channels, names in net.norms[half].items():
            row = net.statistics[half][channels][1].sparse_read(path[0] if half else 0)
            means, variances = tf.unstack(row[..., : channels.at(path)])
            self.means.update(zip(names, tf.unstack(means, len(names))))
            self.variances.update(zip(names, tf.unstack(variances, len(names))))

    def __call__(self, name, x, gamma, beta):
        return batch_norm(x, gamma, beta, self.means[name], self.variances[name])[0]


def _is(size, count):
    return isinstance(size, int) and size == count


def named(values, name, *keys):
    """Returns the values of one layer, which are listed as `name/key` for each key."""
    return [values[f"{name}/{key}"] for key in keys]


def classify(x, values):
    """Returns the logits of features: average pooling and the classifier."""
    kernel, bias = named(values, "classifier", "kernel", "bias")
    return tf.matmul(tf.reduce_mean(x, (1, 2)), kernel) + bias


@tf.custom_gradient
def swish(x):
    """Returns `x * sigmoid(x)` and stores the derivative for the gradient instead of `x`."""
    gate = tf.sigmoid(x)
    derivative = gate + tf.raw_ops.SigmoidGrad(y=gate, dy=x)
    return x * gate, lambda gradient: gradient * derivative


def convolve(x, kernel, stride=1):
    """Applies a convolution with symmetric padding; a kernel with two axes is a 1x1 convolution."""
    if len(kernel.shape) > 2:
        return tf.nn.conv2d(x, kernel, stride, _padding(kernel.shape[0], stride))
    if stride > 1:
        # A pool of single pixels takes every other pixel; its gradient is faster than a slice's.
        x = tf.nn.avg_pool2d(x, 1, stride, "VALID")
    sizes = tf.unstack(tf.shape(kernel))
    rows, columns = (static or size for static, size in zip(kernel.shape, sizes))
    return tf.reshape(tf.matmul(tf.reshape(x, (-1, rows)), kernel), (*x.shape[:3], columns))


def depthwise(x, kernel, stride):
    """Applies a depthwise convolution with symmetric padding."""
    size = kernel.shape[0]
    # oneDNN's filter gradient is slow where features are smaller than the kernel. With explicit
    # padding TensorFlow uses another implementation.
    padding = _explicit(size) if x.shape[1] < size else _padding(size, stride)
    return tf.nn.depthwise_conv2d(x, kernel, (1, stride, stride, 1), padding)


def _padding(size, stride):
    return "SAME" if stride == 1 else _explicit(size)


def _explicit(size):
    pad = [size // 2] * 2
    return [[0, 0], pad, pad, [0, 0]]


def attend(x, w1, b1, w3, b3):
    """Applies the attention head of a gate (Eq. 9)."""
    hidden = tf.nn.relu(tf.matmul(tf.reduce_mean(x, (1, 2)), w1) + b1)
    scale = 1.0 + tf.tanh(tf.matmul(hidden, w3) + b3)
    return x * scale[:, None, None, :]


def group_norm(x, gamma, beta, size):
    """Applies group norm with `size` channels per group (Sec. 4).

    The moments of a group are computed from the moments of its channels.
    """

    @tf.custom_gradient
    def normalize(x, gamma, beta):
        channels = tf.shape(gamma)[0]
        rows, groups = (-1, 1, 1, channels), (-1, channels // size, size)
        means, variances = (tf.reshape(m, groups) for m in tf.nn.moments(x, (1, 2)))
        mean = _over_group(means)
        between = tf.math.squared_difference(means, mean)
        inverse = tf.math.rsqrt(_over_group(variances + between) + EPSILON)
        gammas = tf.reshape(gamma, groups[1:])
        scale = inverse * gammas
        offset = tf.reshape(beta, groups[1:]) - mean * scale

        def gradient(outer):
            # Means over the pixels of the gradient, and of the gradient times the normalised input.
            plain = tf.reshape(tf.reduce_mean(outer, (1, 2)), groups)
            times_x = tf.reshape(tf.reduce_mean(outer * x, (1, 2)), groups)
            times_x = inverse * (times_x - mean * plain)
            factor = -inverse * inverse * _over_group(gammas * times_x)
            constant = -inverse * _over_group(gammas * plain) - factor * mean
            factor, constant = (
                tf.reshape(tf.repeat(v, size, axis=2), rows) for v in (factor, constant)
            )
            inner = outer * tf.reshape(scale, rows) + (x * factor + constant)
            pixels = float(x.shape[1] * x.shape[2])
            sums = (pixels * tf.reduce_sum(v, 0) for v in (times_x, plain))
            return inner, *(tf.reshape(v, (-1,)) for v in sums)

        return x * tf.reshape(scale, rows) + tf.reshape(offset, rows), gradient

    return tf.ensure_shape(normalize(x, gamma, beta), x.shape)


def _over_group(values):
    return tf.reduce_mean(values, 2, keepdims=True)


def batch_norm(x, gamma, beta, mean=None, variance=None):
    """Applies batch norm with the given statistics; by default with those of the batch.

    Returns:
        Tuple `(outputs, mean, variance)`.
    """
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=gamma,
        offset=beta,
        mean=[] if mean is None else mean,
        variance=[] if variance is None else variance,
        epsilon=EPSILON,
        is_training=mean is None,
    )
    return outputs, mean, variance
