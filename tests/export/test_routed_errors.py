"""Tests that exports refuse bad input before they convert, and keep old files."""

import importlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from routed_networks import SIZE, random_images, small_network

from keras_dsnet.export import export_routed, export_subnetwork

IMAGES = random_images(2)
INT8 = {"quantize": "int8"}
MODULE = importlib.import_module("keras_dsnet.export.export_routed")


@pytest.fixture(scope="module")
def network():
    return small_network()


@pytest.fixture
def filename(tmp_path):
    """The path of an old file."""
    filename = tmp_path / "m.tflite"
    filename.write_bytes(b"old")
    return filename


@pytest.fixture
def no_conversion(monkeypatch):
    monkeypatch.setattr(MODULE, "convert_parts", lambda *_: pytest.fail("the conversion has begun"))


def with_value(value):
    """Returns images of which one holds the given value."""
    images = IMAGES.copy()
    images[1, 2, 3, 0] = value
    return images


def failing_batches():
    """Yields images of which only the last have a wrong shape."""
    yield IMAGES
    yield IMAGES[:, :8]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"routes": (0, 4)}, r"`routes` must be ascending widths from 0 to 3.*routes=\(0, 4\)"),
        ({"routes": (2, 0)}, r"routes=\(2, 0\)"),
        ({"routes": (1, 1)}, r"routes=\(1, 1\)"),
        ({"routes": (-1, 2)}, r"routes=\(-1, 2\)"),
        ({"routes": ()}, r"routes=\(\)"),
        ({"routes": 2}, "routes=2"),
        ({"quantize": "int4"}, "'dynamic' or 'int8'.*quantize='int4'"),
        ({"crop_fraction": 0}, r"`crop_fraction` must be above 0 and at most 1.*crop_fraction=0$"),
        ({"crop_fraction": 1.5}, "at most 1.*crop_fraction=1.5$"),
        ({"layout": "slow"}, "'fast' or 'staged'.*layout='slow'"),
        ({"input_type": "int8"}, "'float32' or 'uint8'.*input_type='int8'"),
        ({"input_shape": (16, 16)}, r"input_shape=\(height, width, 3\).*=\(16, 16\)"),
        ({"input_shape": (16, 16, 1)}, r"=\(16, 16, 1\)"),
        ({"input_shape": (0, 16, 3)}, r"=\(0, 16, 3\)"),
        ({"input_shape": (None, 16, 3)}, r"=\(None, 16, 3\)"),
        ({"input_shape": 16}, "input_shape=16"),
        ({"input_shape": (32, 32, 3)}, r"must be the network's, \(16, 16, 3\).*=\(32, 32, 3\)"),
        ({"input_shape": (16, 16.0, 3)}, r"=\(16, 16.0, 3\)"),
        ({"input_shape": (True, 16, 3)}, r"=\(True, 16, 3\)"),
        ({"layout": None}, "layout=None"),
        ({"layout": ["shared"]}, "layout="),
        ({"quantize": ["int8"]}, "quantize="),
        ({"quantize": True}, "quantize=True"),
        ({"input_type": None}, "input_type=None"),
        ({"representative_data": IMAGES}, "`representative_data` is only .* with quantize=None"),
        (
            {"quantize": "float16", "representative_data": IMAGES},
            "`representative_data` with quantize='float16'",
        ),
        (
            {**INT8, "representative_data": 100 * abs(IMAGES)},
            r"normalised as the network's.*-2\.12 to 2\.64.*2 images",
        ),
        (INT8, "int8' needs `representative_data`.*None"),
        ({**INT8, "representative_data": []}, "has no image"),
        ({**INT8, "representative_data": lambda: 5}, "must return an iterable"),
        ({**INT8, "representative_data": IMAGES[:, :8]}, r"\(16, 16, 3\).*\(2, 8, 16, 3\)"),
        ({**INT8, "representative_data": failing_batches()}, r"\(16, 16, 3\).*\(2, 8, 16, 3\)"),
        ({**INT8, "representative_data": IMAGES[..., 0]}, r"\(16, 16\)"),
        ({**INT8, "representative_data": IMAGES.astype("uint8")}, "not raw pixels.*uint8"),
        ({**INT8, "representative_data": with_value(np.nan)}, "finite values"),
        ({**INT8, "representative_data": with_value(np.inf)}, "finite values"),
        (
            {**INT8, "representative_data": IMAGES, "input_type": "uint8"},
            "raw uint8 pixels.*float32",
        ),
    ],
)
def test_bad_input_is_one_clear_line_before_any_conversion(
    network, filename, no_conversion, options, message
):
    with pytest.raises(ValueError, match=message) as caught:
        network.export(filename, format="litert", **options)
    assert "\n" not in str(caught.value)
    assert filename.read_bytes() == b"old"
    assert [entry.name for entry in filename.parent.iterdir()] == ["m.tflite"]


def test_an_open_input_shape_needs_a_size(filename, no_conversion):
    network = small_network(input_shape=(None, None, 3))
    with pytest.raises(ValueError, match=r"pass `input_shape=.*\(None, None, 3\)"):
        network.export(filename, format="litert")


