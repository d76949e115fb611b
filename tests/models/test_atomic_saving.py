"""A saved network is complete, or the earlier file stays."""

import errno
import io
import pathlib

import keras
import numpy as np
import pytest
from routed_networks import SHORT_SPEC, small_network
from tiny_detectors import tiny_detector

FILES = ("model.keras", "model.weights.h5")
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(scope="module")
def network():
    return small_network(spec=SHORT_SPEC)


@pytest.fixture(scope="module")
def detector():
    return tiny_detector()


def save(network, path):
    (network.save if path.suffix == ".keras" else network.save_weights)(path)


def fail(*_):
    raise FULL


@pytest.mark.parametrize("filename", FILES)
@pytest.mark.parametrize("kind", ["network", "detector"])
def test_a_save_that_fails_keeps_the_earlier_file(kind, filename, request, tmp_path, monkeypatch):
    network = request.getfixturevalue(kind)
    path = tmp_path / filename
    save(network, path)
    before = path.read_bytes()
    # Keras saves the layers before it writes the file's end.
    monkeypatch.setattr(keras.layers.Layer, "save_own_variables", fail)
    with pytest.raises(OSError, match="No space left") as caught:
        save(network, path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("filename", FILES)
def test_what_is_saved_is_loaded(network, filename, tmp_path):
    path = tmp_path / filename
    save(network, path)
    if path.suffix == ".keras":
        other = keras.models.load_model(path)
    else:
        other = small_network(spec=SHORT_SPEC, seed=1)
        other.load_weights(path)
    for value, expected in zip(other.get_weights(), network.get_weights(), strict=True):
        np.testing.assert_array_equal(value, expected)


def test_hdf5_never_writes_to_the_disk(network, tmp_path, monkeypatch):
    """It ends the process with a segmentation fault when the disk is full."""
    import h5py

    opened = []
    open_file = h5py.File.__init__

    def record(self, name, *args, **kwargs):
        opened.append(name)
        open_file(self, name, *args, **kwargs)

    monkeypatch.setattr(h5py.File, "__init__", record)
    network.save(tmp_path / "model.keras")
    network.save_weights(tmp_path / "model.weights.h5")
    assert len(opened) == 2
    assert all(isinstance(name, io.BytesIO) for name in opened)


def test_the_errors_and_the_question_are_those_of_keras(network, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError):
        network.save(tmp_path / "nowhere" / "model.keras")
    with pytest.raises(ValueError, match=r"must end in `\.weights\.h5`"):
        network.save_weights(tmp_path / "model.h5x")
    path = tmp_path / "model.keras"
    path.write_text("mine")
    asked = []
    monkeypatch.setattr("builtins.input", lambda *text: asked.append(text) or "n")
    network.save(path, overwrite=False)
    assert path.read_text() == "mine"
    assert len(asked) == 1


def test_a_folder_is_written_as_keras_does(network, tmp_path):
    network.save(tmp_path / "model", zipped=False)
    assert {path.name for path in pathlib.Path(tmp_path, "model").iterdir()} >= {"config.json"}
