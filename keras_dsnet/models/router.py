"""Batched dynamic inference: every image runs its own sub-network, and nothing else."""

import numpy as np
import tensorflow as tf


class Router:
    """Splits a batch by the widths that the gates choose and runs each part sliced.

    Sec. 3.2 of the paper for a whole batch: the images that chose the same width go through the
    same sub-network together, at its own shapes, and the results are put back in order. At the
    next gate the batch is split anew.

    Args:
        network: a `DynamicSlimmableNetwork`.
    """

    def __init__(self, network):
        self._network = network

    def __call__(self, images, routes):
        """Routes a batch.

        Args:
            images: `[batch, height, width, 3]`.
            routes: tuple of candidate widths.

        Returns:
            `(outputs, widths)`: the last section's outputs, and int32 `[batch, num_gates]`.
        """
        groups, widths = self._route(images, routes, self._network.num_gates)
        outputs = [group[2] for group in groups]
        if not self._network.include_top:
            # Of any batch as many: a layer behind the network has one number of channels.
            channels = self._network.output_shape[-1]
            outputs = [_padded(output, channels) for output in outputs]
        return _in_order([group[1] for group in groups], outputs), widths

    def choose(self, images, routes):
        """Returns the chosen widths alone, int32 `[batch, num_gates]`.

        The sections behind the last gate are not run.
        """
        return self._route(images, routes, self._network.num_gates - 1)[1]

    def _route(self, images, routes, last_section):
        """Returns the groups behind section `last_section`, and the widths that were chosen.

        A group is `(width, indices of its images, outputs, scores)`.
        """
        network = self._network
        split = _split_eagerly if tf.executing_eagerly() else _split_in_graph
        order = tf.range(tf.shape(images)[0])
        outputs, scores = network.run_section(0, None, (0, 0), images)
        groups, chosen = [(0, order, outputs, scores)], []
        for section, gate in enumerate(network.slimming_gates, start=1):
            choices = [(w, i, x, gate.choose(s, routes)) for w, i, x, s in groups]
            chosen.append(_in_order([c[1] for c in choices], [c[3] for c in choices]))
            if section > last_section:
                break
            groups = []
            for width in routes:
                parts = [
                    split(self._runner(section, before, width), x, index, choice, width)
                    for before, index, x, choice in choices
                ]
                parts = [part for part in parts if part is not None]
                if parts:
                    groups.append((width, *_merge(parts)))
        return groups, tf.stack(chosen, axis=1)

    def _runner(self, section, before, width):
        def run(x):
            return self._network.run_section(section, (before, before), (width, width), x)

        return run


def _split_eagerly(run, x, index, choice, width):
    """Runs the images that chose `width`; None where there are none."""
    mine = np.flatnonzero(choice.numpy() == width)
    if not mine.size:
        return None
    # A batch that all goes one way needs no copy.
    if mine.size < choice.shape[0]:
        x, index = tf.gather(x, mine), tf.gather(index, mine)
    return (index, *run(x))


def _split_in_graph(run, x, index, choice, width):
    """Inside a traced function every width has a branch, which runs where an image chose it."""
    mine = tf.where(choice == width)[:, 0]
    x, index = tf.gather(x, mine), tf.gather(index, mine)
    traced = tf.function(run, autograph=False).get_concrete_function(
        tf.TensorSpec(x.shape, x.dtype)
    )
    empty = [spec for spec in traced.structured_outputs if spec is not None]

    def chosen():
        return [output for output in traced(x) if output is not None]

    def none_chosen():
        if all(None not in spec.shape[1:] for spec in empty):
            return [tf.zeros((0, *spec.shape[1:]), spec.dtype) for spec in empty]
        # The size of the features is open: one blank image tells it.
        blank = tf.zeros(tf.concat([[1], tf.shape(x)[1:]], 0), x.dtype)
        return [output[:0] for output in traced(blank) if output is not None]

    outputs = tf.cond(tf.size(mine) > 0, chosen, none_chosen)
    return (index, outputs[0], outputs[1] if len(outputs) == 2 else None)


def _merge(parts):
    """Joins what came to one width from several widths before: `(index, outputs, scores)`."""
    if len(parts) == 1:
        return parts[0]
    return tuple(None if part[0] is None else tf.concat(part, 0) for part in zip(*parts))


def _in_order(indices, values):
    """Puts the rows of the groups back into the order of the batch."""
    # One group may still be a merge of several, in the order of the gate before.
    if len(indices) == 1 and tf.executing_eagerly() and np.all(np.diff(indices[0]) > 0):
        return values[0]
    return tf.gather(tf.concat(values, 0), tf.math.invert_permutation(tf.concat(indices, 0)))


def _padded(features, channels):
    """Adds channels of zeros, up to `channels`."""
    missing = channels - features.shape[-1]
    if not missing:
        return features
    return tf.pad(features, [[0, 0]] * (len(features.shape) - 1) + [[0, missing]])
