"""DS-ResNet-50 against the figures of the paper's network, and its arguments."""

import numpy as np
import pytest
from keras_dsnet.applications import DSEfficientNetB0, DSMobileNet, DSResNet50, ds_resnet50

from keras_dsnet.models import ResNetSpec

SMALL = {"input_shape": (32, 32, 3), "classes": 5, "alpha": 0.25, "output_stride": 16}
IMAGES = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")


@pytest.fixture(scope="module")
def network():
    return DSResNet50()


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    """A network with trained gates, and its file of weights."""
    model = DSResNet50(**SMALL, routes=(0, 2))
    generator = np.random.default_rng(1)
    for variable in model.variables:
        variable.assign_add(generator.normal(scale=0.05, size=variable.shape))
    model.gates_trained = True
    path = tmp_path_factory.mktemp("weights") / "small.weights.h5"
    model.save_weights(path)
    return model, path


def test_four_gates_have_four_widths(network):
    assert (network.num_gates, network.num_widths) == (4, 4)
    assert network.routes == (0, 1, 2, 3)
    assert network.spec.ratios == (0.25, 0.5, 0.75, 1.0)
    assert network.madds("widest") == network.madds((3, 3, 3, 3))
    assert network.madds("slimmest") == network.madds((0, 0, 0, 0))
    gates = [layer for layer in network.supernet_layers if layer.name.endswith("_gate")]
    assert len(gates) == 3 + 4 + 6 + 3


@pytest.mark.parametrize(("width", "expected"), [(0, 0.312), (1, 1.052), (2, 2.281), (3, 3.998)])
def test_convolutions_and_classifier_of_uniform_paths_have_their_madds(network, width, expected):
    cost = network.costs(width)
    assert (cost.madds - cost.attention) / 1e9 == pytest.approx(expected, rel=0.01)
    assert cost.attention <= 0.015 * (cost.madds - cost.attention)


def test_a_path_of_different_widths_costs_in_between(network):
    assert network.madds(0) < network.madds((0, 0, 0, 1)) < network.madds((1, 0, 0, 1))
    assert network.madds((0, 3, 3, 3)) < network.madds(3)


def test_groups_have_16_channels_at_every_width(network):
    norms = [layer for layer in network.supernet_layers if hasattr(layer, "channels_per_group")]
    assert {layer.channels_per_group for layer in norms} == {16}
    assert sum(not np.any(layer.gamma) for layer in norms) == 16, "one zero gamma per block"


def test_a_file_says_what_network_it_is_for(small_file):
    model, path = small_file
    loaded = DSResNet50(weights=path)
    assert loaded.spec == model.spec
    assert (loaded.classes, loaded.routes, loaded.gates_trained) == (5, (0, 2), True)
    np.testing.assert_array_equal(
        loaded(IMAGES, path=(0, 2, 1, 3)), model(IMAGES, path=(0, 2, 1, 3))
    )
    with pytest.raises(ValueError, match=r"other channels.*alpha=0.5"):
        DSResNet50(weights=path, alpha=0.5)


@pytest.mark.parametrize("application", [DSMobileNet, DSEfficientNetB0])
def test_weights_of_another_family_are_refused(small_file, application):
    with pytest.raises(ValueError, match=f"another family than {application.__name__}.*ResNetSpec"):
        application(weights=small_file[1])


@pytest.mark.parametrize("application", [DSResNet50, DSEfficientNetB0])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "imagenet"}, "There are no 'imagenet' weights of {name}"),
        ({"weights": "tiny_imagenet"}, "There are no 'tiny_imagenet' weights of {name}"),
        ({"weights": "imagenet21k"}, r"of a \.weights\.h5 or \.keras file\. .*'imagenet21k'"),
        ({"alpha": 0.05}, "alpha=0.05"),
        ({"output_stride": 4}, "output_stride=4"),
        ({"strides": (1, 2)}, r"strides=\(1, 2\)"),
        ({"input_shape": (16, 16, 3)}, r"\(16, 16, 3\)"),
        ({"classes": 0}, "classes=0"),
        ({"ema": True}, "`{name}` has no argument 'ema'"),
        ({"attention": "relu"}, "'relu'"),
        ({"alpha": 0.5, "input_shape": (32, 32, 3), "routes": (2, 1)}, r"\(2, 1\)"),
    ],
)
def test_bad_arguments_are_named(application, options, message):
    with pytest.raises(ValueError, match=message.format(name=application.__name__)):
        application(**options)


@pytest.mark.slow
def test_small_images():
    features = DSResNet50(input_shape=(32, 32, 3), include_top=False, alpha=0.25, output_stride=8)
    assert features(IMAGES, path=0).shape == (2, 4, 4, 128)
    assert features.spec == ResNetSpec().scaled(alpha=0.25, strides=(1, 1, 1, 2, 2, 2))
    wide_stem = ResNetSpec().scaled(alpha=0.25, front_alpha=1)
    assert (wide_stem.stem, wide_stem.stages[0].channels) == ((32,), (4, 8, 12, 16))


def test_preprocessing_and_names_are_those_of_every_family():
    image = np.full((1, 1, 3), 128, "uint8")
    assert ds_resnet50.preprocess_input(image).dtype == "float32"
    named = ds_resnet50.decode_predictions(np.eye(3)[:1], top=1, class_names=("a", "b", "c"))
    assert named == [[("0", "a", 1.0)]]
