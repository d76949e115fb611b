"""A slimming head of another design leaves the supernet as it was."""

import keras
import numpy as np
import pytest

from keras_dsnet.models import (
    DynamicSlimmableNetwork,
    MobileNetSpec,
    MobileNetStage,
    copy_slimming_heads,
    with_slimming_head,
)

SPEC = MobileNetSpec(
    stem=(4,),
    stages=(MobileNetStage(1, 2, (6,)), MobileNetStage(1, 2, (8, 12, 16), gated=True)),
)
IMAGES = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype("float32")


@pytest.fixture
def network():
    keras.utils.set_random_seed(0)
    made = DynamicSlimmableNetwork(SPEC, input_shape=(16, 16, 3), classes=5, routes=(0, 2))
    generator = np.random.default_rng(1)
    for variable in made.variables:
        variable.assign(generator.uniform(0.1, 0.3, size=variable.shape))
    return made


@pytest.mark.parametrize(
    "design",
    [{"share_encoder": False}, {"slimming_head": "scalar"}, {"gate_encoder": "regions"}],
    ids=["own W1", "scalar", "regions"],
)
def test_every_path_stays_as_it_was(network, design):
    changed = with_slimming_head(network, **design)
    for name, value in design.items():
        assert getattr(changed.spec, name) == value
        name = name.removeprefix("gate_") if name == "gate_encoder" else name
        assert getattr(changed.slimming_gates[0], name) == value
    for path in range(3):
        expected = network(IMAGES, path=path)
        np.testing.assert_array_equal(changed(IMAGES, path=path), expected)
    assert changed.routes == (0, 2)
    assert not changed.gates_trained


def test_the_same_design_is_the_same_network(network):
    assert with_slimming_head(network) is network
    assert with_slimming_head(network, "one_hot", True) is network


def test_gates_come_from_a_network_of_other_classes(network):
    network.gates_trained = True
    target = DynamicSlimmableNetwork(SPEC, input_shape=(24, 24, 3), classes=3)
    before = [np.array(v) for v in target.variables]
    copy_slimming_heads(network, target)
    np.testing.assert_array_equal(target.slimming_gates[0].w2, network.slimming_gates[0].w2)
    changed = [v.path for v, old in zip(target.variables, before) if not np.array_equal(v, old)]
    assert changed == [target.slimming_gates[0].w2.path]
    assert (target.routes, target.gates_trained) == ((0, 1, 2), False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share_encoder": False}, "slimming_head='one_hot', share_encoder=False"),
        ({"slimming_head": "scalar"}, "slimming_head='scalar'"),
        ({"gate_encoder": "regions"}, "gate_encoder='regions'"),
    ],
    ids=["own W1", "scalar", "regions"],
)
def test_gates_of_another_design_are_refused(network, change, message):
    source = with_slimming_head(network, **change)
    with pytest.raises(ValueError, match="must be trained"):
        copy_slimming_heads(source, network)
    source.gates_trained = True
    with pytest.raises(ValueError, match=f"Received: .*{message}"):
        copy_slimming_heads(source, network)
