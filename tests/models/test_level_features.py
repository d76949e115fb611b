"""Features at named levels, of every family and by every executor."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from keras_dsnet.applications import DSEfficientNetB0, DSMobileNet, DSResNet50
from routed_networks import random_images, small_network
from tiny_families import TINY_EFFICIENTNET, TINY_RESNET, tiny_images, tiny_network

from keras_dsnet.models import MobileNetSpec, Path
from keras_dsnet.models.executors import MaskedExecutor


@pytest.mark.slow
@pytest.mark.parametrize(
    ("application", "strides", "default"),
    [
        (DSMobileNet, (2, 4, 8, 16, 32), (3, 4, 5)),
        (DSResNet50, (4, 8, 16, 32), (2, 3, 4)),
        (DSEfficientNetB0, (2, 4, 8, 16, 16, 32, 32), (3, 5, 7)),
    ],
)
def test_levels_are_the_ends_of_stages(application, strides, default):
    network = application(include_top=False, input_shape=(32, 32, 3))
    assert network.levels == {f"stage_{i}": stride for i, stride in enumerate(strides, 1)}
    features = network.features(np.zeros((1, 32, 32, 3), "float32"), path="slimmest")
    assert list(features) == [f"stage_{number}" for number in default]
    for name, values in features.items():
        assert values.shape[1] == 32 // network.levels[name]


def test_the_last_level_is_the_output_of_the_network():
    network = small_network(include_top=False)
    images = random_images(3)
    features = network.features(images, path=2)
    np.testing.assert_allclose(features["stage_3"], network(images, path=2), rtol=1e-5, atol=1e-5)
    assert features["stage_1"].shape == (3, 4, 4, 8)
    assert network.features(images, path="largest")["stage_1"].shape == (3, 4, 4, 12)


def test_layers_after_the_last_level_do_not_run():
    network = small_network(include_top=False)
    images = random_images(1)
    expected = network.features(images, path=1, levels=["stage_1"])["stage_1"]
    for layer in network.supernet_layers:
        if layer.name.startswith(("block_2", "block_3")):
            for variable in layer.variables:
                variable.assign(np.full(variable.shape, np.nan))
    np.testing.assert_array_equal(network.features(images, levels=["stage_1"])["stage_1"], expected)


@pytest.fixture(scope="module", params=["mobilenet", "resnet", "efficientnet"])
def network(request):
    if request.param == "mobilenet":
        return small_network(include_top=False)
    specs = {"resnet": TINY_RESNET, "efficientnet": TINY_EFFICIENTNET}
    return tiny_network(specs[request.param], include_top=False)


@pytest.fixture
def images(network):
    return random_images(8) if isinstance(network.spec, MobileNetSpec) else tiny_images(8)


@pytest.mark.slow
def test_features_of_a_routed_batch_are_those_of_each_path(network, images):
    paths = network.route(images).numpy()
    assert len(np.unique(paths, axis=0)) > 1
    routed = network.features(images)
    for index, path in enumerate(paths):
        for name, alone in network.features(images[index : index + 1], path=path).items():
            channels = alone.shape[-1]
            np.testing.assert_allclose(
                routed[name][index, ..., :channels], alone[0], rtol=1e-4, atol=1e-4
            )
            assert not np.any(routed[name][index, ..., channels:])


@pytest.mark.slow
def test_tensor_widths_and_masks_give_the_features_of_a_path(network, images):
    gates = network.route(images).numpy()[0]
    expected = network.features(images, path=gates)

    @tf.function
    def dynamic(images, gates):
        widths = (0, *tf.unstack(gates))
        return network.features(images, Path(widths, widths))

    def choose(gate, scores, index):
        return tf.one_hot([gates[index]] * len(images), network.num_widths)

    masked = MaskedExecutor(network, tuple(range(network.num_widths)), choose)
    masked = network.features(images, executor=masked)
    for name, values in dynamic(tf.constant(images), tf.constant(gates)).items():
        channels = expected[name].shape[-1]
        np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(
            masked[name][..., :channels], expected[name], rtol=1e-3, atol=1e-3
        )
        assert not np.any(masked[name][..., channels:])


@pytest.mark.parametrize("levels", ["stage_9", (), ("stage_1", "stage_1"), (1,), "stage"])
def test_unknown_levels_are_named(levels):
    with pytest.raises(ValueError, match=r"among .'stage_1', 'stage_2', 'stage_3'.*Received: "):
        small_network().features(random_images(1), path=0, levels=levels)


def test_a_family_without_levels_is_named():
    network = small_network(include_top=False)
    sections = [[replace(step, level=None) for step in steps] for steps in network.sections]
    network._runner.sections = tuple(map(tuple, sections))
    assert network.levels == {}
    with pytest.raises(ValueError, match="A MobileNetSpec has no levels"):
        network.features(random_images(1), path=0)


def test_training_needs_a_path():
    with pytest.raises(ValueError, match="Training needs a path"):
        small_network().features(random_images(1), training=True)


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "strides"),
    [
        ({}, (1, 1, 2, 1, 2, 2)),
        ({"output_stride": 32}, (2, 1, 2, 2, 2, 2)),
        ({"strides": (2, 1, 1, 2, 2, 2)}, (2, 1, 1, 2, 2, 2)),
    ],
)
def test_a_preset_takes_other_strides_and_images(options, strides):
    preset = DSMobileNet(weights="cifar10")
    network = DSMobileNet(weights="cifar10", include_top=False, input_shape=(48, 64, 3), **options)
    assert network.spec.strides == strides
    assert network.gates_trained
    # The preset has its classifier too, after all other layers.
    layers = zip(network.supernet_layers, preset.supernet_layers[:-1], strict=True)
    for layer, expected in layers:
        assert layer.name == expected.name
        for values, others in zip(layer.get_weights(), expected.get_weights(), strict=True):
            np.testing.assert_array_equal(values, others)
    stride = network.levels["stage_5"]
    outputs = network(np.zeros((1, 48, 64, 3), "float32"), path=0)
    assert outputs.shape[1:3] == (-(-48 // stride), -(-64 // stride))
