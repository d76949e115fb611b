"""What a network says of itself survives every way of saving and copying it."""

import dataclasses
import json
import warnings

import h5py
import keras
import numpy as np
import pytest
from routed_networks import SHORT_SPEC, random_images, small_network

from keras_dsnet.models import (
    DynamicSlimmableNetwork,
    Normalization,
    with_dtype,
    with_slimming_head,
)
from keras_dsnet.training import GateTrainer, SupernetTrainer

NAMES = ("ant", "bee", "cat", "dog", "elk")
HALF = Normalization((0.5, 0.5, 0.5), (0.25, 0.5, 0.5))
IMAGES = random_images(8)
LABELS = np.arange(8) % 5


def make_network(**options):
    options = {"class_names": NAMES, "normalization": HALF, "routes": (0, 2, 3), **options}
    return small_network(spec=SHORT_SPEC, **options)


def fresh_network(**options):
    return DynamicSlimmableNetwork(SHORT_SPEC, (16, 16, 3), 5, **options)


def facts(network):
    return (network.routes, network.gates_trained, network.class_names, network.normalization)


FACTS = ((0, 2, 3), True, NAMES, HALF)


@pytest.fixture(scope="module")
def network():
    return make_network()


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "net.weights.h5"
    network.save_weights(path)
    return path


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_saved_network_says_all_of_itself(network, tmp_path, suffix):
    network.save(tmp_path / f"net{suffix}")
    loaded = keras.models.load_model(tmp_path / f"net{suffix}")
    assert facts(loaded) == FACTS
    np.testing.assert_array_equal(loaded(IMAGES), network(IMAGES))


def test_a_copy_says_all_of_it(network):
    copy = DynamicSlimmableNetwork.from_config(network.get_config())
    copy.set_weights(network.get_weights())
    assert facts(copy) == FACTS
    np.testing.assert_array_equal(copy(IMAGES), network(IMAGES))
    assert facts(keras.models.clone_model(network)) == FACTS
    assert facts(with_dtype(network, "mixed_bfloat16")) == FACTS


def test_a_new_slimming_head_is_not_trained(network):
    changed = with_slimming_head(network, "scalar")
    assert facts(changed) == ((0, 2, 3), False, NAMES, HALF)


def test_weights_say_all_of_it_to_a_network_of_the_same_classes(weights):
    filled = fresh_network()
    filled.load_weights(weights)
    assert facts(filled) == FACTS
    renamed = fresh_network(class_names=tuple("vwxyz"))
    renamed.load_weights(weights)
    assert renamed.class_names == NAMES


def test_weights_of_a_whole_model_in_the_older_format_say_it_too(network, tmp_path):
    network.save(tmp_path / "net.h5")
    filled = fresh_network()
    filled.load_weights(tmp_path / "net.h5")
    assert facts(filled) == FACTS


def test_weights_of_other_classes_bring_no_names_and_no_gates(weights):
    other = DynamicSlimmableNetwork(SHORT_SPEC, (16, 16, 3), 3, class_names=("x", "y", "z"))
    with warnings.catch_warnings():
        # Keras names the classifier, which does not fit.
        warnings.simplefilter("ignore")
        other.load_weights(weights, skip_mismatch=True)
    assert facts(other) == ((0, 1, 2, 3), False, ("x", "y", "z"), HALF)


def test_features_keep_routes_and_gates(weights):
    features = fresh_network(include_top=False)
    features.load_weights(weights)
    assert facts(features) == FACTS


def test_weights_with_more_widths_are_named(weights):
    stages = (
        SHORT_SPEC.stages[0],
        *(dataclasses.replace(s, channels=s.channels[:3]) for s in SHORT_SPEC.stages[1:]),
    )
    slim = DynamicSlimmableNetwork(dataclasses.replace(SHORT_SPEC, stages=stages), (16, 16, 3), 5)
    with pytest.raises(
        ValueError, match=r"with stages\[1\]\.channels=\(8, 16, 24, 32\)\. Received"
    ):
        slim.load_weights(weights)


