"""Networks that come with the package, as supernets of gates."""

import keras
import numpy as np
import pytest
from keras_dsnet.applications import DSMobileNet
from keras_dsnet_recipes.lib.reproduction.shipped import save_shipped


@pytest.mark.slow
def test_gates_start_untrained_on_the_trained_widths(tmp_path):
    path = save_shipped("DSMobileNet", "cifar10", tmp_path / "run")
    model, trained = keras.models.load_model(path), DSMobileNet(weights="cifar10")
    assert (model.gates_trained, model.routing, model.spec.gate_encoder) == (
        False,
        "gate",
        "global",
    )
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    for end in ("slimmest", "widest"):
        np.testing.assert_array_equal(model(images, path=end), trained(images, path=end))
    written = path.stat().st_mtime_ns
    assert save_shipped("DSMobileNet", "cifar10", tmp_path / "run").stat().st_mtime_ns == written


@pytest.mark.slow
@pytest.mark.parametrize(
    "spoil",
    [
        # Weights of an earlier version of the package, a work directory of a version without
        # checksums, and a training of one's own.
        lambda folder: (folder / "weights.sha256").write_text("0" * 64 + "\n"),
        lambda folder: (folder / "weights.sha256").unlink(),
        lambda folder: (folder / "config.json").write_text("{}"),
    ],
)
def test_another_network_in_the_folder_is_not_taken_for_the_shipped_one(tmp_path, spoil):
    path = save_shipped("DSMobileNet", "cifar10", tmp_path)
    before = path.read_bytes()
    spoil(tmp_path)
    with pytest.raises(ValueError, match=r"has another network than DSMobileNet\(weights='cifar10"):
        save_shipped("DSMobileNet", "cifar10", tmp_path)
    assert path.read_bytes() == before
