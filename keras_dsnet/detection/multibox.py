"""The multibox loss of SSD (Liu et al., 2016, section 2.2): matching, offsets, hard negatives."""

from typing import Any, NamedTuple

import tensorflow as tf

from keras_dsnet.detection.boxes import PADDING, box_iou, smooth_l1_loss
from keras_dsnet.utils.argument_checks import check_number

# The standard deviations of offsets of centres and of logarithms of sizes.
VARIANCES = (0.1, 0.1, 0.2, 0.2)
# The class 0 of the scores; class `c` of a data set has the score `c + 1`.
BACKGROUND = 0
CLASSIFICATION_LOSSES = ("cross_entropy", "focal")
_MATCHED_IOU = 0.5
_FOCUS = 2.0
# An image without boxes learns from as many anchors as one with a single matched anchor. With none,
# as in SSD, photographs of the empty scene would teach nothing.
_LEAST_POSITIVES = 1
_SMALLEST_SIDE = 1e-6


class Matches(NamedTuple):
    """What the anchors of a batch should predict.

    Args:
        offsets: float32 tensor `[batch, anchors, 4]`, the offsets of the box that an anchor is
            matched with. Zeros where there is none.
        labels: int32 tensor `[batch, anchors]`, `BACKGROUND` or a class plus 1.
    """

    offsets: tf.Tensor
    labels: tf.Tensor

    @property
    def positive(self) -> tf.Tensor:
        """Whether an anchor is matched with a box, bool `[batch, anchors]`."""
        return tf.not_equal(self.labels, BACKGROUND)


def match_anchors(boxes: tf.Tensor, classes: tf.Tensor, anchors: Any) -> Matches:
    """Matches boxes with anchors as SSD does.

    First every box gets an anchor, that of its largest overlap (IoU). Where several boxes want the
    same anchor, the pair that overlaps most is matched first, and the others get their next best.
    Then each anchor that is left is matched with the box that it overlaps most, if that overlap is
    at least 0.5. Objects that are marked as difficult are matched like all others if the data have
    them, as in SSD.

    Args:
        boxes: float32 tensor `[batch, n, 4]`, in the format `"rel_yxyx"`, padded with -1.
        classes: Tensor `[batch, n]` of class numbers, padded with -1. `n` may be 0.
        anchors: float32 array `[anchors, 4]`, in the format `"rel_yxyx"`.

    Returns:
        `Matches`. An image without boxes has no matched anchor.
    """
    anchors = tf.convert_to_tensor(anchors, tf.float32)
    boxes, classes = tf.cast(boxes, tf.float32), tf.cast(classes, tf.int32)
    # A row of padding stands for no box and makes every reduction over boxes well-defined.
    boxes = tf.pad(boxes, [[0, 0], [0, 1], [0, 0]], constant_values=float(PADDING))
    classes = tf.pad(classes, [[0, 0], [0, 1]], constant_values=PADDING)
    is_object = classes >= 0
    repeated = tf.tile(anchors[tf.newaxis], [tf.shape(boxes)[0], 1, 1])
    # The anchors come last, because TensorFlow is slow where the last axis is short.
    overlaps = tf.where(is_object[..., tf.newaxis], box_iou(boxes, repeated), float(PADDING))
    nearest = tf.argmax(overlaps, axis=1, output_type=tf.int32)
    matched = tf.reduce_max(overlaps, axis=1) >= _MATCHED_IOU
    chosen = _anchor_of_each_box(overlaps)
    # Anchors that a box has chosen go to that box, also from a box that they overlap more.
    owners = tf.where(chosen >= 0)
    taken = tf.stack([tf.cast(owners[:, 0], tf.int32), tf.gather_nd(chosen, owners)], axis=1)
    nearest = tf.tensor_scatter_nd_update(nearest, taken, tf.cast(owners[:, 1], tf.int32))
    matched = tf.tensor_scatter_nd_update(matched, taken, tf.ones_like(owners[:, 0], tf.bool))
    labels = tf.where(matched, tf.gather(classes, nearest, batch_dims=1) + 1, BACKGROUND)
    # Few anchors are matched, so the offsets of the others are not computed.
    places = tf.where(matched)
    pairs = tf.stack([places[:, 0], tf.cast(tf.gather_nd(nearest, places), tf.int64)], axis=1)
    offsets = encode_boxes(tf.gather_nd(boxes, pairs), tf.gather(anchors, places[:, 1]))
    shape = tf.concat([tf.shape(matched), [4]], axis=0)
    return Matches(tf.scatter_nd(places, offsets, tf.cast(shape, tf.int64)), labels)


