"""What a Keras user tries that a network refuses in one line, or does as Keras does."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from routed_networks import SHORT_SPEC, random_images, small_network
from tiny_detectors import tiny_detector

from keras_dsnet.models import DynamicSlimmableNetwork, EfficientNetSpec, MobileNetSpec, ResNetSpec

IMAGES = random_images(8)


@pytest.fixture(scope="module")
def network():
    return small_network(spec=SHORT_SPEC)


def one_line(error):
    assert "\n" not in str(error.value)


def test_the_dtype_of_a_made_network_stays(network):
    network.dtype_policy = network.dtype_policy
    network.dtype_policy = "float32"
    with pytest.raises(ValueError, match=r"with_dtype.*'mixed_bfloat16' after 'float32'") as error:
        network.dtype_policy = "mixed_bfloat16"
    one_line(error)
    assert network.dtype_policy.name == "float32"


def test_quantization_is_that_of_the_export(network):
    with pytest.raises(ValueError, match=r"export.*Received: quantize\('int8'\)") as error:
        network.quantize("int8")
    one_line(error)


def test_a_symbolic_input_is_there_after_a_symbolic_call():
    network = small_network(spec=SHORT_SPEC)
    network(IMAGES)
    for name in ("input", "output"):
        with pytest.raises(AttributeError, match=rf"subnetwork\(path\)\.{name}") as error:
            getattr(network, name)
        one_line(error)
    inputs = keras.Input((16, 16, 3))
    outputs = network(inputs)
    assert (network.input, network.output) == (inputs, outputs)


@pytest.mark.parametrize("method", ["features", "route", "run_dynamic"])
def test_methods_without_a_layer_refuse_symbolic_images(network, method):
    with pytest.raises(ValueError, match="Received: a KerasTensor of shape") as error:
        getattr(network, method)(keras.Input((16, 16, 3)))
    one_line(error)


@pytest.mark.parametrize("make", [lambda: small_network(spec=SHORT_SPEC), tiny_detector])
def test_a_tensorflow_checkpoint_holds_all_variables(make, tmp_path):
    model, other = make(), make()
    for variable in other.variables:
        variable.assign(tf.zeros_like(variable))
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "checkpoint"))
    names = [name for name, _ in tf.train.list_variables(path) if not name.startswith("_")]
    assert len(names) >= len(model.variables)
    tf.train.Checkpoint(model=other).read(path).assert_existing_objects_matched()
    for variable, expected in zip(other.variables, model.variables, strict=True):
        np.testing.assert_array_equal(variable, expected)


@pytest.mark.parametrize("known", [(None, 16, 16, None), (None, None, None, 3), None], ids=str)
def test_sizes_that_are_known_only_in_a_graph_are_checked_there(network, known):
    @tf.function(autograph=False)
    def run(images):
        return network(tf.ensure_shape(images, None) if known is None else images, path=0)

    signature = tf.TensorSpec(known, tf.float32)
    traced = run.get_concrete_function(signature)
    np.testing.assert_allclose(traced(tf.constant(IMAGES)), network(IMAGES, path=0), atol=1e-5)
    wrong = IMAGES[..., :1] if known != (None, None, None, 3) else IMAGES[:, :8]
    with pytest.raises(tf.errors.InvalidArgumentError, match="16,16,3"):
        traced(tf.constant(wrong))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"attention": "sigmoid"}, "attention"),
        ({"activation": "relu"}, "activation"),
    ],
)
def test_weights_of_another_network_are_refused_before_they_are_loaded(
    network, changes, name, tmp_path
):
    spec = dataclasses.replace(SHORT_SPEC, **changes)
    small_network(spec=spec).save_weights(tmp_path / "w.weights.h5")
    before = [value.copy() for value in network.get_weights()]
    message = f"network with {name}='{changes[name]}'. Received: a network with {name}="
    with pytest.raises(ValueError, match=message) as error:
        network.load_weights(tmp_path / "w.weights.h5")
    one_line(error)
    for value, expected in zip(network.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_weights_of_other_channels_and_classes_are_refused_or_skipped(network, tmp_path):
    stages = list(SHORT_SPEC.stages)
    stages[-1] = dataclasses.replace(stages[-1], channels=tuple(c + 1 for c in stages[-1].channels))
    other = dataclasses.replace(SHORT_SPEC, stages=tuple(stages))
    small_network(spec=other).save_weights(tmp_path / "channels.weights.h5")
    with pytest.raises(ValueError, match=rf"stages\[{len(stages) - 1}\]\.channels=") as error:
        network.load_weights(tmp_path / "channels.weights.h5")
    one_line(error)
    wide = small_network(network.classes + 2, spec=SHORT_SPEC)
    for name in ("classes.weights.h5", "classes.keras"):
        wide.save_weights(tmp_path / name) if "weights" in name else wide.save(tmp_path / name)
        with pytest.raises(ValueError, match=rf"with classes={wide.classes}\. Received") as error:
            network.load_weights(tmp_path / name)
        one_line(error)
    with pytest.warns(UserWarning, match="could not be loaded"):
        network.load_weights(tmp_path / "classes.weights.h5", skip_mismatch=True)
    np.testing.assert_array_equal(network.variables[0], wide.variables[0])


def test_strides_dropout_and_the_scope_of_statistics_do_not_change_weights(tmp_path):
    network = small_network(spec=SHORT_SPEC)
    network.save_weights(tmp_path / "w.weights.h5")
    spec = dataclasses.replace(SHORT_SPEC, dropout=0.5, synchronized=True)
    other = small_network(spec=spec.with_strides((1,) * len(spec.strides)), seed=1)
    other.load_weights(tmp_path / "w.weights.h5")
    for value, expected in zip(other.get_weights(), network.get_weights(), strict=True):
        np.testing.assert_array_equal(value, expected)


def test_features_change_their_channels_with_a_warning_around_a_functional_model():
    network = small_network(spec=SHORT_SPEC, include_top=False, pooling="avg")
    network.gates_trained = False
    network.routes = (0, 1)
    network.routes = (0, 1, 2)
    keras.Model(inputs := keras.Input((16, 16, 3)), network(inputs))
    with pytest.warns(UserWarning, match=r"around those of width 2: build it again.* width 1,"):
        network.routes = (0, 1)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (lambda: MobileNetSpec(stem=(8, 16, 24)), "stem=(8, 16, 24)"),
        (lambda: dataclasses.replace(EfficientNetSpec(), stem=(8, 64)), "stem=(8, 64)"),
        (lambda: dataclasses.replace(ResNetSpec(), stem=(8, 64)), "stem=(8, 64)"),
    ],
)
def test_channel_options_that_no_path_runs_are_refused(spec, name):
    with pytest.raises(ValueError, match="layers before the first gated stage have one") as error:
        DynamicSlimmableNetwork(spec(), (16, 16, 3), 5)
    assert str(error.value).endswith(f"Received: {name}")


def test_untrained_gates_name_only_what_helps():
    network = small_network(spec=SHORT_SPEC)
    network.gates_trained = False
    with pytest.warns(UserWarning, match="set `routing` to 'confidence', or pass `path=`"):
        network(IMAGES)
    for options in ({"include_top": False}, {"routing": "confidence"}):
        network = small_network(spec=SHORT_SPEC, **options)
        network.gates_trained = False
        with pytest.warns(UserWarning, match="not trained") as found:
            network.features(IMAGES)
        assert "confidence" not in str(found[0].message)
