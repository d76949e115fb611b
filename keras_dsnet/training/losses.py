"""Cross entropies of both training stages."""

import tensorflow as tf

from keras_dsnet.utils.batch_checks import class_numbers


def weighted_mean(losses, weights=None):
    """Returns the loss of a batch: the sum of the weighted losses over the number of images.

    It is what Keras makes of sample weights, which are not normalised.

    Args:
        losses: `[batch]`.
        weights: `[batch]`; None: all 1.
    """
    return tf.reduce_mean(losses if weights is None else losses * weights)


def label_cross_entropies(labels, logits, label_smoothing=0.0):
    """Returns the cross entropy of each image, float32 `[batch]` (the first of Eqs. 5).

    Args:
        labels: int `[batch]`, or probabilities `[batch, classes]`.
        logits: `[batch, classes]`.
        label_smoothing: float.
    """
    logits = tf.cast(logits, tf.float32)
    classes = logits.shape[-1]
    if labels.shape.rank == 1 and not label_smoothing:
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    if labels.shape.rank == 1:
        labels = tf.one_hot(labels, classes)
    labels = tf.cast(labels, tf.float32) * (1.0 - label_smoothing) + label_smoothing / classes
    return tf.nn.softmax_cross_entropy_with_logits(labels, logits)


def label_cross_entropy(labels, logits, label_smoothing=0.0, weights=None):
    """Returns the mean cross entropy between labels and logits (the first of Eqs. 5).

    Args:
        labels: int `[batch]`, or probabilities `[batch, classes]`.
        logits: `[batch, classes]`.
        label_smoothing: float.
        weights: as of `weighted_mean`.
    """
    return weighted_mean(label_cross_entropies(labels, logits, label_smoothing), weights)


def soft_cross_entropy(probabilities, logits, temperature=1.0, weights=None):
    """Returns the mean cross entropy between a teacher's probabilities and logits (Eqs. 5).

    With a temperature the loss is multiplied by its square, which keeps the size of its gradients
    (ref. 23 of the paper).

    Args:
        probabilities: `[batch, classes]`, the teacher's at the same temperature.
        logits: `[batch, classes]`.
        temperature: float.
        weights: as of `weighted_mean`.
    """
    logits = tf.cast(logits, tf.float32) / temperature
    losses = tf.nn.softmax_cross_entropy_with_logits(probabilities, logits)
    return weighted_mean(losses, weights) * temperature**2


def is_right(labels, logits):
    """Returns which images are classified rightly, bool `[batch]`.

    Args:
        labels: int `[batch]`, or probabilities `[batch, classes]`, of which the likeliest counts.
        logits: `[batch, classes]`.
    """
    chosen = tf.argmax(logits, axis=1, output_type=tf.int32)
    # Not by `==`, whose result has no rank where the shapes are not all known.
    return tf.equal(chosen, tf.cast(class_numbers(labels), tf.int32))


def gate_cross_entropy(gate, scores, routes, widest, weights=None):
    """Returns the SGS loss of one gate, from its scores (Eq. 10).

    Args:
        gate: `DoubleHeadedGate`.
        scores: the slimming head's output, float32.
        routes: tuple of candidate widths.
        widest: bool `[batch]`: whether an image should take the last of the routes; else the first.
            For a scalar head the loss is binary.
        weights: as of `weighted_mean`.
    """
    if gate.slimming_head == "scalar":
        targets = tf.cast(widest, tf.float32)[:, None]
        losses = tf.nn.sigmoid_cross_entropy_with_logits(targets, scores)[:, 0]
        return weighted_mean(losses, weights)
    targets = tf.cast(widest, tf.int32) * (len(routes) - 1)
    logits = gate.route_scores(scores, routes)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
    return weighted_mean(losses, weights)
