"""Every kind of image is normalised right, or refused in one line."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from routed_networks import SHORT_SPEC, small_network

from keras_dsnet.models import Normalization

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 8, 6, 3)).astype("uint8")
IMAGENET = Normalization()
EXPECTED = (PIXELS / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
PNG, GREY_PNG = (tf.io.encode_png(image).numpy() for image in (PIXELS[0], PIXELS[0, ..., :1]))


def pil_image(mode, image=PIXELS[0]):
    return pytest.importorskip("PIL.Image").fromarray(image).convert(mode)


def mapped(values, function):
    return next(iter(tf.data.Dataset.from_tensors(values).map(function)))


@pytest.mark.parametrize(
    "images",
    [
        *(PIXELS.astype(dtype) for dtype in ("uint8", "uint16", "int32", "int64")),
        *(PIXELS.astype(dtype) for dtype in ("float16", "float32", "float64")),
        *(tf.cast(PIXELS, dtype) for dtype in (tf.uint8, tf.int32, tf.float16, tf.float64)),
        tf.Variable(PIXELS),
        PIXELS.tolist(),
        list(PIXELS),
        [tf.constant(image) for image in PIXELS],
    ],
    ids=lambda images: f"{type(images).__name__}-{getattr(images, 'dtype', '')}",
)
def test_images_of_every_kind(images):
    outputs = IMAGENET(images)
    assert outputs.dtype == "float32"
    np.testing.assert_allclose(outputs, EXPECTED, atol=1e-5)


def test_pil_images():
    np.testing.assert_allclose(IMAGENET(pil_image("RGB")), EXPECTED[0], atol=1e-5)
    pair = [pil_image("RGB", image) for image in PIXELS]
    np.testing.assert_allclose(IMAGENET(pair), EXPECTED, atol=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("batch", [None, 2])
def test_symbolic_images(dtype, batch):
    images = keras.Input((8, 6, 3), batch_size=batch, dtype=dtype)
    outputs = IMAGENET(images)
    assert (outputs.shape, outputs.dtype) == ((batch, 8, 6, 3), "float32")
    model = keras.Model(images, outputs)
    np.testing.assert_allclose(model(PIXELS.astype(dtype)), EXPECTED, atol=1e-5)


def test_elements_of_data_sets():
    np.testing.assert_allclose(mapped(PIXELS, IMAGENET), EXPECTED, atol=1e-5)
    # A decoded image knows neither its size nor its channels, or not even its rank.
    for decode in (tf.io.decode_png, tf.io.decode_image):
        image = mapped(PNG, lambda png, decode=decode: IMAGENET(decode(png)))
        np.testing.assert_allclose(image, EXPECTED[0], atol=1e-5)
        with pytest.raises(tf.errors.InvalidArgumentError, match="Images must be RGB"):
            mapped(GREY_PNG, lambda png, decode=decode: IMAGENET(decode(png)))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (PIXELS[..., :1], r"RGB.*\(2, 8, 6, 1\)"),
        (PIXELS[..., [0, 1, 2, 2]], r"RGB.*\(2, 8, 6, 4\)"),
        (PIXELS[0, ..., 0], r"RGB.*\(8, 6\)"),
        (PIXELS[0, 0], r"RGB.*\(6, 3\)"),
        (PIXELS.transpose(0, 3, 1, 2), r"RGB.*\(2, 3, 8, 6\)"),
        (tf.constant(PIXELS[..., :1]), r"RGB.*\(2, 8, 6, 1\)"),
        (keras.Input((8, 6, 1)), r"RGB.*\(None, 8, 6, 1\)"),
        (keras.Input((8, 6, None)), r"RGB.*None\)"),
        (keras.Input((8, 6, 3), sparse=True), "dense"),
        ([keras.Input((8, 6, 3))], "KerasTensors"),
        (tf.sparse.from_dense(PIXELS[0]), "dense.*SparseTensor"),
        (tf.RaggedTensor.from_tensor(PIXELS), "dense.*RaggedTensor"),
        ([PIXELS[0], PIXELS[1, :5]], r"one size.*\(5, 6, 3\), \(8, 6, 3\)"),
        (PIXELS > 7, "dtype bool"),
        (PIXELS.astype("complex64"), "dtype complex64"),
        (PIXELS.astype(object), "dtype object"),
        ("image.jpg", "dtype str"),
        (None, "dtype object"),
        (3, r"RGB.*\(\)"),
        (PIXELS.astype("uint16") * 200, "uint16 from 0 to 51000"),
        (PIXELS.astype("int16") - 200, "int16 from -200"),
        (np.full((8, 6, 3), np.nan), "finite"),
        (tf.fill((8, 6, 3), np.inf), "finite"),
        (tf.data.Dataset.from_tensors(PIXELS), "dataset.map"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_images_that_are_none_are_refused_in_one_line(images, message):
    with pytest.raises(ValueError, match=message) as caught:
        IMAGENET(images)
    assert "\n" not in str(caught.value)
    assert "Received: " in str(caught.value)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_pil_images_of_other_modes_are_refused(mode):
    with pytest.raises(ValueError, match=r"RGB|dtype bool"):
        IMAGENET(pil_image(mode))


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5, 0.5), (1, 1, 1), "`mean`"),
        (0.5, (1, 1, 1), "`mean`"),
        ((0.5,) * 3, (1, 1, np.nan), "`std`"),
        ((0.5,) * 3, (1, 1, 0), "positive"),
        ((123.7, 116.3, 103.5), (58.4, 57.1, 57.4), "scale 0 to 1"),
        ((0, 0, 0), (255, 255, 255), "scale 0 to 1"),
        ((-1, 0, 0), (1, 1, 1), "scale 0 to 1"),
        (("a", "b", "c"), (1, 1, 1), "`mean`"),
    ],
)
def test_normalizations_that_are_none(mean, std, message):
    with pytest.raises(ValueError, match=message):
        Normalization(mean, std)


def test_a_network_takes_what_preprocess_input_makes_of_symbolic_images():
    network = small_network(spec=SHORT_SPEC)
    images = keras.Input((16, 16, 3), dtype="uint8")
    model = keras.Model(images, network(network.preprocess_input(images), path=0))
    pixels = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3)).astype("uint8")
    expected = network(network.preprocess_input(pixels), path=0)
    np.testing.assert_allclose(model(pixels), expected, rtol=1e-4, atol=1e-5)
