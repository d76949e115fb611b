"""The plain networks of one width, which stage I trains alone for a comparison."""

import keras
import numpy as np
import pytest
from keras_dsnet.applications import DSEfficientNetB0, DSMobileNet
from keras_dsnet_recipes.lib.plain_topology import plain_fields

from keras_dsnet.export import export_subnetwork
from keras_dsnet.training import L2SGD, SupernetTrainer

PLAIN = {"activation": "relu", "attention": None}


def small(**options):
    fields = plain_fields("ds_mobilenet")
    return DSMobileNet(input_shape=(32, 32, 3), classes=4, alpha=0.125, **fields, **options)


def test_plain_topology_has_the_parameters_of_keras_mobilenet():
    ours = DSMobileNet(classes=1000, **plain_fields("ds_mobilenet"), **PLAIN)
    theirs = keras.applications.MobileNet(weights=None)
    # Their classifier is a convolution with a bias too.
    assert ours.subnetwork(0).count_params() == theirs.count_params()


@pytest.mark.slow
def test_plain_topology_has_the_parameters_of_keras_efficientnet():
    fields = plain_fields("ds_efficientnet_b0")
    ours = DSEfficientNetB0(classes=1000, attention="sigmoid", **fields)
    theirs = keras.applications.EfficientNetB0(weights=None)
    # They normalise the pixels inside the network.
    pixels = sum(v.shape.num_elements() for v in theirs.layers[2].weights)
    assert ours.subnetwork(0).count_params() == theirs.count_params() - pixels


def test_a_plain_network_has_the_ratio_of_the_network_it_is():
    assert small().spec.ratios == (1.0,)
    assert DSEfficientNetB0(**plain_fields("ds_efficientnet_b0")).spec.ratios == (1.0,)


def test_a_network_without_attention_has_no_attention_layers():
    layers = [layer.name for layer in small(**PLAIN).subnetwork(0).layers]
    assert not any("gate" in name for name in layers)
    assert any("gate" in layer.name for layer in small().subnetwork(0).layers)


@pytest.mark.long
def test_one_width_is_trained_saved_and_exported(tmp_path):
    model = small(**PLAIN)
    images = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype("float32")
    trainer = SupernetTrainer(model, target="in_place", label_path=0, sandwich=False)
    trainer.compile(L2SGD(0.05))
    before = [np.array(v) for v in trainer.optimized_variables]
    trainer.fit(images, np.arange(8) % 4, epochs=1, batch_size=4, verbose=0)
    assert all((b != v).any() for b, v in zip(before, map(np.array, trainer.optimized_variables)))
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert loaded.spec == model.spec
    np.testing.assert_array_equal(loaded(images, path=0), model(images, path=0))
    report = export_subnetwork(loaded, 0, tmp_path / "m.tflite")
    assert report["madds"] == model.madds(0)


@pytest.mark.parametrize("attention", ["relu", "none", 1])
def test_an_unknown_attention_is_refused(attention):
    with pytest.raises(ValueError, match=r"must be 'tanh', 'sigmoid' or None\. Received: atten"):
        small(attention=attention)
