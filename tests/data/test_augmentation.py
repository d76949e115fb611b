"""Augmentations of training images: what they change, and that a seed determines them."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_dsnet.data
from keras_dsnet.data.augmentation import (
    autocontrast,
    color_jitter,
    equalize,
    image_augmentations,
    inception_window,
    pad_crop_flip,
    random_erasing,
)
from keras_dsnet.data.auto_augment import AUTO_AUGMENT_POLICIES, _operations, _parse

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
KINDS = [
    {"randaugment": 2},
    {"auto_augment": "imagenet"},
    {"auto_augment": "cifar10"},
    {"color_jitter": 0.4},
    {"random_erasing": 1.0},
]


@pytest.fixture(scope="module")
def image():
    coarse = np.random.default_rng(0).uniform(0, 255, (6, 6, 3))
    return tf.clip_by_value(tf.image.resize(coarse, (32, 32), method="bicubic"), 0.0, 255.0)


def _traced(kind):
    (augmentation,) = image_augmentations(**kind)
    return tf.function(augmentation).get_concrete_function(
        tf.TensorSpec([32, 32, 3]), tf.TensorSpec([2], tf.int64)
    )


def _key(seed):
    return tf.constant([7, seed], tf.int64)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_images_change_as_a_function_of_the_seed_alone(kind, image):
    apply, again = _traced(kind), _traced(kind)
    results = []
    for seed in range(20):
        result = apply(image, _key(seed)).numpy()
        np.testing.assert_array_equal(result, again(image, _key(seed)))
        assert result.min() >= -1e-3
        assert result.max() <= 255.001
        results.append(result)
    changed = np.mean([np.abs(result - image).max() > 0.5 for result in results])
    assert changed >= 0.5
    assert len({result.tobytes() for result in results}) >= 6


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_no_stateful_random_operation_is_left(kind):
    graph = _traced(kind).graph.as_graph_def()
    operations = {node.op for node in graph.node}
    for function in graph.library.function:
        operations |= {node.op for node in function.node_def}
    stateful = {
        name
        for name in operations
        if "Random" in name and not name.startswith("Stateless") and "Shuffle" not in name
    }
    assert not stateful
    assert not any(name == "RngReadAndSkip" or name.startswith("Stateful") for name in operations)


def test_mixed_precision_leaves_images_alone(image, float16_policy):
    result = _traced({"randaugment": 1})(image, _key(3))
    keras.config.set_dtype_policy("float32")
    np.testing.assert_array_equal(result, _traced({"randaugment": 1})(image, _key(3)))


def test_nothing_asked_for_is_nothing():
    assert image_augmentations() == []


def test_op_determinism_is_no_obstacle(image):
    tf.random.set_global_generator(None)
    tf.config.experimental.enable_op_determinism()
    try:
        _traced({"randaugment": 1})(image, _key(0))
    finally:
        from tensorflow.python.framework import config

        config.disable_op_determinism()


@pytest.mark.parametrize("name", AUTO_AUGMENT_POLICIES)
def test_policies_are_the_published_pairs_of_operations(name):
    lines = (GOLDEN / "auto_augment.txt").read_text().splitlines()
    lines = [line.split() for line in lines if line.startswith(f"{name} ")]
    policy = _parse(AUTO_AUGMENT_POLICIES[name])
    assert len(policy) == len(lines) == 25
    for (first, second), (_, *published) in zip(policy, lines, strict=True):
        chances, levels = published[1::3], published[2::3]
        assert [first[0], second[0]] == published[::3]
        assert [first[1], second[1]] == [float(chance) for chance in chances]
        assert [first[2], second[2]] == [float(level) for level in levels]


def test_the_drawn_pair_is_applied_in_order_at_its_levels(image):
    augment = _traced({"auto_augment": "cifar10"})
    (augmentation,) = image_augmentations(auto_augment="cifar10")
    operations = _operations(augmentation.keywords["library"])
    policy, applied = _parse(AUTO_AUGMENT_POLICIES["cifar10"]), 0
    for seed in range(20):
        choice, chance, sign = tf.unstack(tf.random.split(_key(seed), 3))
        row = policy[int(tf.random.stateless_uniform([], choice, 0, 25, tf.int32))]
        chances = tf.random.stateless_uniform([2], chance).numpy()
        signs = np.where(tf.random.stateless_uniform([2], sign) < 0.5, -1.0, 1.0)
        expected = image
        for slot, (operation, probability, level) in enumerate(row):
            if chances[slot] < probability:
                level = tf.constant(level / 9, tf.float32)
                sign = tf.constant(signs[slot], tf.float32)
                expected = operations[operation](expected, level, sign)
                applied += 1
        np.testing.assert_allclose(augment(image, _key(seed)), expected, atol=0.05)
    assert applied > 10


def test_randaugment_makes_the_number_of_changes_of_the_magnitude_asked_for(image):
    (augmentation,) = image_augmentations(randaugment=3, randaugment_magnitude=0.7)
    (layer,) = augmentation.layers
    assert (layer.augmentations_per_image, layer.magnitude) == (3, 0.7)
    (usual,) = image_augmentations(randaugment=1)
    assert usual.layers[0].magnitude == 0.5


def _operation(name, image, level, sign=1.0):
    return _operations({})[name](image, tf.constant(level), tf.constant(sign)).numpy()


def test_geometric_operations_move_pixels_about_the_centre():
    dot = np.zeros((33, 33, 3), np.float32)
    dot[16, 16] = 255.0
    for name in ("rotate", "shear_x", "shear_y"):
        assert _operation(name, tf.constant(dot), 1.0)[16, 16, 0] == pytest.approx(255.0, abs=1.0)
    corner = np.zeros((33, 33, 3), np.float32)
    corner[6, 6] = 255.0
    for name, place in (("shear_x", (6, 9)), ("shear_y", (9, 6))):
        moved = _operation(name, tf.constant(corner), 1.0)[..., 0]
        assert np.unravel_index(moved.argmax(), moved.shape) == place
    across, down = (_operation(f"translate_{a}", tf.constant(corner), 0.5) for a in "xy")
    np.testing.assert_allclose(down, across.swapaxes(0, 1), atol=1e-3)
    moved = _operation("translate_x", tf.constant(dot), 0.5) % 128
    row, column = np.unravel_index(moved[..., 0].argmax(), (33, 33))
    assert row == 16
    assert abs(column - 16) == pytest.approx(150 / 331 / 2 * 33, abs=1)


def test_rotation_by_the_full_level_is_thirty_degrees():
    line = np.zeros((65, 65, 3), np.float32)
    line[32, :] = 255.0
    rotated = _operation("rotate", tf.constant(line), 1.0)[..., 0]
    points = np.argwhere(rotated > 100)
    points = points[np.hypot(*(points - 32).T) < 25] - 32
    direction = np.linalg.svd(points)[2][0]
    slope = abs(direction[0] / direction[1])
    assert np.degrees(np.arctan(slope)) == pytest.approx(30, abs=1)


def test_colour_operations_know_their_end_points(image):
    np.testing.assert_allclose(_operation("invert", image, 0.5), 255 - image)
    np.testing.assert_allclose(_operation("solarize", image, 0.0), image)
    np.testing.assert_allclose(_operation("solarize", image, 1.0), 255 - image)
    for name in ("color", "contrast", "brightness"):
        np.testing.assert_allclose(_operation(name, image, 0.0), image, atol=1e-3)
    brighter = np.minimum(image * 1.9, 255)
    np.testing.assert_allclose(_operation("brightness", image, 1.0), brighter, atol=1e-2)
    assert set(np.unique(_operation("posterize", image, 1.0)) % 16) == {0}


def test_only_one_module_knows_keras_cv():
    folder = pathlib.Path(keras_dsnet.data.__file__).parent
    users = {path.name for path in folder.glob("*.py") if "import keras_cv" in path.read_text()}
    assert users == {"augmentation.py"}


def _numbered(batch, size):
    """Images whose pixels are all different and never 0."""
    pixels = np.arange(1, size * size * 3 + 1, dtype=np.int32).reshape(1, size, size, 3)
    return np.repeat(pixels, batch, axis=0)


def test_crops_are_shifted_copies_padded_with_zeros():
    images = _numbered(200, 12)
    cropped = pad_crop_flip(images, tf.constant([0, 1]), padding=4, hflip=False).numpy()
    padded = np.pad(images[0], ((4, 4), (4, 4), (0, 0)))
    possible = {
        padded[top : top + 12, left : left + 12].tobytes(): (top, left)
        for top in range(9)
        for left in range(9)
    }
    places = {possible[image.tobytes()] for image in cropped}
    assert len(places) > 60
    assert {top for top, _ in places} == {left for _, left in places} == set(range(9))


def test_half_of_the_images_are_mirrored():
    images = _numbered(400, 6)
    flipped = pad_crop_flip(images, tf.constant([0, 1]), padding=0).numpy()
    same = np.all(flipped == images, axis=(1, 2, 3))
    mirrored = np.all(flipped == images[:, :, ::-1], axis=(1, 2, 3))
    assert np.all(same ^ mirrored)
    assert 0.4 < mirrored.mean() < 0.6


def test_dtype_is_kept():
    images = tf.zeros([2, 8, 8, 3], tf.uint8)
    assert pad_crop_flip(images, tf.constant([0, 1])).dtype == tf.uint8


def test_inception_windows_fill_the_range_of_areas_and_aspects():
    shape = tf.constant([200, 300, 3])
    windows = np.array([inception_window(shape, tf.constant([0, seed])) for seed in range(200)])
    top, left, height, width = windows.T
    assert np.all((top >= 0) & (left >= 0) & (top + height <= 200) & (left + width <= 300))
    area = height * width / (200 * 300)
    assert area.min() > 0.07
    assert area.min() < 0.15
    assert area.max() > 0.7
    aspect = width / height
    assert aspect.min() > 0.73
    assert aspect.max() < 1.36


def test_erasing_fills_one_rectangle_of_any_stated_area_and_aspect():
    image = tf.zeros([64, 64, 3])
    erase = tf.function(lambda seed: random_erasing(image, seed, 1.0))
    areas, aspects = [], []
    for seed in range(150):
        erased = erase(tf.constant([0, seed])).numpy()[..., 0]
        assert set(np.unique(erased)) == {0, 114}
        height, width = (np.flatnonzero(erased.any(axis=axis)).size for axis in (1, 0))
        assert np.count_nonzero(erased) == height * width
        areas.append(height * width / 64**2)
        aspects.append(height / width)
    # Zhong et al.: 2 to 33 % of the area, and an aspect ratio of 0.3 to 3.33. Sides are rounded.
    assert 0.015 < min(areas) < 0.04
    assert 0.31 < max(areas) < 0.34
    assert 0.27 < min(aspects) < 0.35
    assert 2.9 < max(aspects) < 3.7
    # The logarithm of the aspect is drawn uniformly.
    assert 0.8 < np.median(aspects) < 1.25


def test_erasing_happens_as_often_as_asked():
    image = tf.zeros([16, 16, 3])
    erased = [
        bool(tf.reduce_any(random_erasing(image, tf.constant([0, seed]), 0.25) > 0))
        for seed in range(200)
    ]
    assert 0.15 < np.mean(erased) < 0.35


@pytest.mark.parametrize("flat", [False, True])
def test_equalize_and_autocontrast_are_those_of_keras_cv(image, flat):
    import keras_cv

    image = tf.concat([image[..., :2] * 0.5 + 20, image[..., 2:] * (0.0 if flat else 1.0)], -1)
    for ours, layer in (
        (equalize, keras_cv.layers.Equalization((0, 255))),
        (autocontrast, keras_cv.layers.AutoContrast((0, 255))),
    ):
        np.testing.assert_array_equal(ours(image), layer(image))


def test_jitter_changes_brightness_contrast_and_saturation_by_their_draws(image):
    import keras_cv

    seed, seen = _key(5), color_jitter(image, _key(5), 0.4).numpy()
    lows, highs = (-0.2, 0.6, 0.6 / 1.6), (0.2, 1.4, 1.4 / 2.4)
    brightness, contrast, saturation = (
        float(tf.random.stateless_uniform([], tf.random.fold_in(seed, number + 1), low, high))
        for number, (low, high) in enumerate(zip(lows, highs, strict=True))
    )
    expected = tf.clip_by_value(image + 255 * brightness, 0.0, 255.0)
    expected = tf.image.adjust_contrast(expected, contrast)
    expected = tf.clip_by_value(expected, 0.0, 255.0)
    layer = keras_cv.layers.RandomSaturation((saturation, saturation))
    np.testing.assert_allclose(seen, layer(expected), atol=1e-2)
