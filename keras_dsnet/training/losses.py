"""Cross entropies of both training stages."""

import tensorflow as tf


def label_cross_entropy(labels, logits, label_smoothing=0.0):
    """Returns the mean cross entropy between labels and logits (the first of Eqs. 5).

    Args:
        labels: int `[batch]`, or probabilities `[batch, classes]`.
        logits: `[batch, classes]`.
        label_smoothing: float.
    """
    logits = tf.cast(logits, tf.float32)
    classes = logits.shape[-1]
    if labels.shape.rank == 1 and not label_smoothing:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return tf.reduce_mean(losses)
    if labels.shape.rank == 1:
        labels = tf.one_hot(labels, classes)
    labels = tf.cast(labels, tf.float32) * (1.0 - label_smoothing) + label_smoothing / classes
    return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels, logits))


def soft_cross_entropy(probabilities, logits, temperature=1.0):
    """Returns the mean cross entropy between a teacher's probabilities and logits (Eqs. 5).

    With a temperature the loss is multiplied by its square, which keeps the size of its gradients
    (ref. 23 of the paper).

    Args:
        probabilities: `[batch, classes]`, the teacher's at the same temperature.
        logits: `[batch, classes]`.
        temperature: float.
    """
    logits = tf.cast(logits, tf.float32) / temperature
    losses = tf.nn.softmax_cross_entropy_with_logits(probabilities, logits)
    return tf.reduce_mean(losses) * temperature**2


def gate_cross_entropy(gate, scores, routes, widest):
    """Returns the SGS loss of one gate, from its scores (Eq. 10).

    Args:
        gate: `DoubleHeadedGate`.
        scores: the slimming head's output, float32.
        routes: tuple of candidate widths.
        widest: bool `[batch]`: whether an image should take the last of the routes; else the first.
            For a scalar head the loss is binary.
    """
    if gate.slimming_head == "scalar":
        targets = tf.cast(widest, tf.float32)[:, None]
        return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(targets, scores))
    targets = tf.cast(widest, tf.int32) * (len(routes) - 1)
    logits = gate.route_scores(scores, routes)
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits))
