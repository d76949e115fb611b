"""Settings, paths and lists that change or vary between the calls of one network."""

import keras
import numpy as np
import pytest
from keras_dsnet.applications import DSMobileNet
from routed_networks import SHORT_SPEC, random_images, small_network

from keras_dsnet.models import DynamicSlimmableNetwork, Path, with_slimming_head

IMAGES = random_images(12)
LABELS = np.arange(12) % 5


@pytest.fixture
def network():
    return small_network(spec=SHORT_SPEC, classifier_activation="softmax")


def loss_of(network):
    probabilities = network.predict(IMAGES, verbose=0)[np.arange(12), LABELS]
    return float(-np.log(probabilities).mean())


@pytest.mark.slow
def test_evaluate_follows_every_setting_as_predict_does(network):
    network.compile(loss="sparse_categorical_crossentropy")
    losses = set()
    for name, value in (
        ("routing", "gate"),
        ("routes", (0, 1)),
        ("gates_trained", False),
        ("routing", "confidence"),
        ("confidence_steps", (0, 3)),
        ("thresholds", 1.0),
        ("thresholds", 0.0),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_, **__: None)
            setattr(network, name, value)
        loss = network.evaluate(IMAGES, LABELS, verbose=0)
        assert loss == pytest.approx(loss_of(network), rel=1e-4), (name, value)
        losses.add(round(loss, 5))
    assert len(losses) > 3


def test_predict_takes_a_list_of_images_for_a_batch(network):
    images = [*IMAGES[:3]]
    expected = network(IMAGES[:3])
    np.testing.assert_allclose(network.predict(images, verbose=0), expected, rtol=1e-5)
    config = {**network.get_config(), "input_shape": (None, None, 3)}
    several = DynamicSlimmableNetwork.from_config(config)
    several.set_weights(network.get_weights())
    np.testing.assert_allclose(several.predict(images, verbose=0), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="images of one size"):
        several.predict([IMAGES[0], IMAGES[0, 1:]], verbose=0)


@pytest.mark.parametrize("widths", [(0,), (0, 3, 2), (0, -1), (0, 99), ()])
def test_a_path_of_another_network_is_refused(network, widths):
    path = Path(widths, widths)
    for use in (lambda: network(IMAGES, path=path), lambda: network.madds(path)):
        with pytest.raises(ValueError, match="A `Path` of this network has 2 widths from 0 to 3"):
            use()
    with pytest.raises(ValueError, match="A `Path` of this network"):
        network.subnetwork(path)


@pytest.mark.parametrize("form", [3, "largest"])
def test_a_model_around_a_path_is_loaded_again(network, form, tmp_path):
    inputs = keras.Input((16, 16, 3))
    model = keras.Model(inputs, network(inputs, path=network.resolve_path(form)))
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(loaded(IMAGES), network(IMAGES, path=form), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("routes", (False, True)),
        ("routes", {0, 3}),
        ("confidence_steps", (np.False_, np.True_)),
        ("confidence_steps", {0: 1, 3: 2}),
        ("thresholds", {0.5}),
    ],
)
def test_masks_and_sets_are_no_settings(network, name, value):
    before = getattr(network, name)
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        setattr(network, name, value)
    assert getattr(network, name) == before


def test_dropout_is_no_weight_of_a_transfer():
    given = DSMobileNet(weights="cifar10", dropout=0.2)
    for other in (
        DSMobileNet(weights="cifar10", classes=5, dropout=0.2),
        with_slimming_head(given, "scalar"),
    ):
        kernels = [n.supernet_layers[0].kernel.numpy() for n in (given, other)]
        np.testing.assert_array_equal(*kernels)
        assert not other.gates_trained


def test_a_scope_is_no_part_of_a_transfer():
    with keras.name_scope("outer"):
        other = DSMobileNet(weights="cifar10", classes=5)
        trained = DSMobileNet(weights="cifar10")
    changed = with_slimming_head(trained, "scalar")
    expected = DSMobileNet(weights="cifar10").supernet_layers[0].kernel.numpy()
    for network in (other, changed):
        np.testing.assert_array_equal(network.supernet_layers[0].kernel, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"dropout": np.float32(0.25)},
        {"attention_ratio": np.float32(0.5)},
        {"share_encoder": np.True_},
    ],
)
def test_numbers_of_numpy_are_saved_as_numbers(options, tmp_path):
    network = DSMobileNet(input_shape=(32, 32, 3), classes=5, alpha=0.25, **options)
    network.save(tmp_path / "m.keras")
    network.save_weights(tmp_path / "m.weights.h5")
    assert keras.models.load_model(tmp_path / "m.keras").spec == network.spec