def _anchor_of_each_box(overlaps):
    """Returns the anchor that each box is matched with first, -1 for none.

    Args:
        overlaps: float32 tensor `[batch, n, anchors]`, -1 for padding.

    Returns:
        int32 tensor `[batch, n]`, of distinct anchors in an image.
    """
    shape = tf.shape(overlaps)
    batch, number = shape[0], shape[1]
    # At most `n - 1` anchors of a box are lost to other boxes, so its `n` best ones are enough.
    kept = tf.minimum(number, shape[2])
    values, anchors = tf.math.top_k(overlaps, k=kept)
    anchors = tf.reshape(anchors, [batch, -1])
    boxes = tf.repeat(tf.range(number), kept)[tf.newaxis]

    def match_one(values, chosen):
        best = tf.argmax(values, axis=1, output_type=tf.int32)[:, tf.newaxis]
        overlap = tf.gather(values, best, batch_dims=1)
        box = tf.gather(boxes[0], best)
        anchor = tf.gather(anchors, best, batch_dims=1)
        is_new = overlap > 0
        chosen = tf.where((tf.range(number)[tf.newaxis] == box) & is_new, anchor, chosen)
        is_used = (boxes == box) | (anchors == anchor)
        return tf.where(is_used & is_new, float(PADDING), values), chosen

    _, chosen = tf.while_loop(
        lambda values, _: tf.reduce_any(values > 0),
        match_one,
        (tf.reshape(values, [batch, -1]), tf.fill([batch, number], PADDING)),
        shape_invariants=(tf.TensorShape([None, None]), tf.TensorShape([None, None])),
    )
    return tf.stop_gradient(chosen)


def encode_boxes(boxes: tf.Tensor, anchors: Any) -> tf.Tensor:
    """Returns the offsets from anchors to boxes, the inverse of `decode_boxes`.

    Args:
        boxes: float32 tensor `[..., anchors, 4]`, in the format `"rel_yxyx"`.
        anchors: float32 array `[anchors, 4]`, in the format `"rel_yxyx"`.

    Returns:
        float32 tensor `[..., anchors, 4]`: the distance of the centres (y, x) over the anchor's
        height and width, and the logarithm of the ratio of the heights and widths, each divided by
        its entry of `VARIANCES`.
    """
    centre, size = _centre_and_size(tf.cast(boxes, tf.float32))
    anchor_centre, anchor_size = _centre_and_size(tf.convert_to_tensor(anchors, tf.float32))
    # Padding has no size; its offsets are not used, and must still be finite.
    ratio = tf.maximum(size, _SMALLEST_SIDE) / anchor_size
    offsets = tf.concat([(centre - anchor_centre) / anchor_size, tf.math.log(ratio)], axis=-1)
    return offsets / tf.constant(VARIANCES)


def decode_boxes(offsets: tf.Tensor, anchors: Any) -> tf.Tensor:
    """Returns the boxes that offsets from anchors stand for.

    Args:
        offsets: Float tensor `[..., anchors, 4]`, as of `encode_boxes`.
        anchors: float32 array `[anchors, 4]`, in the format `"rel_yxyx"`.

    Returns:
        float32 tensor `[..., anchors, 4]`, in the format `"rel_yxyx"`. Boxes can reach beyond the
        image.
    """
    offsets = tf.cast(offsets, tf.float32) * tf.constant(VARIANCES)
    centre, size = _centre_and_size(tf.convert_to_tensor(anchors, tf.float32))
    centre += offsets[..., :2] * size
    size = tf.exp(offsets[..., 2:]) * size
    return tf.concat([centre - size / 2, centre + size / 2], axis=-1)


def _centre_and_size(boxes):
    begin, end = boxes[..., :2], boxes[..., 2:]
    return (begin + end) / 2, end - begin


