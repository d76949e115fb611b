"""Batches of images with boxes: their order, their augmentation, their padding."""

import logging
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from detection_data import SIZE, write_voc, xml

from keras_dsnet.detection import (
    detection_evaluation_pipeline,
    detection_training_pipeline,
    load_detection_source,
)
from keras_dsnet.detection.augmentation import (
    FILL,
    boxes_in_window,
    paste,
    photometric_distortion,
    ssd_window,
    visible_pixels,
    visible_place,
)


def as_they_are(images):
    return images


def training(source, **arguments):
    settings = {"image_size": 24, "batch_size": 4, "seed": 1, "preprocess": as_they_are}
    return detection_training_pipeline(source, **{**settings, **arguments})


def evaluation(source, **arguments):
    settings = {"image_size": 24, "batch_size": 4, "preprocess": as_they_are}
    return detection_evaluation_pipeline(source, **{**settings, **arguments})


def test_a_batch_is_the_dictionary_of_kerascv(voc_folder):
    images, target = next(iter(training(load_detection_source(voc_folder), augmentation="none")))
    assert images.shape == (4, 24, 24, 3)
    assert set(target) == {"boxes", "classes", "difficult"}
    assert target["boxes"].dtype == target["classes"].dtype == tf.float32
    boxes, classes = target["boxes"].numpy(), target["classes"].numpy()
    assert boxes.shape == (4, 2, 4)
    assert ((boxes == -1).all(axis=-1) == (classes == -1)).all()
    # Every image has a cat, and some have a dog.
    assert (classes[:, 0] == 0).all()
    assert set(classes[:, 1]) == {-1, 1}


def _batches(source, count, **arguments):
    return list(training(source, **arguments).take(count).as_numpy_iterator())


def _assert_equal(batch, other):
    np.testing.assert_array_equal(batch[0], other[0])
    np.testing.assert_array_equal(batch[1]["boxes"], other[1]["boxes"])
    np.testing.assert_array_equal(batch[1]["classes"], other[1]["classes"])


def test_a_batch_is_a_function_of_seed_and_step(voc_folder):
    source = load_detection_source(voc_folder)
    whole = _batches(source, 5)
    # In the middle of the second epoch, of two batches each.
    for batch, other in zip(whole[3:], _batches(source, 2, start_step=3), strict=True):
        _assert_equal(batch, other)
    assert not np.array_equal(whole[0][0], _batches(source, 1, seed=2)[0][0])


@pytest.mark.slow
@pytest.mark.needs_shared
def test_a_stream_of_records_resumes(shared_voc):
    source = load_detection_source("voc/2007", shared_voc, train_split="validation")
    whole = _batches(source, 9, batch_size=7)
    _assert_equal(whole[8], _batches(source, 1, batch_size=7, start_step=8)[0])
    _assert_equal(whole[3], _batches(source, 1, batch_size=7, start_step=3)[0])


def test_formats_of_boxes(voc_folder):
    source = load_detection_source(voc_folder)
    plain = {"augmentation": "none"}
    relative = _batches(source, 1, **plain)[0][1]["boxes"]
    pixels = _batches(source, 1, **plain, bounding_box_format="xyxy")[0][1]["boxes"]
    is_box = (relative != -1).any(axis=-1)
    np.testing.assert_allclose(pixels[is_box], relative[is_box][:, (1, 0, 3, 2)] * 24, rtol=1e-5)
    assert (pixels[~is_box] == -1).all()


def test_a_fixed_number_of_boxes(voc_folder):
    source = load_detection_source(voc_folder)
    padded = _batches(source, 1, max_boxes=5, augmentation="none")
    assert padded[0][1]["boxes"].shape == (4, 5, 4)
    assert training(source, max_boxes=1).element_spec[1]["boxes"].shape == (4, 1, 4)


