"""Weights files in float16."""

import io

import h5py
import numpy as np
import pytest
from keras_dsnet.applications import DSMobileNet

from keras_dsnet.utils import UserError
from keras_dsnet.weights import save_compact_weights


@pytest.fixture
def network():
    model = DSMobileNet(input_shape=(32, 32, 3), classes=5, alpha=0.25, output_stride=16)
    generator = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(generator.uniform(0.1, 1, variable.shape))
    for layer in model.supernet_layers:
        if hasattr(layer, "moving_variance"):
            layer.moving_variance.assign(generator.uniform(1e-9, 1e6, layer.moving_variance.shape))
    model.routes, model.gates_trained = (1, 4), True
    return model


def test_half_the_size_and_the_variances_untouched(network, tmp_path):
    network.save_weights(tmp_path / "whole.weights.h5")
    save_compact_weights(network, tmp_path / "half.weights.h5")
    whole, half = ((tmp_path / f"{name}.weights.h5").stat().st_size for name in ("whole", "half"))
    assert half < 0.75 * whole
    loaded = DSMobileNet(weights=tmp_path / "half.weights.h5")
    assert (loaded.spec, loaded.routes, loaded.gates_trained) == (network.spec, (1, 4), True)
    for value, expected in zip(loaded.variables, network.variables, strict=True):
        exact = expected.name == "moving_variance"
        np.testing.assert_allclose(value, expected, rtol=0 if exact else 1e-3)
        assert value.dtype == "float32"
    assert len(list(tmp_path.iterdir())) == 2


def test_values_that_float16_cannot_hold(network, tmp_path):
    network.supernet_layers[0].kernel.assign_add(np.full((3, 3, 3, 8), 1e6))
    with pytest.raises(UserError, match="float16 cannot hold"):
        save_compact_weights(network, tmp_path / "half.weights.h5")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="must end with"):
        save_compact_weights(network, tmp_path / "half.h5")


def test_hdf5_never_writes_to_the_disk(network, tmp_path, monkeypatch):
    """It ends the process with a segmentation fault when the disk is full."""
    written = []
    open_file = h5py.File.__init__

    def record(self, name, mode="r", **kwargs):
        written.append(name) if mode != "r" else None
        open_file(self, name, mode, **kwargs)

    monkeypatch.setattr(h5py.File, "__init__", record)
    save_compact_weights(network, tmp_path / "half.weights.h5")
    assert len(written) == 2
    assert all(isinstance(name, io.BytesIO) for name in written)


def test_half_precision_files_say_so(network, tmp_path):
    save_compact_weights(network, tmp_path / "half.weights.h5")
    kinds = set()
    with h5py.File(tmp_path / "half.weights.h5") as file:
        file.visititems(lambda _, item: kinds.add(getattr(item, "dtype", None)))
    assert np.dtype("float16") in kinds


def test_a_whole_network_is_a_file_of_weights(network, tmp_path):
    network.save(tmp_path / "network.keras")
    loaded = DSMobileNet(weights=tmp_path / "network.keras")
    assert (loaded.spec, loaded.routes, loaded.gates_trained) == (network.spec, (1, 4), True)
    for value, expected in zip(loaded.variables, network.variables, strict=True):
        np.testing.assert_array_equal(value, expected)
    other = DSMobileNet(weights=tmp_path / "network.keras", classes=3, input_shape=(48, 48, 3))
    assert (other.classes, other.gates_trained) == (3, False)
    expected = {v.path: np.array(v) for v in network.variables}
    for value in other.variables:
        if not value.path.startswith("classifier/"):
            np.testing.assert_array_equal(value, expected[value.path])


def test_a_damaged_network_is_named(tmp_path):
    (tmp_path / "network.keras").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"network\.keras is damaged"):
        DSMobileNet(weights=tmp_path / "network.keras")
    with pytest.raises(FileNotFoundError, match=r"none\.keras"):
        DSMobileNet(weights=tmp_path / "none.keras")
