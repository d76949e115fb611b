import numpy as np
import pytest
import tensorflow as tf

from keras_dsnet.detection.multibox import (
    BACKGROUND,
    Matches,
    MultiboxLoss,
    count_matched,
    decode_boxes,
    encode_boxes,
    match_anchors,
)

# Four quarters of the image, the whole of it, and one that reaches beyond it.
ANCHORS = np.array(
    [
        [0.0, 0.0, 0.5, 0.5],
        [0.0, 0.5, 0.5, 1.0],
        [0.5, 0.0, 1.0, 0.5],
        [0.5, 0.5, 1.0, 1.0],
        [0.0, 0.0, 1.0, 1.0],
        [0.8, 0.8, 1.2, 1.2],
    ],
    np.float32,
)


def match(boxes, classes):
    matches = match_anchors(tf.constant(boxes, tf.float32), tf.constant(classes), ANCHORS)
    return matches.labels.numpy(), matches.offsets.numpy()


def test_box_gets_its_best_anchor_also_at_a_small_overlap():
    labels, _ = match([[[0.0, 0.0, 0.2, 0.2]]], [[4]])
    assert labels.tolist() == [[5, 0, 0, 0, 0, 0]]


def test_every_anchor_that_overlaps_half_of_a_box_is_matched():
    sides = np.array([0.5, 0.6, 0.68, 0.72, 0.36, 0.34], np.float32)
    anchors = np.stack([0 * sides, 0 * sides, sides, sides], axis=1)
    matches = match_anchors([[[0.0, 0.0, 0.5, 0.5]]], [[1]], anchors)
    assert matches.labels.numpy().tolist() == [[2, 2, 2, 0, 2, 0]]


def test_boxes_that_want_one_anchor_get_different_ones():
    boxes = [[[0.0, 0.0, 0.5, 0.44], [0.0, 0.0, 0.5, 0.48], [0.0, 0.0, 0.5, 0.46]]]
    labels, offsets = match(boxes, [[0, 1, 2]])
    # All prefer the first anchor. It goes to the box that overlaps it most, and the next best
    # anchor, the whole image, to the next one. The last box overlaps no other anchor.
    assert labels.tolist() == [[2, 0, 0, 0, 3, 0]]
    decoded = decode_boxes(offsets, ANCHORS).numpy()
    np.testing.assert_allclose(decoded[0, 0], boxes[0][1], atol=1e-6)


def test_a_chosen_anchor_is_not_taken_away_by_a_box_that_it_overlaps_more():
    # The whole image overlaps the first box by 0.8 and the second, which chooses first, by 1.
    labels, _ = match([[[0.0, 0.0, 0.8, 1.0], [0.0, 0.0, 1.0, 1.0]]], [[0, 1]])
    assert labels[0, 4] == 2
    assert 1 in labels[0]


@pytest.mark.parametrize("count", [0, 3])
def test_image_without_boxes_has_no_match(count):
    labels, offsets = match(np.full((2, count, 4), -1.0), np.full((2, count), -1))
    assert not labels.any()
    assert not offsets.any()


def test_padding_matches_nothing():
    alone = match([[[0.0, 0.0, 0.4, 0.4]]], [[4]])
    padded = match([[[-1.0] * 4, [0.0, 0.0, 0.4, 0.4], [-1.0] * 4]], [[-1, 4, -1]])
    for one, other in zip(alone, padded, strict=True):
        np.testing.assert_array_equal(one, other)


def test_matching_equals_a_plain_loop():
    generator = np.random.default_rng(0)
    begin = generator.uniform(0, 0.8, (4, 7, 2))
    boxes = np.concatenate([begin, begin + generator.uniform(0.05, 0.4, begin.shape)], axis=2)
    classes = generator.integers(0, 5, (4, 7))
    corner = generator.uniform(0, 0.8, (40, 2))
    anchors = np.concatenate([corner, corner + generator.uniform(0.1, 0.4, corner.shape)], axis=1)
    labels = match_anchors(boxes, classes, anchors).labels.numpy()
    for image in range(4):
        overlaps = np.array([[_iou(a, b) for b in boxes[image]] for a in anchors])
        wanted = np.where(overlaps.max(axis=1) >= 0.5, classes[image][overlaps.argmax(1)] + 1, 0)
        left = overlaps.copy()
        while (left > 0).any():
            anchor, box = np.unravel_index(left.argmax(), left.shape)
            wanted[anchor] = classes[image, box] + 1
            left[anchor], left[:, box] = -1, -1
        assert labels[image].tolist() == wanted.tolist()


def _iou(a, b):
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    shared = sides.prod()
    return shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared)


def test_offsets_are_those_of_ssd():
    offsets = encode_boxes([[0.0, 0.1, 0.5, 0.6]], ANCHORS[:1]).numpy()
    np.testing.assert_allclose(offsets, [[0.0, 2.0, 0.0, 0.0]], atol=1e-5)
    offsets = encode_boxes([[0.0, 0.0, 0.5, 1.0]], ANCHORS[:1]).numpy()
    np.testing.assert_allclose(offsets, [[0.0, 5.0, 0.0, np.log(2) / 0.2]], rtol=1e-5, atol=1e-5)


def test_decoding_inverts_encoding():
    generator = np.random.default_rng(0)
    begin = generator.uniform(-0.2, 0.9, (3, 6, 2))
    boxes = np.concatenate([begin, begin + generator.uniform(0.01, 0.5, begin.shape)], axis=2)
    decoded = decode_boxes(encode_boxes(boxes, ANCHORS), ANCHORS)
    np.testing.assert_allclose(decoded, boxes, atol=1e-5)


