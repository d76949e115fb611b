"""The losses of both training stages: cross entropies with labels, teachers, gate targets."""

from collections.abc import Sequence

import tensorflow as tf

from keras_dsnet.layers import DoubleHeadedGate
from keras_dsnet.utils.batch_checks import class_numbers


def label_cross_entropy(
    labels: tf.Tensor,
    logits: tf.Tensor,
    label_smoothing: float = 0.0,
    weights: tf.Tensor | None = None,
) -> tf.Tensor:
    """Returns the mean cross entropy between labels and logits (the first of Eqs. 5).

    Args:
        labels: Int tensor `[batch]`, or probabilities `[batch, classes]`.
        logits: Tensor `[batch, classes]`.
        label_smoothing: Float in [0, 1). Defaults to `0.0`.
        weights: Float tensor `[batch]`, see `weighted_mean`.

    Returns:
        float32 scalar.
    """
    return weighted_mean(label_cross_entropies(labels, logits, label_smoothing), weights)


def label_cross_entropies(
    labels: tf.Tensor, logits: tf.Tensor, label_smoothing: float = 0.0
) -> tf.Tensor:
    """Returns the cross entropy of each image with its label (the first of Eqs. 5).

    Args:
        labels: Int tensor `[batch]`, or probabilities `[batch, classes]`.
        logits: Tensor `[batch, classes]`.
        label_smoothing: Float in [0, 1). Defaults to `0.0`.

    Returns:
        float32 tensor `[batch]`.
    """
    logits = tf.cast(logits, tf.float32)
    classes = logits.shape[-1]
    if labels.shape.rank == 1 and not label_smoothing:
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    if labels.shape.rank == 1:
        labels = tf.one_hot(labels, classes)
    labels = tf.cast(labels, tf.float32) * (1.0 - label_smoothing) + label_smoothing / classes
    return tf.nn.softmax_cross_entropy_with_logits(labels, logits)


def soft_cross_entropy(
    probabilities: tf.Tensor,
    logits: tf.Tensor,
    temperature: float = 1.0,
    weights: tf.Tensor | None = None,
    scaled: bool = True,
) -> tf.Tensor:
    """Returns the mean cross entropy between a teacher's probabilities and logits (Eqs. 5).

    The loss is multiplied by the square of the temperature, which keeps the scale of its gradients
    (ref. 23 of the paper), unless `scaled` is False.

    Args:
        probabilities: Tensor `[batch, classes]`, of the teacher at the same temperature.
        logits: Tensor `[batch, classes]`.
        temperature: Float. Defaults to `1.0`.
        weights: Float tensor `[batch]`, see `weighted_mean`.
        scaled: Bool. Defaults to `True`.

    Returns:
        float32 scalar.
    """
    logits = tf.cast(logits, tf.float32) / temperature
    losses = tf.nn.softmax_cross_entropy_with_logits(probabilities, logits)
    return weighted_mean(losses, weights) * (temperature**2 if scaled else 1.0)


def gate_cross_entropy(
    gate: DoubleHeadedGate,
    scores: tf.Tensor,
    routes: Sequence[int],
    widest: tf.Tensor,
    weights: tf.Tensor | None = None,
) -> tf.Tensor:
    """Returns the SGS loss of one gate (Eq. 10). It is binary for a scalar slimming head.

    Args:
        gate: `DoubleHeadedGate`.
        scores: float32 tensor, the output of the gate's slimming head.
        routes: Tuple of ints, candidate widths.
        widest: Boolean tensor `[batch]`, whether the target of an image is the last route. The
            target of all others is the first route.
        weights: Float tensor `[batch]`, see `weighted_mean`.

    Returns:
        float32 scalar.
    """
    if gate.slimming_head == "scalar":
        targets = tf.cast(widest, tf.float32)[:, None]
        losses = tf.nn.sigmoid_cross_entropy_with_logits(targets, scores)[:, 0]
        return weighted_mean(losses, weights)
    targets = tf.cast(widest, tf.int32) * (len(routes) - 1)
    logits = gate.route_scores(scores, routes)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
    return weighted_mean(losses, weights)


def weighted_mean(losses: tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
    """Returns the loss of a batch: the sum of the weighted losses over the number of images.

    Keras treats sample weights in the same way, without normalizing them.

    Args:
        losses: Float tensor `[batch]`.
        weights: Float tensor `[batch]`. All weights are 1 by default.
    """
    return tf.reduce_mean(losses if weights is None else losses * weights)


def is_right(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns which images are classified correctly.

    Args:
        labels: Int tensor `[batch]`, or probabilities `[batch, classes]`, whose maximum is the
            class.
        logits: Tensor `[batch, classes]`.

    Returns:
        Boolean tensor `[batch]`.
    """
    chosen = tf.argmax(logits, axis=1, output_type=tf.int32)
    # The result of `==` has no rank if the shapes are not all known.
    return tf.equal(chosen, tf.cast(class_numbers(labels), tf.int32))
