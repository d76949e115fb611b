"""What the recipes set for each network, and the choices that a benchmark sets for its gates."""

import numpy as np
import pytest
from keras_dsnet_recipes.lib.model_settings import (
    MODELS,
    PRESETS,
    choose_variant,
    settings_of,
    variant_routes,
)
from programs import import_program
from tiny_families import TINY_EFFICIENTNET, TINY_RESNET, tiny_images, tiny_network

from keras_dsnet import applications
from keras_dsnet.models import spec as spec_module

set_choices = import_program("keras_dsnet_recipes.benchmarks.benchmark_routing").set_choices


@pytest.fixture(scope="module")
def resnet():
    return tiny_network(TINY_RESNET)


def test_every_network_has_an_application_and_a_spec():
    for settings in MODELS.values():
        assert hasattr(applications, settings.application)
        assert settings.spec in spec_module.FAMILIES
    assert [settings.learning_rate for settings in MODELS.values()] == [0.08, 0.2, 0.2]
    assert tuple(applications.ds_mobilenet.PRESETS) == PRESETS


@pytest.mark.parametrize(
    ("name", "weights"),
    [("S", (0, 0.5, 1)), ("M", (1, 0.5, 1)), ("L", (0, 0, 1)), (None, (1, 0.5, 1))],
)
def test_variants_of_a_resnet_are_losses_over_all_widths(resnet, name, weights):
    assert settings_of(resnet) is MODELS["ds_resnet50"]
    assert choose_variant(resnet, name).loss_weights == weights
    assert variant_routes(resnet, name) == (None if name is None else (0, 1, 2))


def test_variants_that_are_not_there_are_named():
    network = tiny_network(TINY_EFFICIENTNET)
    with pytest.raises(ValueError, match=r"one of S, L for this network. Received: --variant=M"):
        choose_variant(network, "M")
    with pytest.raises(ValueError, match="--variant=S has 5 widths; this network has 3"):
        variant_routes(network, "S")


def test_a_benchmark_sets_the_path_of_every_image(resnet):
    images = tiny_images(9)
    paths = [(0, 2, 1), (2, 2, 0), (0, 2, 1)] * 2 + [(2, 2, 1)] * 3
    set_choices(resnet, paths)
    expected = [resnet(image[None], path=path)[0] for image, path in zip(images, paths)]
    for _ in range(2):
        np.testing.assert_allclose(resnet(images), expected, atol=1e-4)