def test_images_without_a_box_have_a_row_of_padding(tmp_path):
    contents = {name: xml() for name in "abcd"} | {"e": xml(("cat", (1, 1, 9, 9)))}
    write_voc(tmp_path, contents, {"train": list("abce"), "val": ["d"]})
    source = load_detection_source(tmp_path)
    for _, target in _batches(source, 8, batch_size=1):
        assert target["boxes"].shape == (1, 1, 4)
    assert [target["boxes"].shape for _, target in evaluation(source, batch_size=4)] == [(4, 1, 4)]


def test_difficult_objects_can_be_left_out_of_training(voc_folder):
    source = load_detection_source(voc_folder)
    counts = {
        difficult: sum(
            (target["classes"] == 1).sum()
            for _, target in _batches(
                source, 9, batch_size=1, augmentation="none", difficult=difficult
            )
        )
        for difficult in (True, False)
    }
    assert counts == {True: 3, False: 2}


@pytest.mark.slow
def test_training_keeps_the_flags_of_difficult_objects(voc_folder):
    source = load_detection_source(voc_folder)
    for augmentation, count in (("none", 9), ("flip", 9), ("ssd", 90)):
        batches = _batches(source, count, batch_size=1, augmentation=augmentation)
        flags = [target["difficult"] & (target["classes"] >= 0) for _, target in batches]
        assert all(flag.dtype == bool for flag in flags)
        assert sum(flag.sum() for flag in flags) >= 1


@pytest.mark.parametrize("box", [(0, 1, 1e-6, 20), (39.9999999, 1, 60, 20)])
@pytest.mark.parametrize("augmentation", ["none", "flip", "ssd"])
def test_a_sliver_of_a_box_is_no_box(tmp_path, box, augmentation):
    boxes = ("cat", (2, 5, 22, 35)), ("cat", box)
    write_voc(tmp_path, {name: xml(*boxes) for name in "abcd"}, {"train": list("abcd")})
    source = load_detection_source(tmp_path, train_split="train")
    for _, target in _batches(source, 12, batch_size=2, augmentation=augmentation):
        sides = target["boxes"][..., 2:] - target["boxes"][..., :2]
        assert (sides[target["classes"] >= 0] > 0).all()
        assert (target["classes"] >= 0).any()


def test_crowds_are_evaluated_but_not_trained_on(coco_folder):
    source = load_detection_source(coco_folder)
    trained = _batches(source, 6, batch_size=1, augmentation="none")
    assert not any((target["classes"] == 1).any() for _, target in trained)
    (target,) = [target for _, target in evaluation(source, batch_size=6)]
    assert (target["classes"].numpy() == 1).sum() == 5
    np.testing.assert_array_equal(target["difficult"], target["classes"].numpy() == 1)
    assert set(target["areas"].numpy().round(2).ravel()) == {0, 100, 900}
    assert (target["image_size"].numpy() == [SIZE[1], SIZE[0]]).all()


def test_evaluation_has_every_image_once_in_a_fixed_order(voc_folder):
    source = load_detection_source(voc_folder)
    first, second = [[target for _, target in evaluation(source)] for _ in range(2)]
    assert [len(target["classes"]) for target in first] == [4, 4, 1]
    for target, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(target["boxes"], other["boxes"])


def test_a_shorter_evaluation_takes_images_at_equal_distances(voc_folder, caplog):
    source = load_detection_source(voc_folder)
    everything = [image for images, _ in evaluation(source) for image in images.numpy()]
    with caplog.at_level(logging.WARNING):
        ((images, _),) = evaluation(source, every=4)
    np.testing.assert_array_equal(images, everything[::4])
    assert not caplog.records
    with pytest.raises(ValueError, match="every"):
        evaluation(source, every=0)


@pytest.mark.slow
def test_a_file_that_becomes_unreadable_is_replaced_without_its_boxes(voc_folder, caplog):
    source = load_detection_source(voc_folder)
    for path in source.paths[:4]:
        with open(path, "r+b") as file:  # noqa: PTH123
            file.truncate(700)
    with caplog.at_level(logging.WARNING):
        batches = _batches(source, 9, batch_size=1)
    gray = [target for images, target in batches if (images == 127.5).all()]
    assert len(gray) == 4
    assert all((target["boxes"] == -1).all() for target in gray)
    assert all(
        f"{pathlib.Path(path).name} cannot be read" in caplog.text for path in source.paths[:4]
    )