def outputs(batch, anchors, classes, seed=0):
    generator = np.random.default_rng(seed)
    return {
        "boxes": tf.constant(generator.normal(size=(batch, anchors, 4)), tf.float32),
        "scores": tf.constant(generator.normal(size=(batch, anchors, classes + 1)), tf.float32),
    }


def matches(labels, seed=1):
    labels = np.array(labels)
    offsets = np.random.default_rng(seed).normal(size=(*labels.shape, 4)) * (labels > 0)[..., None]
    return Matches(tf.constant(offsets, tf.float32), tf.constant(labels, tf.int32))


def test_loss_is_that_of_ssd():
    found, wanted = outputs(2, 20, 3), matches([[2, 0, 3] + [0] * 17, [0] * 20])
    classification, boxes = (loss.numpy() for loss in MultiboxLoss()(wanted, found))
    logits = found["scores"].numpy().astype(np.float64)
    entropies = np.log(np.exp(logits).sum(-1))
    entropies -= np.take_along_axis(logits, wanted.labels.numpy()[..., None], -1)[..., 0]
    hardest = np.sort(np.delete(entropies[0], [0, 2]))[::-1][:6].sum()
    expected = [entropies[0, 0] + entropies[0, 2] + hardest, np.sort(entropies[1])[-3:].sum()]
    np.testing.assert_allclose(classification, expected, rtol=1e-5)
    error = np.abs(found["boxes"].numpy() - wanted.offsets.numpy())
    smooth = np.where(error < 1, error**2 / 2, error - 0.5).sum(-1)
    np.testing.assert_allclose(boxes, [smooth[0, 0] + smooth[0, 2], 0], rtol=1e-5)


def test_equal_losses_do_not_add_negatives():
    found = {"boxes": tf.zeros((1, 30, 4)), "scores": tf.zeros((1, 30, 4))}
    (classification,), _ = MultiboxLoss()(matches([[1] + [0] * 29]), found)
    assert float(classification) == pytest.approx(4 * np.log(4), rel=1e-5)


def test_negatives_run_out():
    found = outputs(1, 4, 2)
    (classification,), _ = MultiboxLoss()(matches([[1, 1, 2, 0]]), found)
    wanted = tf.nn.sparse_softmax_cross_entropy_with_logits([1, 1, 2, 0], found["scores"][0])
    assert float(classification) == pytest.approx(float(tf.reduce_sum(wanted)), rel=1e-5)


def test_images_of_a_batch_have_the_negatives_that_they_have_by_themselves():
    found = outputs(3, 40, 3)
    labels = [[1] * 9 + [0] * 31, [0] * 40, [0, 2, 0, 1] + [0] * 36]
    together, _ = MultiboxLoss()(matches(labels), found)
    for index, row in enumerate(labels):
        one = {name: values[index : index + 1] for name, values in found.items()}
        (apart,), _ = MultiboxLoss()(matches([row]), one)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(row, one["scores"][0]).numpy()
        positive = np.array(row) > 0
        negatives = np.sort(losses[~positive])[::-1][: 3 * max(1, positive.sum())]
        assert float(apart) == pytest.approx(losses[positive].sum() + negatives.sum(), rel=1e-5)
        assert float(together[index]) == pytest.approx(float(apart), rel=1e-6)


def test_focal_loss_of_a_sure_anchor_vanishes():
    loss = MultiboxLoss(classification="focal")
    sure = {"boxes": tf.zeros((1, 2, 4)), "scores": tf.constant([[[0.0, 9.0], [9.0, 0.0]]])}
    unsure = {**sure, "scores": tf.zeros((1, 2, 2))}
    assert float(loss(matches([[1, 0]]), sure)[0][0]) < 1e-9
    assert float(loss(matches([[1, 0]]), unsure)[0][0]) == pytest.approx(np.log(2) / 2, rel=1e-5)


def test_teacher_that_is_the_student_leaves_no_gradient_of_the_classes():
    found, wanted = outputs(1, 12, 3), matches([[1, 2] + [0] * 10])
    with tf.GradientTape() as tape:
        tape.watch(found)
        teacher = {key: tf.stop_gradient(value) for key, value in found.items()}
        loss = tf.add_n([tf.reduce_sum(part) for part in MultiboxLoss()(wanted, found, teacher)])
    gradients = tape.gradient(loss, found)
    assert np.abs(gradients["scores"].numpy()).max() < 1e-6
    assert np.abs(gradients["boxes"].numpy()[0, :2]).min() > 0


def test_loss_is_float32_of_half_precision():
    found = {key: tf.cast(value, tf.float16) for key, value in outputs(1, 12, 3).items()}
    for part in MultiboxLoss()(matches([[1, 2] + [0] * 10]), found):
        assert part.dtype == tf.float32
        assert np.isfinite(part.numpy()).all()


def test_matched_anchors_are_counted_and_never_none():
    assert float(count_matched(matches([[1, 2, 0], [0, 3, 0]]))) == 3
    assert float(count_matched(matches([[BACKGROUND] * 3]))) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("negative_ratio", 0), ("classification", "hinge"), ("box_weight", float("nan"))],
)
def test_wrong_arguments_are_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}`.*Received: {name}={value!r}"):
        MultiboxLoss(**{name: value})
