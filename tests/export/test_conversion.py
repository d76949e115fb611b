"""Conversion to int8: the images that ranges are measured on, and units that are always zero."""

import errno
import itertools
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from routed_networks import SHORT_SPEC, SIZE, random_images, small_network

from keras_dsnet.export import conversion, export_routed, export_subnetwork
from keras_dsnet.export.conversion import (
    LEAST_SCALE,
    MOST_IMAGES,
    is_activation,
    representative_images,
)
from keras_dsnet.export.tflite_model import parse
from keras_dsnet.models import Normalization

SHAPE = (SIZE, SIZE, 3)
PIXELS = np.random.default_rng(0).integers(0, 256, (10, *SHAPE), "uint8")
IMAGENET, HALF = Normalization(), Normalization((0.5,) * 3, (0.5,) * 3)
UNIT = Normalization((0,) * 3, (1,) * 3)
IMAGES = IMAGENET(PIXELS)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        return IMAGES[2 * index : 2 * index + 2], np.zeros(2)


def generator():
    yield from IMAGES


FORMS = {
    "array": lambda: IMAGES,
    "array of batches": lambda: IMAGES.reshape(5, 2, *SHAPE),
    "list": lambda: list(IMAGES),
    "arrays of images and labels": lambda: (IMAGES, np.zeros(10)),
    "list of lists, as TFLite takes it": lambda: [[image[None]] for image in IMAGES],
    "dicts": lambda: [{"image": image, "label": 0} for image in IMAGES],
    "dict with one entry": lambda: ({"input_1": image} for image in IMAGES),
    "dict of arrays": lambda: {"image": IMAGES},
    "data set": lambda: tf.data.Dataset.from_tensor_slices(IMAGES),
    "batches with weights": lambda: [(IMAGES, np.zeros(10), np.ones(10))],
    "data set of dicts": lambda: tf.data.Dataset.from_tensor_slices({"image": IMAGES}).batch(4),
    "PyDataset": lambda: Batches(),
    "generator": generator,
    "function of a generator": lambda: generator,
    "function of a data set": lambda: lambda: tf.data.Dataset.from_tensor_slices(IMAGES).batch(3),
    "float16": lambda: IMAGES.astype("float16").astype("float64"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_every_image(form):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = representative_images(FORMS[form](), SHAPE, "float32", IMAGENET)
    assert {(image.shape, image.dtype) for image in found} == {((1, *SHAPE), np.dtype("float32"))}
    np.testing.assert_allclose(np.concatenate(found), IMAGES, atol=1e-2)


def endless():
    for number in itertools.count():
        assert number <= MOST_IMAGES
        yield IMAGES[number % 10]


@pytest.mark.parametrize(
    "data",
    [
        endless,
        endless(),
        tf.data.Dataset.from_tensor_slices(IMAGES).repeat(),
        tf.data.Dataset.from_tensor_slices(IMAGES).batch(7, True).repeat(),
        itertools.cycle(IMAGES),
    ],
    ids=["function", "generator", "images", "batches", "cycle"],
)
def test_of_an_endless_data_set_the_first_images_are_read(data):
    with pytest.warns(UserWarning, match=f"on the first {MOST_IMAGES} images"):
        found = representative_images(data, SHAPE, "float32", IMAGENET)
    assert len(found) == MOST_IMAGES


@pytest.mark.parametrize(
    ("images", "dtype", "normalization", "message"),
    [
        (PIXELS.astype("float32"), "float32", IMAGENET, r"-2\.12 to 2\.64.*from 0 to 255"),
        (PIXELS[:, ::-1].astype("float32") // 20, "float32", IMAGENET, "from 0 to 12"),
        (PIXELS / 255, "float32", IMAGENET, r"-2\.12 to 2\.64.*from 0 to 1$"),
        (PIXELS / 255, "float32", HALF, r"-1\.00 to 1\.00.*from 0 to 1$"),
        (PIXELS.astype("float32"), "float32", UNIT, r"0\.00 to 1\.00.*from 0 to 255"),
        (PIXELS - 123.7, "float32", IMAGENET, r"from -123\.7 to 131\.3"),
        (np.zeros((10, *SHAPE)), "float32", IMAGENET, "images of one value.*from 0 to 0"),
        (np.zeros((10, *SHAPE), "uint8"), "uint8", IMAGENET, "images of one value"),
        (PIXELS // 128, "uint8", IMAGENET, "raw pixels from 0 to 255.*from 0 to 1"),
    ],
)
def test_images_of_another_scale_are_refused_with_the_numbers(
    images, dtype, normalization, message
):
    with pytest.raises(ValueError, match=message) as caught:
        representative_images(images, SHAPE, dtype, normalization)
    assert "\n" not in str(caught.value)
    assert "10 images" in str(caught.value)


@pytest.mark.parametrize(
    ("images", "dtype", "normalization"),
    [(PIXELS / 127.5 - 1, "float32", IMAGENET), (PIXELS // 3, "uint8", IMAGENET)],
)
def test_images_of_little_contrast_are_warned_of(images, dtype, normalization):
    with pytest.warns(UserWarning, match="cut off the values of other images. Received: 10 images"):
        representative_images(images, SHAPE, dtype, normalization)


@pytest.mark.parametrize(
    ("images", "dtype", "normalization"),
    [(PIXELS / 255, "float32", UNIT), (HALF(PIXELS), "float32", HALF), (PIXELS, "uint8", HALF)],
)
def test_images_as_the_network_takes_them_pass_without_a_word(images, dtype, normalization):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(representative_images(images, SHAPE, dtype, normalization)) == 10


def test_few_images_are_warned_of():
    with pytest.warns(UserWarning, match="Received: 2 images in `representative_data`"):
        representative_images(IMAGES[:2], SHAPE, "float32", IMAGENET)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("images", "`representative_data` must be a tf.data.Dataset"),
        (7, "`representative_data` must be a tf.data.Dataset"),
        (lambda: 7, "must return an iterable"),
        ([{"a": IMAGES[0], "b": 0}], "that is called 'image'. Received: entries 'a', 'b'"),
        ([], "has no image"),
        (iter(()), "has no image"),
    ],
)
def test_what_holds_no_images_is_one_line(data, message):
    with pytest.raises(ValueError, match=message) as caught:
        representative_images(data, SHAPE, "float32", IMAGENET)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def network():
    """A network none of whose attention heads has a live hidden unit."""
    network = small_network(spec=SHORT_SPEC)
    for layer in network.supernet_layers:
        if hasattr(layer, "b1"):
            layer.b1.assign(np.full(layer.b1.shape, -100.0))
    network.routes = (0, 3)
    return network


def check(content, run, network, width):
    model = parse(content)
    activations = [
        tensor
        for graph in model.subgraphs
        for tensor in graph.tensors
        if is_activation(tensor, model)
    ]
    assert activations
    assert min(tensor.quantization.scale[0] for tensor in activations) >= 0.99 * LEAST_SCALE
    images = random_images(8)
    expected = network(images, path=width).numpy()
    outputs = np.concatenate([run(image[None]) for image in images])
    assert np.abs(outputs - expected).max() < 0.1 * expected.max()


@pytest.mark.long
@pytest.mark.parametrize("layout", ["shared", "fast"])
def test_a_routed_file_with_dead_units_runs(network, layout, tmp_path):
    path = tmp_path / "m.tflite"
    options = {"quantize": "int8", "representative_data": random_images(32), "verbose": False}
    export_routed(network, path, layout=layout, **options)
    runner = Interpreter(str(path)).get_signature_runner("bounded")
    width = np.array([3], "int32")
    check(
        path.read_bytes(),
        lambda image: runner(image=image, min_width=width, max_width=width)["output"],
        network,
        3,
    )


def test_a_static_file_with_dead_units_runs(network, tmp_path):
    path = tmp_path / "m.tflite"
    data = random_images(32)
    export_subnetwork(network, 3, path, quantize="int8", representative_data=data)
    runner = Interpreter(str(path)).get_signature_runner("serving_default")
    check(path.read_bytes(), lambda image: runner(image=image)["output"], network, 3)


def test_a_full_disk_is_no_fault_of_the_network(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(conversion, "narrow_ranges", fail)
    network = small_network(spec=SHORT_SPEC)
    options = {"quantize": "int8", "representative_data": IMAGES}
    with pytest.raises(OSError, match="No space left on device"):
        export_subnetwork(network, 0, tmp_path / "m.tflite", **options)
    assert not list(tmp_path.iterdir())