@pytest.mark.slow
def test_one_unreadable_file_changes_nothing_else_of_its_batch(voc_folder, caplog):
    source = load_detection_source(voc_folder)
    ((images, target),) = _batches(source, 1, batch_size=9)
    (broken,) = source.paths[4:5]
    with open(broken, "r+b") as file:  # noqa: PTH123
        file.truncate(700)
    with caplog.at_level(logging.WARNING):
        ((others, changed),) = _batches(source, 1, batch_size=9)
        evaluated = [len(images) for images, _ in evaluation(source, batch_size=3, every=4)]
    lost = (others == 127.5).all(axis=(1, 2, 3))
    assert lost.sum() == 1
    np.testing.assert_array_equal(others[~lost], images[~lost])
    for name, values in changed.items():
        assert (values[lost] == (False if name == "difficult" else -1)).all()
        np.testing.assert_array_equal(values[~lost], target[name][~lost][:, : values.shape[1]])
    # Images 0, 4 and 8 are evaluated.
    assert evaluated == [2]
    assert broken in caplog.text
    assert "evaluation left out 1 of 3 images" in caplog.text


def test_evaluation_leaves_out_a_file_that_becomes_unreadable(voc_folder, caplog):
    source = load_detection_source(voc_folder)
    with open(source.paths[0], "r+b") as file:  # noqa: PTH123
        file.truncate(700)
    with caplog.at_level(logging.WARNING):
        count = sum(len(images) for images, _ in evaluation(source))
    assert count == 8
    assert "evaluation left out 1 of 9 images" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"augmentation": "cifar"}, "augmentation must be 'none', 'flip', 'ssd'"),
        ({"batch_size": 10}, "batch_size must be at most 9"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"start_step": -1}, "start_step must be 0 or more. Received: -1"),
        ({"max_boxes": 0}, "max_boxes must be 1 or more. Received: 0"),
        ({"image_size": 0}, "image_size must be a positive int"),
        ({"bounding_box_format": "xxyy"}, "`bounding_box_format` must be one of"),
    ],
)
def test_a_mistake_raises_before_the_first_batch(voc_folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        training(load_detection_source(voc_folder), **arguments)


BOXES = tf.constant([[0.1, 0.2, 0.5, 0.6], [0.6, 0.6, 0.9, 0.7]])


@pytest.fixture(scope="module")
def windows():
    draw = tf.function(lambda seed: ssd_window(BOXES, seed))
    return np.stack([draw(tf.constant([0, index], tf.int64)) for index in range(300)])


def test_windows_keep_an_object_and_a_part_of_the_image(windows):
    sides = windows[:, 2:] - windows[:, :2]
    # The smallest crop has a scale of 0.3 and a ratio of 2.
    assert (sides >= 0.21).all()
    assert (sides <= 4.0001).all()
    for window in windows:
        assert boxes_in_window(BOXES, window)[1].numpy().any()


def test_half_of_the_windows_are_expanded_and_a_part_is_cropped(windows):
    beyond = ((windows[:, :2] < -1e-6) | (windows[:, 2:] > 1 + 1e-6)).any(axis=1).mean()
    whole = (np.abs(windows - [0, 0, 1, 1]) < 1e-6).all(axis=1).mean()
    assert 0.3 < beyond < 0.6
    # Not expanded, and the whole canvas or no window with enough overlap.
    assert 0.05 < whole < 0.35


def test_boxes_follow_a_window():
    boxes, kept = boxes_in_window(BOXES, tf.constant([0.0, 0.0, 0.5, 1.0]))
    np.testing.assert_allclose(boxes[0], [0.2, 0.2, 1.0, 0.6], rtol=1e-6)
    assert kept.numpy().tolist() == [True, False]
    boxes, _ = boxes_in_window(BOXES, tf.constant([-1.0, 0.0, 1.0, 2.0]))
    np.testing.assert_allclose(boxes[0], [0.55, 0.1, 0.75, 0.3], rtol=1e-6)


def test_pixels_stay_under_their_boxes():
    """A white rectangle is where its box is, through expansion, crop and resizing."""
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[12:30, 16:48] = 255
    box = tf.constant([[12 / 60, 16 / 80, 30 / 60, 48 / 80]])
    for index in range(40):
        window = ssd_window(box, tf.constant([3, index], tf.int64))
        top, left, height, width = visible_pixels(window, tf.constant([60, 80, 3])).numpy()
        part = pixels[top : top + height, left : left + width]
        image = paste(part, visible_place(window), (120, 120), tf.image.resize).numpy()
        moved = boxes_in_window(box, window)[0][0].numpy() * 120
        rows, columns = np.where(image[..., 0] > 200)
        found = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
        # Half a pixel of the image, enlarged by the crop, and one of the result.
        np.testing.assert_allclose(found, moved, atol=1 + 0.5 * 120 / min(height, width) * 2)
        outside = image[[0, 0, -1, -1], [0, -1, 0, -1], 0]
        assert set(outside) <= {FILL, 0, 255} or height < 30


def test_distortion_keeps_the_range_and_sometimes_the_image():
    image = tf.constant(np.random.default_rng(0).uniform(0, 255, (8, 8, 3)), tf.float32)
    results = [photometric_distortion(image, (0, index)).numpy() for index in range(60)]
    assert all(result.min() >= 0 and result.max() <= 255 for result in results)
    unchanged = [np.abs(result - image).max() < 0.1 for result in results]
    # Each of four changes happens in half of the cases.
    assert 0 < sum(unchanged) < 15


def test_distortion_is_that_of_ssd_by_its_draws():
    image = tf.constant(np.random.default_rng(0).uniform(0, 255, (8, 8, 3)), tf.float32)
    kinds = set()
    for index in range(60):
        seed = tf.constant([4, index], tf.int64)
        used, amounts = tf.random.stateless_uniform([2, 4], seed).numpy()
        used = used < 0.5
        first = bool(tf.random.stateless_uniform([], tf.random.fold_in(seed, 1)) < 0.5)
        kinds |= {(place, bool(is_used)) for place, is_used in enumerate(used)}
        kinds |= {("contrast first", first)} if used[1] and used[2:].any() else set()
        # Liu et al. change brightness by up to 32 of 255, contrast and saturation by up to a half,
        # and the hue by up to 18 degrees.
        brightness = 64 * amounts[0] - 32 if used[0] else 0
        contrast, saturation = (0.5 + amounts[place] if used[place] else 1 for place in (1, 2))
        hue = (36 * amounts[3] - 18) / 360 if used[3] else 0
        expected = np.clip((image + brightness) * (contrast if first else 1), 0, 255) / 255
        expected = tf.image.adjust_hue(tf.image.adjust_saturation(expected, saturation), hue)
        expected = np.clip(expected * 255 * (1 if first else contrast), 0, 255)
        np.testing.assert_allclose(photometric_distortion(image, seed), expected, atol=0.05)
    assert len(kinds) == 10


def test_a_flip_mirrors_boxes_and_pixels(voc_folder):
    source = load_detection_source(voc_folder)
    plain = _batches(source, 8, augmentation="none")
    flipped = _batches(source, 8, augmentation="flip")
    mirrored = 0
    for (images, target), (others, moved) in zip(plain, flipped, strict=True):
        for index in range(4):
            if np.array_equal(images[index], others[index]):
                continue
            mirrored += 1
            np.testing.assert_array_equal(images[index][:, ::-1], others[index])
            box, other = target["boxes"][index, 0], moved["boxes"][index, 0]
            np.testing.assert_allclose(other[[1, 3]], 1 - box[[3, 1]], rtol=1e-5)
    assert 6 < mirrored < 26
