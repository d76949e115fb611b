"""Files of weights of a detector: what fits, what is refused, and what stays as it was."""

import dataclasses

import keras
import numpy as np
import pytest
from routed_networks import SPEC
from tiny_detectors import detector_images, tiny_detector

from keras_dsnet.detection import DetectionGateTrainer
from keras_dsnet.detection.backbone import detector_with_dtype


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A detector with settings of its own, and the files of its weights and of the whole."""
    folder = tmp_path_factory.mktemp("weights")
    detector = tiny_detector(class_names=("a", "b", "c"))
    detector.routes, detector.thresholds = (0, 2), (0.2,)
    detector.routing = "confidence"
    detector.save_weights(folder / "d.weights.h5")
    detector.save(folder / "d.keras")
    return detector, folder


@pytest.mark.parametrize("name", ["d.weights.h5", "d.keras"])
def test_weights_bring_outputs_and_settings(weights, name):
    detector, folder = weights
    other = tiny_detector()
    other.set_weights([0 * values for values in other.get_weights()])
    other.load_weights(folder / name)
    images = detector_images(2)
    for key, values in detector(images, path=1).items():
        np.testing.assert_array_equal(other(images, path=1)[key], values)
    assert (other.class_names, other.routing, other.routes, other.thresholds) == (
        ("a", "b", "c"),
        "confidence",
        (0, 2),
        (0.2,),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": (0.3, 0.5, 0.7, 0.9)}, r"a detector with scales=\["),
        ({"activation": "swish"}, "a detector with activation='relu'.*activation='swish'"),
        ({"spec": dataclasses.replace(SPEC, activation="relu6")}, r"with backbone\.activation="),
        ({"pyramid": 16}, r"with pyramid=\[12, 12, 12\].*pyramid=\[16, 16, 16\]"),
    ],
)
def test_weights_of_another_detector_are_refused_and_change_nothing(weights, options, message):
    _, folder = weights
    other = tiny_detector(class_names=("x", "y", "z"), **options)
    before = other.get_weights()
    with pytest.raises(ValueError, match=message):
        other.load_weights(folder / "d.weights.h5")
    assert (other.class_names, other.routing) == (("x", "y", "z"), "gate")
    for new, old in zip(other.get_weights(), before):
        np.testing.assert_array_equal(new, old)


def test_a_load_that_fails_leaves_the_settings(weights):
    _, folder = weights
    # Keras finds out that the number of classes differs when the settings are read.
    other = tiny_detector(classes=2, class_names=("x", "y"))
    routes, steps = other.routes, other.confidence_steps
    with pytest.raises(ValueError):
        other.load_weights(folder / "d.weights.h5")
    assert (other.class_names, other.routing) == (("x", "y"), "gate")
    assert (other.routes, other.confidence_steps) == (routes, steps)


def test_layers_of_the_head_that_are_frozen_stay_so(tmp_path):
    detector = tiny_detector()
    frozen = [layer for layer in detector.head_layers if layer.weights][:3]
    for layer in frozen:
        layer.trainable = False
    count = len(detector.trainable_variables)
    detector.save(tmp_path / "d.keras")
    loaded = keras.models.load_model(tmp_path / "d.keras")
    for other in (loaded, detector_with_dtype(detector, "mixed_bfloat16")):
        assert len(other.trainable_variables) == count
        names = [layer.name for layer in other.head_layers if not layer.trainable]
        assert names == [layer.name for layer in frozen]


def test_gates_of_a_detector_of_several_are_refused():
    detector = tiny_detector("resnet")
    routes = detector.routes
    with pytest.raises(ValueError, match=r"must have one gate\. Received: a detector of 3 gates"):
        DetectionGateTrainer(detector, routes=(0, 1))
    assert detector.routes == routes


def test_channels_that_groups_do_not_divide_are_named():
    with pytest.raises(ValueError, match=r"multiples of 4\. Received: \(18,\) channels for"):
        tiny_detector("resnet", channels=9)
