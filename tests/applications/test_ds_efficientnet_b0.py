"""DS-EfficientNet-B0: its channel lists, its costs and its arguments."""

import numpy as np
import pytest
from keras_dsnet.applications import DSEfficientNetB0

from keras_dsnet.models import EfficientNetSpec

# Of Table 8 of the paper.
LARGE, SMALL = 400e6, 270e6


@pytest.fixture(scope="module")
def network():
    return DSEfficientNetB0()


def test_one_gate_has_twenty_widths_from_rho_075_to_17(network):
    assert (network.num_gates, network.num_widths) == (1, 20)
    np.testing.assert_allclose(network.spec.ratios, np.arange(0.75, 1.75 - 1e-9, 0.05))


def test_channels_are_multiples_of_8_at_one_interval_and_those_of_the_front_about_half(network):
    front, rest = network.spec.stages[:4], network.spec.stages[4:]
    assert sum(stage.blocks for stage in front) == sum(stage.blocks for stage in rest) == 8
    assert [stage.channels for stage in front] == [(8,), (16,), (24,), (40,)]
    for stage in rest:
        assert len(stage.channels) == 20
        assert len({b - a for a, b in zip(stage.channels, stage.channels[1:])}) == 1
        assert not any(channels % 8 for channels in stage.channels)


def test_some_paths_cost_270_and_400_million_madds(network):
    madds = [network.madds(width) for width in range(20)]
    assert madds == sorted(madds)
    for target in (SMALL, LARGE):
        assert min(abs(cost - target) for cost in madds) <= 0.05 * target
    # The README has the same figures.
    assert [round(madds[width] / 1e6) for width in (0, 4, 9, 19)] == [196, 273, 395, 723]


def test_the_slimming_gate_is_squeeze_and_excitation_of_the_ninth_block(network):
    gates = {layer.name: layer for layer in network.supernet_layers if "gate" in layer.name}
    assert len(gates) == 16
    assert [name for name, gate in gates.items() if gate.num_choices] == ["block_9_gate"]
    assert gates["block_9_gate"].channels == (240,)
    # A gate has a quarter of the block's input channels, as in EfficientNet.
    assert gates["block_9_gate"].hidden_units == 10
    assert gates["block_10_gate"].channels == tuple(6 * c for c in range(88, 241, 8))


def test_blocks_with_a_shortcut_start_as_it(network):
    norms = {layer.name: layer for layer in network.supernet_layers if "project_norm" in layer.name}
    zero = {name for name, layer in norms.items() if not np.any(layer.gamma)}
    # The first block of a stage has no shortcut.
    assert zero == {f"block_{k}_project_norm" for k in (3, 5, 7, 8, 10, 11, 13, 14, 15)}


def test_alpha_keeps_all_widths_down_to_a_half():
    spec = EfficientNetSpec().scaled(alpha=0.5)
    assert spec.stages[4].channels == tuple(range(44, 121, 4))
    assert (spec.stem, spec.top) == ((8,), 640)
    with pytest.raises(ValueError, match=r"0\.5 is the least that keeps all 20.*alpha=0.4"):
        DSEfficientNetB0(alpha=0.4)


def test_arguments_that_made_a_weights_file_agree_with_it(tmp_path):
    arguments = {"alpha": 0.5, "top": 320, "input_shape": (32, 32, 3), "classes": 4}
    network = DSEfficientNetB0(**arguments)
    assert network.spec.top == 160
    network.save_weights(tmp_path / "m.weights.h5")
    loaded = DSEfficientNetB0(weights=tmp_path / "m.weights.h5", **arguments)
    assert loaded.spec == network.spec
    with pytest.raises(ValueError, match="other channels"):
        DSEfficientNetB0(weights=tmp_path / "m.weights.h5", **{**arguments, "top": 640})


def test_small_images():
    small = DSEfficientNetB0(input_shape=(32, 32, 3), include_top=False, alpha=0.5, output_stride=8)
    assert small(np.zeros((1, 32, 32, 3), "float32"), path=3).shape == (1, 4, 4, 640)
    assert small.spec.strides == (1, 1, 1, 2, 2, 1, 2, 1)
