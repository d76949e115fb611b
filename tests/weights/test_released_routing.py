"""The weights that the authors released as a dynamic network, without training."""

import dataclasses

import numpy as np
import pytest
from keras_dsnet.applications import DSMobileNet
from keras_dsnet.applications.ds_mobilenet import PRESETS

from keras_dsnet.export import DynamicInterpreter
from keras_dsnet.training import calibrate_confidence

IMAGES = np.random.default_rng(0).normal(size=(12, 32, 32, 3)).astype("float32")


@pytest.fixture
def release(checkpoint, tmp_path, monkeypatch):
    """Makes a local file in the format of the authors' code the released checkpoint."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    preset = dataclasses.replace(PRESETS["imagenet"], url=checkpoint.as_uri(), classes=20)
    monkeypatch.setitem(PRESETS, "imagenet", preset)


def test_released_weights_route_by_confidence_and_can_be_calibrated(release, recwarn):
    model = DSMobileNet(weights="imagenet", input_shape=(32, 32, 3), routing="confidence")
    assert (model.routing, model.confidence_steps, model.gates_trained) == (
        "confidence",
        (0, 13),
        False,
    )
    labels = np.argmax(model(IMAGES, path="widest"), axis=1)
    calibrate_confidence(model, (IMAGES, labels), max_drop=0.0)
    assert np.mean(np.argmax(model(IMAGES), 1) == labels) == 1
    assert not [w for w in recwarn if "not trained" in str(w.message)]


@pytest.mark.parametrize("routing", ["any", 1])
def test_a_wrong_routing_is_refused_before_a_download(routing, monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    with pytest.raises(ValueError, match=f"Received: routing={routing!r}"):
        DSMobileNet(weights="imagenet", routing=routing)
    with pytest.raises(ValueError, match="include_top=False"):
        DSMobileNet(weights="imagenet", routing="confidence", include_top=False)
    assert not (tmp_path / "keras").exists()


@pytest.mark.long
def test_a_file_of_the_released_weights_routes_by_confidence(release, tmp_path):
    model = DSMobileNet(weights="imagenet", input_shape=(32, 32, 3), routing="confidence")
    sure = model(IMAGES, path=0).numpy().max(1)
    model.thresholds = float(np.median(sure))
    model.export(tmp_path / "m.tflite", format="litert", verbose=False)
    interpreter = DynamicInterpreter(tmp_path / "m.tflite")
    results = [interpreter.run(image) for image in IMAGES]
    np.testing.assert_allclose([output for output, _ in results], model(IMAGES), atol=1e-4)
    np.testing.assert_array_equal([path for _, path in results], model.route(IMAGES))
    assert len({path for _, path in results}) == 2