class MultiboxLoss:
    """The loss of SSD: smooth L1 of matched offsets, and cross entropy with hard negatives.

    All losses are sums over anchors, divided by the number of matched anchors of the global batch.
    They are computed in float32.

    Args:
        negative_ratio: Float, the number of negatives for each matched anchor of an image: those
            anchors of the background with the largest loss. An image without boxes has as many as
            an image with one matched anchor. Defaults to 3.
        classification: `"cross_entropy"`, or `"focal"` for the focal loss (Lin et al., 2017) of the
            softmax with gamma 2, summed over all anchors, none of which is left out. Defaults to
            `"cross_entropy"`.
        box_weight: Float, the weight of the loss of the offsets. Defaults to 1.

    Raises:
        ValueError: An argument has another value than those above.
    """

    def __init__(
        self,
        negative_ratio: float = 3.0,
        classification: str = "cross_entropy",
        box_weight: float = 1.0,
    ):
        if not isinstance(classification, str) or classification not in CLASSIFICATION_LOSSES:
            raise ValueError(
                f"`classification` must be one of {CLASSIFICATION_LOSSES}. "
                f"Received: classification={classification!r}"
            )
        self.classification = classification
        self.negative_ratio = check_number(
            "negative_ratio", negative_ratio, "positive", lambda ratio: ratio > 0
        )
        self.box_weight = check_number("box_weight", box_weight, "0 or more", lambda w: w >= 0)
        # The mean over the four offsets, which SSD sums.
        self._smooth_l1 = smooth_l1_loss()

    def __call__(
        self, matches: Matches, outputs: dict[str, tf.Tensor], teacher: dict | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the losses of each image, not yet divided by the number of matched anchors.

        Args:
            matches: `Matches` of the batch.
            outputs: Dict of the detector's raw `"boxes"`, `[batch, anchors, 4]`, and `"scores"`,
                `[batch, anchors, classes + 1]`.
            teacher: Raw outputs of a teacher. Its probabilities then replace the classes, at the
                same anchors: matched ones and hard negatives. The offsets stay those of the boxes,
                because a poor teacher's are unbounded. Defaults to no teacher.

        Returns:
            `(classification, boxes)`, float32 `[batch]` each. Their weighted sum is the loss.
        """
        logits = tf.cast(outputs["scores"], tf.float32)
        if self.classification == "focal":
            chosen = _Chosen(matches.positive)
            classification = self._focal(matches, logits, teacher)
        else:
            chosen = _Chosen(matches.positive, logits, self.negative_ratio)
            losses = _cross_entropies(
                chosen.of(matches.labels),
                chosen.of(logits),
                None if teacher is None else chosen.of(tf.cast(teacher["scores"], tf.float32)),
            )
            classification = tf.reduce_sum(tf.where(chosen.is_used, losses, 0.0), axis=1)
        found = chosen.of(tf.cast(outputs["boxes"], tf.float32))
        errors = 4.0 * self._smooth_l1(chosen.of(matches.offsets), found)
        return classification, tf.reduce_sum(tf.where(chosen.is_positive, errors, 0.0), axis=1)

    def _focal(self, matches, logits, teacher):
        losses = _cross_entropies(matches.labels, logits)
        # KerasCV's focal loss takes the sigmoid of each class, and these scores are a softmax.
        weights = (1.0 - tf.exp(-losses)) ** _FOCUS
        if teacher is not None:
            losses = _cross_entropies(None, logits, tf.cast(teacher["scores"], tf.float32))
            # The gradient of the weights would favour anchors on which the student disagrees.
            weights = tf.stop_gradient(weights)
        return tf.reduce_sum(losses * weights, axis=1)


def _cross_entropies(labels, logits, teacher_logits=None):
    """Returns the cross entropies with the labels, or with the probabilities of a teacher."""
    if teacher_logits is None:
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    return tf.nn.softmax_cross_entropy_with_logits(tf.nn.softmax(teacher_logits), logits)


class _Chosen:
    """The matched anchors of each image and, with `logits`, its hardest negatives.

    Few anchors of an image have a loss. The losses of these are computed and differentiated, which
    takes a fifth of the time of computing those of all anchors and masking them.

    Args:
        positive: Bool tensor `[batch, anchors]`, whether an anchor is matched.
        logits: float32 tensor `[batch, anchors, classes + 1]`. Defaults to no negatives.
        negative_ratio: Float, the number of negatives for each matched anchor.

    Attributes:
        is_used: Bool tensor `[batch, n]`, False for padding, where images have fewer anchors.
        is_positive: Bool tensor `[batch, n]`, whether an anchor is matched.
    """

    def __init__(self, positive, logits=None, negative_ratio=0.0):
        matched = tf.reduce_sum(tf.cast(positive, tf.int32), axis=1)
        if logits is None:
            rank = tf.cast(positive, tf.float32)
            count = matched
        else:
            # The loss of a negative falls as the probability of the background grows. A matched
            # anchor comes before all negatives. Of equal ones, `top_k` takes the first.
            background = tf.stop_gradient(tf.nn.softmax(logits)[..., BACKGROUND])
            rank = tf.where(positive, 1.0, -background)
            least = tf.maximum(matched, _LEAST_POSITIVES)
            count = matched + tf.cast(
                tf.round(tf.cast(least, tf.float32) * negative_ratio), tf.int32
            )
        most = tf.minimum(tf.reduce_max(count), tf.shape(positive)[1])
        # As many as the image with the most needs: a sort of all anchors takes ten times as long.
        _, self._anchors = tf.math.top_k(rank, most)
        places = tf.range(most)
        self.is_used = places < count[:, tf.newaxis]
        self.is_positive = places < matched[:, tf.newaxis]

    def of(self, values):
        """Returns the rows of the chosen anchors, `[batch, n, ...]`."""
        return tf.gather(values, self._anchors, batch_dims=1)


def count_matched(matches: Matches) -> tf.Tensor:
    """Returns the number of matched anchors of the global batch, at least 1.

    Dividing by the sum over all replicas makes their summed gradients those of one device.

    Args:
        matches: `Matches` of the batch of this replica.

    Returns:
        float32 scalar.
    """
    count = tf.reduce_sum(tf.cast(matches.positive, tf.float32))
    replicas = tf.distribute.get_replica_context()
    if replicas is not None and replicas.num_replicas_in_sync > 1:
        count = replicas.all_reduce(tf.distribute.ReduceOp.SUM, count)
    return tf.maximum(count, 1.0)
