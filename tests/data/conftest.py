"""Small data sets for the tests of the input pipelines."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_dsnet.data.image_source import ArraySource

_SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared" / "tfds"


@pytest.fixture(scope="session")
def shared_tfds():
    if not _SHARED.is_dir():
        pytest.skip("../shared/tfds is absent")
    return str(_SHARED)


def noise_image(seed, height=24, width=20):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def array_source():
    """50 images of 8x8 pixels; the pixels of image i are near 5 * i, so that they identify it."""
    images = np.arange(50, dtype=np.uint8)[:, None, None, None] * 5
    images = images + np.arange(8, dtype=np.uint8)[None, None, :, None] // 2
    images = np.broadcast_to(images, (50, 8, 8, 3))
    return ArraySource("squares", images, np.arange(50) % 10, num_classes=10)


@pytest.fixture
def image_folder(tmp_path):
    """Three class folders of ten images of varying size, JPEG and PNG."""
    root = tmp_path / "photos"
    for label, name in enumerate(("ant", "bee", "cat")):
        (root / name).mkdir(parents=True)
        for index in range(10):
            image = noise_image(100 * label + index, 20 + index, 24)
            if index % 2:
                (root / name / f"{index}.png").write_bytes(tf.io.encode_png(image).numpy())
            else:
                (root / name / f"{index}.jpg").write_bytes(tf.io.encode_jpeg(image).numpy())
    return root


@pytest.fixture
def to_float():
    return lambda images: tf.cast(images, tf.float32)


@pytest.fixture
def float16_policy():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy(before)
