"""What a network knows of its images goes where the network goes: files, copies, exports."""

import keras
import pytest
from keras_dsnet.applications import DSMobileNet
from routed_networks import small_network

from keras_dsnet.export.options import check_crop
from keras_dsnet.models.serialization import with_dtype


def test_a_crop_is_saved_with_a_network_and_with_its_weights(tmp_path):
    network = small_network()
    assert network.crop_fraction is None
    network.crop_fraction = 0.75
    network.save(tmp_path / "network.keras")
    network.save_weights(tmp_path / "network.weights.h5")
    assert keras.models.load_model(tmp_path / "network.keras").crop_fraction == 0.75
    assert with_dtype(network, "mixed_bfloat16").crop_fraction == 0.75
    same, other = small_network(), small_network(classes=7)
    same.load_weights(tmp_path / "network.weights.h5")
    other.load_weights(tmp_path / "network.weights.h5", skip_mismatch=True)
    # Other classes have other images.
    assert (same.crop_fraction, other.crop_fraction) == (0.75, None)


def test_weights_that_do_not_fit_leave_the_crop_as_it_was(tmp_path):
    network, wider = small_network(classes=5), small_network(classes=7)
    network.crop_fraction, wider.crop_fraction = 1, 0.5
    wider.save_weights(tmp_path / "wider.weights.h5")
    before = network.get_config()
    with pytest.raises(ValueError, match=r"with classes=7\. Received: .* classes=5$"):
        network.load_weights(tmp_path / "wider.weights.h5")
    assert network.get_config() == before


def test_networks_with_a_name_know_how_they_were_evaluated():
    assert DSMobileNet(weights="cifar10").crop_fraction == 1
    assert DSMobileNet(weights="cifar10", classes=3).crop_fraction is None


@pytest.mark.parametrize(
    ("own", "given", "exported"), [(None, None, 0.875), (1, None, 1), (1, 0.5, 0.5)]
)
def test_an_export_repeats_the_crop_of_the_network(own, given, exported):
    network = small_network()
    network.crop_fraction = own
    assert check_crop(network, given) == exported


@pytest.mark.parametrize("fraction", [0, -0.5, 1.5, float("nan"), "all", True])
def test_a_wrong_crop_is_refused_in_one_line(fraction):
    network = small_network()
    with pytest.raises(ValueError, match=r"`crop_fraction` must be above 0 and at most 1"):
        network.crop_fraction = fraction
    assert network.crop_fraction is None