def test_a_path_that_cannot_be_written_is_named_before_any_conversion(
    network, tmp_path, no_conversion
):
    with pytest.raises(FileNotFoundError, match=r"nowhere/m\.tflite"):
        network.export(tmp_path / "nowhere" / "m.tflite", format="litert")
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        network.export(tmp_path, format="litert")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["m", "m.keras", "m.tflite.bak", "m.TFLITE"])
def test_another_ending_is_refused_before_any_conversion(network, tmp_path, no_conversion, name):
    for export in (network.export, lambda f, **_: export_subnetwork(network, 0, f)):
        with pytest.raises(ValueError, match=r"must end in '\.tflite'. Received: ") as caught:
            export(tmp_path / name, format="litert")
        assert name in str(caught.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", [None, 7, ""])
def test_what_is_no_name_is_refused_before_any_conversion(network, no_conversion, name):
    with pytest.raises(ValueError, match="needs a name that ends in"):
        export_routed(network, name)
    with pytest.raises(ValueError, match="needs a name that ends in"):
        export_subnetwork(network, 0, name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_shape": (32, 32, 3)}, r"must be the network's, \(16, 16, 3\)"),
        ({"input_shape": (16, 16, 1)}, r"=\(16, 16, 1\)"),
        ({"quantize": "int4"}, "quantize='int4'"),
        ({"input_type": "int8"}, "input_type='int8'"),
        ({"representative_data": IMAGES}, "with quantize=None"),
        ({**INT8, "representative_data": IMAGES, "input_type": "uint8"}, "raw uint8 pixels"),
    ],
)
def test_a_sub_networks_bad_input_is_one_line_before_any_conversion(
    network, filename, monkeypatch, options, message
):
    module = importlib.import_module("keras_dsnet.export.export_subnetwork")
    monkeypatch.setattr(module, "convert", lambda *_: pytest.fail("the conversion has begun"))
    with pytest.raises(ValueError, match=message) as caught:
        export_subnetwork(network, 0, filename, **options)
    assert "\n" not in str(caught.value)
    assert filename.read_bytes() == b"old"


def test_what_has_no_paths_is_named(filename):
    for export in (export_routed, export_subnetwork):
        with pytest.raises(ValueError, match=r"Only a DynamicSlimmableNetwork.*a Sequential"):
            export(keras.Sequential(), 0, filename)


def test_routes_that_the_gate_was_not_trained_for_are_warned_of(filename, no_conversion):
    network = small_network()
    network.routes = (1, 3)
    begun = pytest.raises(pytest.fail.Exception, match="the conversion has begun")
    with pytest.warns(UserWarning, match=r"trained for the routes \(1, 3\).*\(0, 3\)"), begun:
        export_routed(network, filename, routes=(0, 3), verbose=False)


def test_an_export_that_is_killed_leaves_nothing(network, filename, monkeypatch):
    seen = []

    def check_routed(*_, **options):
        seen.extend(entry.name for entry in filename.parent.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(MODULE, "check_routed", check_routed)
    with pytest.raises(KeyboardInterrupt):
        network.export(filename, format="litert", routes=(0,), verbose=False)
    # The check is the last step before the file is written.
    assert seen == ["m.tflite"]


def test_an_untrained_gate_is_warned_of(filename, no_conversion):
    network = small_network()
    network.gates_trained = False
    begun = pytest.raises(pytest.fail.Exception, match="the conversion has begun")
    with pytest.warns(UserWarning, match=r"not trained.*'bounded'.*GateTrainer"), begun:
        export_routed(network, filename, verbose=False)


def test_what_tflite_cannot_hold_is_its_first_line_and_the_old_file_survives(
    network, filename, monkeypatch
):
    def front(self, image):
        return {"features": (tf.linalg.svd(image, compute_uv=False)[..., None],)}

    monkeypatch.setattr(MODULE.RoutedParts, "front", front)
    with pytest.raises(ValueError, match=r"TFLite cannot hold .*'tf\.Svd' op is") as caught:
        network.export(filename, format="litert", verbose=False)
    assert "\n" not in str(caught.value)
    assert "loc(" not in str(caught.value)
    assert filename.read_bytes() == b"old"
    assert [entry.name for entry in filename.parent.iterdir()] == ["m.tflite"]


def test_what_the_check_refuses_is_not_written(network, filename, monkeypatch):
    def check_routed(content, *args, **options):
        raise ValueError(f"{content} differs")

    monkeypatch.setattr(MODULE, "convert_parts", lambda *_: (None, None))
    monkeypatch.setattr(MODULE, "assemble_file", lambda *_: None)
    monkeypatch.setattr(MODULE, "pack", lambda _: b"new")
    monkeypatch.setattr(MODULE, "check_routed", check_routed)
    with pytest.raises(ValueError, match="b'new' differs"):
        network.export(filename, format="litert", verbose=False)
    assert filename.read_bytes() == b"old"
    assert [entry.name for entry in filename.parent.iterdir()] == ["m.tflite"]


def test_every_image_of_every_form_of_representative_data_counts():
    images = MODULE.representative_images
    shape = (SIZE, SIZE, 3)
    forms = [
        IMAGES,
        IMAGES[None],
        list(IMAGES),
        [(image, 0) for image in IMAGES],
        tf.data.Dataset.from_tensor_slices((IMAGES, [0, 1])).batch(2),
        (image.astype("float64") for image in IMAGES),
    ]
    for form in forms:
        found = images(form, shape)
        assert all(image.shape == (1, *shape) for image in found)
        assert {image.dtype for image in found} == {np.dtype("float32")}
        np.testing.assert_array_equal(np.concatenate(found), IMAGES)
