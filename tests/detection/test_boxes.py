"""Boxes: formats, overlaps, anchors, suppression."""

import keras
import numpy as np
import pytest

from keras_dsnet.detection.average_precision import _overlaps
from keras_dsnet.detection.boxes import (
    BOX_FORMATS,
    box_iou,
    convert_boxes,
    smooth_l1_loss,
    ssd_anchors,
    suppress,
)

SSD300 = {
    "image_size": (300, 300),
    "positions": tuple((side, side) for side in (38, 19, 10, 5, 3, 1)),
    "strides": tuple((step, step) for step in (8, 16, 32, 64, 100, 300)),
    "sizes": (30, 60, 111, 162, 213, 264, 315),
    "aspect_ratios": ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)),
}


@pytest.mark.parametrize("name", BOX_FORMATS)
def test_every_format_is_converted_to_and_from(name):
    boxes = np.array([[[0.1, 0.2, 0.5, 0.8], [-1, -1, -1, -1]]], np.float32)
    shape = (100, 200, 3)
    converted = convert_boxes(boxes, "rel_yxyx", name, shape)
    np.testing.assert_allclose(convert_boxes(converted, name, "rel_yxyx", shape), boxes, atol=1e-6)
    assert (converted.numpy()[0, 1] == -1).all()


def test_pixels_of_some_formats():
    box = [[0.1, 0.2, 0.5, 0.8]]
    shape = (100, 200, 3)
    expected = {
        "xyxy": [40, 10, 160, 50],
        "xywh": [40, 10, 120, 40],
        "yxyx": [10, 40, 50, 160],
        "center_xywh": [100, 30, 120, 40],
        "center_yxhw": [30, 100, 40, 120],
        "rel_xyxy": [0.2, 0.1, 0.8, 0.5],
        "rel_xywh": [0.2, 0.1, 0.6, 0.4],
    }
    for name, corners in expected.items():
        np.testing.assert_allclose(
            convert_boxes(box, "rel_yxyx", name, shape), [corners], rtol=1e-5
        )


def test_mistakes_of_formats_are_named():
    with pytest.raises(ValueError, match=r"`bounding_box_format` must be one of .*Received: 'yx'"):
        convert_boxes([[0, 0, 1, 1]], "yx", "xyxy")
    with pytest.raises(ValueError, match=r"`image_shape` must be given between pixels"):
        convert_boxes([[0, 0, 1, 1]], "rel_yxyx", "xyxy")


def test_overlaps_are_those_that_evaluation_counts():
    generator = np.random.default_rng(0)
    corners = [generator.uniform(0, 0.6, (n, 2)) for n in (5, 7)]
    boxes = [np.concatenate([c, c + generator.uniform(0.1, 0.4, c.shape)], 1) for c in corners]
    np.testing.assert_allclose(box_iou(*boxes), _overlaps(*boxes), atol=1e-6)
    half = box_iou([[0.0, 0, 0.5, 1]], [[0.0, 0, 1, 1], [-1, -1, -1, -1]])
    np.testing.assert_allclose(half, [[0.5, -1]], rtol=1e-6)


def test_anchors_of_ssd300():
    anchors = ssd_anchors(**SSD300)
    assert anchors.shape == (8732, 4)
    centres = (anchors[:, :2] + anchors[:, 2:]) * 150
    sides = (anchors[:, 2:] - anchors[:, :2]) * 300
    np.testing.assert_allclose(
        centres[[0, 3, 4, -1]], [[4, 4], [4, 4], [4, 12], [150, 150]], rtol=1e-4
    )
    root = np.sqrt(2)
    expected = [[30, 30], [42.426, 42.426], [30 / root, 30 * root], [30 * root, 30 / root]]
    np.testing.assert_allclose(sides[:4], expected, rtol=1e-4)


def test_anchors_need_a_size_more_than_levels():
    received = r"Received: 6 positions, 6 strides, 6 tuples of ratios, 6 sizes"
    with pytest.raises(ValueError, match=received):
        ssd_anchors(**{**SSD300, "sizes": SSD300["sizes"][:-1]})


def test_anchors_keep_their_shapes_where_the_strides_of_the_axes_differ():
    anchors = ssd_anchors((60, 100), [(2, 4)], [(30, 25)], [12, 27], [(3,)])
    sides = [(12, 12), (18, 18), (12 / 3**0.5, 12 * 3**0.5), (12 * 3**0.5, 12 / 3**0.5)]
    expected = [
        [y - height / 2, x - width / 2, y + height / 2, x + width / 2]
        for y in (15, 45)
        for x in (12.5, 37.5, 62.5, 87.5)
        for height, width in sides
    ]
    np.testing.assert_allclose(anchors * [60, 100, 60, 100], expected, atol=1e-4)


def test_suppression_keeps_the_best_of_each_class():
    boxes = np.array([[[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.48], [0.5, 0.5, 1, 1]]], np.float32)
    scores = np.array([[[0.9, 0.1], [0.8, 0.6], [0.3, 0.005]]], np.float32)
    found = suppress(boxes, scores, max_detections=10)
    count = int(found["num_detections"][0])
    kept = [
        (int(label), round(float(score), 3))
        for label, score in zip(found["classes"][0][:count], found["scores"][0][:count])
    ]
    assert kept == [(0, 0.9), (1, 0.6), (0, 0.3)]
    assert (found["classes"][0][count:].numpy() == -1).all()


def test_half_precision_of_networks_does_not_reach_boxes():
    boxes = np.array([[[0.0, 0.12345678, 0.5, 0.87654321]]], np.float32)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        found = suppress(boxes, np.full((1, 1, 1), 0.912345, np.float32), max_detections=1)
        pixels = convert_boxes(boxes, "rel_yxyx", "xyxy", (300, 300, 3))
        overlap = box_iou(boxes, boxes * 0.9)
        anchors = ssd_anchors(**SSD300)
    finally:
        keras.config.set_dtype_policy(before)
    np.testing.assert_allclose(anchors, ssd_anchors(**SSD300), rtol=1e-6)
    np.testing.assert_allclose(found["boxes"], boxes, rtol=1e-6)
    np.testing.assert_allclose(pixels[0, 0, 0], 300 * 0.12345678, rtol=1e-6)
    np.testing.assert_allclose(overlap, _overlaps(boxes[0], boxes[0] * 0.9)[None], rtol=1e-5)


def test_the_loss_of_offsets_has_a_value_for_each_anchor():
    offsets = np.array([[[0.0] * 4, [2.0] * 4]], np.float32)
    loss = smooth_l1_loss()(np.zeros_like(offsets), offsets)
    np.testing.assert_allclose(np.ravel(loss), [0, 1.5])
