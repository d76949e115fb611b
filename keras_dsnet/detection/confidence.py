"""How sure a detector is that it has found all objects of an image."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_dsnet.detection.multibox import BACKGROUND

# The product of zero and the logarithm of this number is zero.
_SMALLEST = np.finfo("float32").tiny
# Scores that say neither yes nor no.
_LOW, _HIGH = 0.3, 0.7


def largest_score(scores: tf.Tensor) -> tf.Tensor:
    """Returns the largest probability of any class and anchor.

    Args:
        scores: float32 `[batch, anchors, classes + 1]`, logits.

    Returns:
        float32 `[batch]`, from 0 to 1.
    """
    return _largest(_probabilities(scores))


def clear_scores(scores: tf.Tensor) -> tf.Tensor:
    """Returns `1 / (1 + n)`, where n is the number of probabilities between 0.3 and 0.7.

    Args:
        scores: float32 `[batch, anchors, classes + 1]`, logits.

    Returns:
        float32 `[batch]`, from 0 to 1.
    """
    return _clear(_probabilities(scores))


def low_entropy(scores: tf.Tensor) -> tf.Tensor:
    """Returns 1 less the mean entropy of the anchors, relative to that of equal probabilities.

    Args:
        scores: float32 `[batch, anchors, classes + 1]`, logits.

    Returns:
        float32 `[batch]`, from 0 to 1.
    """
    logarithms = tf.nn.log_softmax(tf.cast(scores, tf.float32))
    entropy = -tf.reduce_sum(tf.exp(logarithms) * logarithms, -1)
    most = tf.math.log(tf.cast(tf.shape(scores)[-1], tf.float32))
    return 1.0 - tf.reduce_mean(entropy, 1) / most


def _probabilities(scores):
    """Returns the probabilities of all classes but the background."""
    return tf.nn.softmax(tf.cast(scores, tf.float32))[..., BACKGROUND + 1 :]


def _largest(probabilities):
    return tf.reduce_max(probabilities, (1, 2))


def _clear(probabilities):
    unclear = tf.logical_and(probabilities > _LOW, probabilities < _HIGH)
    count = tf.reduce_sum(tf.cast(unclear, tf.float32), (1, 2))
    # The sum is not a number where a probability is none, and compares as False.
    is_number = tf.reduce_sum(probabilities, (1, 2)) >= 0.0
    return tf.where(is_number, 1.0 / (1.0 + count), 0.0)


def _low_entropy(probabilities):
    background = tf.maximum(1.0 - tf.reduce_sum(probabilities, -1, keepdims=True), 0.0)
    every = tf.concat([background, probabilities], -1)
    entropy = -tf.reduce_sum(every * tf.math.log(tf.maximum(every, _SMALLEST)), -1)
    return 1.0 - tf.reduce_mean(entropy, 1) / np.log(float(every.shape[-1]))


CONFIDENCES: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "largest_score": largest_score,
    "clear_scores": clear_scores,
    "low_entropy": low_entropy,
}
# The same of the probabilities of all classes but the background, which exported files return.
CONFIDENCES_OF_PROBABILITIES: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "largest_score": _largest,
    "clear_scores": _clear,
    "low_entropy": _low_entropy,
}
