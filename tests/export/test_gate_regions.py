"""An encoder of regions: every way to run a network chooses the same paths."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from exported import Exported, assert_nearly_the_same_choices, largest_difference
from routed_networks import SHORT_SPEC, SIZE, random_images
from tiny_families import TINY_RESNET, tiny_images, tiny_network

from keras_dsnet.models import DynamicSlimmableNetwork
from keras_dsnet.models.costs import section_costs
from keras_dsnet.training import GateTrainer, evaluate_paths

ROUTES = (0, 2)
LONG = [pytest.mark.long]


def spread(network, images):
    """Makes the choices of all gates differ between images, by the regions alone."""
    generator = np.random.default_rng(5)
    for gate in network.slimming_gates:
        if gate.w1 is not None:
            # What is left of the code are the regions.
            (gate.w1 if gate.share_encoder else gate.w1_slimming).assign_add(
                generator.normal(scale=0.05, size=gate.w1.shape)
            )
        gate.w1_regions.assign(generator.normal(scale=0.5, size=gate.w1_regions.shape))
        head = generator.normal(size=gate.w2.shape)
        gate.w2.assign(2 * (head - head.mean(axis=1, keepdims=True)))
    assert len(set(map(tuple, network.route(images).numpy()))) > 1
    return network


def made(family, share_encoder=True):
    if family == "one gate":
        spec = dataclasses.replace(SHORT_SPEC, gate_encoder="regions", share_encoder=share_encoder)
        keras.utils.set_random_seed(0)
        network = DynamicSlimmableNetwork(spec, (SIZE, SIZE, 3), classes=5)
        network.gates_trained = True
        images = random_images(12)
    else:
        spec = dataclasses.replace(TINY_RESNET, gate_encoder="regions", share_encoder=share_encoder)
        network, images = tiny_network(spec), tiny_images(12)
    network.replace_routes(ROUTES)
    return spread(network, images), images


@pytest.fixture(scope="module", params=["one gate", "three gates"])
def network_and_images(request):
    return made(request.param)


FILES = [
    pytest.param(layout, quantize, marks=[] if (layout, quantize) == ("shared", None) else LONG)
    for layout in ("shared", "fast")
    for quantize in (None, "float16", "dynamic")
]


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "quantize"), FILES)
def test_a_file_chooses_what_the_network_chooses(network_and_images, layout, quantize, tmp_path):
    network, images = network_and_images
    exported = Exported(network, tmp_path, layout=layout, quantize=quantize)
    outputs, paths = exported.choose_paths(images)
    if quantize == "dynamic":
        # Weights that are rounded to int8 move an image that is undecided.
        assert_nearly_the_same_choices(network, images, paths, share=0.9)
    else:
        np.testing.assert_array_equal(paths, network.route(images))
        tolerance = 1e-4 if quantize is None else 0.02
        assert largest_difference(outputs, network(images)) <= tolerance


@pytest.mark.long
@pytest.mark.parametrize("layout", ["shared", "fast"])
def test_an_int8_file_chooses_as_the_network(network_and_images, layout, tmp_path):
    network, images = network_and_images
    options = {"quantize": "int8", "representative_data": images, "verbose": False}
    exported = Exported(network, tmp_path, layout=layout, **options)
    _, paths = exported.choose_paths(images)
    assert_nearly_the_same_choices(network, images, paths)


def test_masked_and_sliced_execution_choose_the_same(network_and_images):
    network, images = network_and_images
    trainer = GateTrainer(network, ROUTES)
    labels = tf.zeros(len(images), tf.int32)
    _, results = trainer.losses(tf.constant(images), labels)
    chosen = np.array(ROUTES)[np.argmax(results["choices"], axis=2)].T
    np.testing.assert_array_equal(chosen, network.route(images))


def test_a_saved_network_keeps_its_encoder(network_and_images, tmp_path):
    network, images = network_and_images
    network.save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras")
    assert loaded.spec.gate_encoder == "regions"
    np.testing.assert_array_equal(loaded.route(images), network.route(images))
    plain = network.subnetwork((0,) * network.num_gates)
    assert largest_difference(plain(images), network(images, path=0)) <= 1e-4


def test_the_means_and_the_rows_of_regions_are_counted(network_and_images):
    network, images = network_and_images
    spec = dataclasses.replace(network.spec, gate_encoder="global")
    plain = DynamicSlimmableNetwork(spec, network.input_shape[1:], classes=5)
    more = network.costs("slimmest").slimming - plain.costs("slimmest").slimming
    assert network.madds("widest") == plain.madds("widest")
    expected, shape = 0, network.input_shape[1:]
    for section, gate in enumerate(network.slimming_gates):
        features = network.run_sections(
            images[:1], network.resolve_path("slimmest"), last=section
        ).shape
        channels, sides = features[3], features[1:3]
        elements = 4 * np.prod([(side + 1) // 2 for side in sides])
        elements += np.prod([side - 2 * (side // 4) for side in sides])
        expected += channels * (5 * gate.hidden_units + int(elements))
    assert more == expected
    assert section_costs(network, ROUTES)[0] == section_costs(plain, ROUTES)[0], shape
    rows = evaluate_paths(network, (images, np.zeros(len(images), "int32")), routings=("gate",))
    gate = next(row for row in rows if row["path"] == "gate")
    static = network.madds("slimmest")
    assert gate["madds"] >= static + network.costs("slimmest").slimming
    if network.num_gates == 1:
        assert any(np.isclose(row["madds"], gate["madds"]) for row in gate["curve"])
