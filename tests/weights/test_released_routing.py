"""The weights that the authors released as a dynamic network, without training."""

import numpy as np
import pytest
from keras_dsnet.applications import DSMobileNet

from keras_dsnet.export import DynamicInterpreter
from keras_dsnet.training import calibrate_confidence

IMAGES = np.random.default_rng(0).normal(size=(12, 32, 32, 3)).astype("float32")


def dynamic_network():
    arguments = {"routing": "confidence", "confidence_steps": (0, 13)}
    return DSMobileNet(weights="imagenet", input_shape=(32, 32, 3), **arguments)


@pytest.mark.slow
def test_released_weights_route_by_confidence_and_can_be_calibrated(released_checkpoint, recwarn):
    model = dynamic_network()
    settings = model.routing, model.confidence_steps, model.gates_trained
    assert settings == ("confidence", (0, 13), False)
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
    with pytest.raises(ValueError, match=r"from 0 to 13. Received: confidence_steps=\(0, 14\)"):
        DSMobileNet(weights="imagenet", confidence_steps=(0, 14))
    assert not (tmp_path / "keras").exists()


@pytest.mark.long
def test_a_file_of_the_released_weights_routes_by_confidence(released_checkpoint, tmp_path):
    model = dynamic_network()
    model.export(tmp_path / "m.tflite", format="litert", verbose=False)
    interpreter = DynamicInterpreter(tmp_path / "m.tflite")
    for threshold, width in ((0.0, 0), (1.0, 13)):
        results = [interpreter.run(image, thresholds=(threshold,)) for image in IMAGES[:3]]
        assert {path for _, path in results} == {(width,)}
        expected = model(IMAGES[:3], path=width)
        np.testing.assert_allclose([output for output, _ in results], expected, atol=1e-4)