def test_files_of_before_load_and_leave_what_they_do_not_say(network, weights, tmp_path):
    old = tmp_path / "old.weights.h5"
    old.write_bytes(weights.read_bytes())
    with h5py.File(old, "a") as file:
        config = json.loads(bytes(np.array(file["vars"]["config"])))
        for name in ("class_names", "normalization", "gates_trained", "pooling", "frozen_layers"):
            del config[name]
        del file["vars"]["config"]
        file["vars"]["config"] = np.frombuffer(json.dumps(config).encode(), "uint8")
    filled = fresh_network(class_names=NAMES)
    filled.load_weights(old)
    assert facts(filled) == ((0, 2, 3), True, NAMES, Normalization())
    config = network.get_config()
    for name in ("class_names", "normalization", "gates_trained", "pooling", "frozen_layers"):
        del config[name]
    assert facts(DynamicSlimmableNetwork.from_config(config))[1:] == (False, None, Normalization())


def around(network, **call):
    images = keras.Input((16, 16, 3))
    return keras.Model(images, keras.layers.Dense(5, activation="softmax")(network(images, **call)))


def test_loading_a_model_around_a_trained_network_does_not_warn(tmp_path):
    features = make_network(include_top=False, pooling="avg")
    model = around(features)
    model.save(tmp_path / "around.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = keras.models.load_model(tmp_path / "around.keras")
        np.testing.assert_allclose(loaded(IMAGES), model(IMAGES), atol=1e-6)
    features.gates_trained = False
    features(IMAGES[:1], path=0)
    model.save(tmp_path / "around.keras")
    loaded = keras.models.load_model(tmp_path / "around.keras")
    with pytest.warns(UserWarning, match="not trained"):
        loaded(IMAGES)


def freeze_all(network):
    network.trainable = False


def freeze_some(network):
    for layer in network.supernet_layers[:6]:
        layer.trainable = False


def freeze_all_but_the_last(network):
    network.trainable = False
    network.supernet_layers[-1].trainable = True


def flags(network):
    return network.trainable, [layer.trainable for layer in network.supernet_layers]


@pytest.mark.slow
@pytest.mark.parametrize("freeze", [freeze_all, freeze_some, freeze_all_but_the_last])
def test_frozen_layers_stay_frozen(network, freeze, tmp_path):
    frozen = make_network()
    freeze(frozen)
    expected = flags(frozen)
    copies = [keras.models.clone_model(frozen), with_dtype(frozen, "mixed_bfloat16")]
    for suffix in (".keras", ".h5"):
        frozen.save(tmp_path / f"net{suffix}")
        copies.append(keras.models.load_model(tmp_path / f"net{suffix}"))
        np.testing.assert_array_equal(copies[-1](IMAGES, path=2), frozen(IMAGES, path=2))
    for trainer in (SupernetTrainer(frozen), GateTrainer(frozen)):
        trainer.save(tmp_path / "trainer.keras")
        copies.append(keras.models.load_model(tmp_path / "trainer.keras").model)
    for copy in copies:
        assert flags(copy) == expected
        trainable = [variable.trainable for variable in copy.variables]
        assert trainable == [variable.trainable for variable in frozen.variables]


def test_weights_freeze_nothing(network, tmp_path):
    frozen = make_network(trainable=False)
    assert not any(variable.trainable for variable in frozen.variables)
    frozen.save_weights(tmp_path / "net.weights.h5")
    filled = fresh_network()
    filled.load_weights(tmp_path / "net.weights.h5")
    assert flags(filled) == flags(network)


@pytest.mark.slow
@pytest.mark.parametrize(("container", "suffix"), [("functional", ".h5"), ("sequential", ".keras")])
def test_a_frozen_backbone_does_not_train_after_loading(tmp_path, container, suffix):
    backbone = make_network(include_top=False, pooling="max")
    backbone.trainable = False
    if container == "functional":
        model = around(backbone, path=1)
    else:
        dense = keras.layers.Dense(5, activation="softmax")
        model = keras.Sequential([keras.Input((16, 16, 3)), backbone, dense])
    assert len(model.trainable_variables) == 2
    model.save(tmp_path / f"model{suffix}")
    loaded = keras.models.load_model(tmp_path / f"model{suffix}")
    np.testing.assert_array_equal(loaded(IMAGES), model(IMAGES))
    assert len(loaded.trainable_variables) == 2
    loaded.compile("sgd", "sparse_categorical_crossentropy")
    loaded.fit(IMAGES, LABELS, verbose=0)
    for value, expected in zip(loaded.layers[-2].get_weights(), backbone.get_weights()):
        np.testing.assert_array_equal(value, expected)
    assert np.any(loaded.layers[-1].kernel != model.layers[-1].kernel)
