"""What DS-ResNet is made of (Sec. 4 and appendix A of the paper)."""

import numpy as np
import pytest
from tiny_families import TINY_RESNET, tiny_images

from keras_dsnet.layers import SlicedGroupNormalization
from keras_dsnet.models import DynamicSlimmableNetwork, ResNetSpec
from keras_dsnet.models.topology import walk


@pytest.fixture(scope="module")
def network():
    return DynamicSlimmableNetwork(TINY_RESNET, input_shape=(16, 16, 3), classes=5)


def layers_of(network):
    return {step.layer.name: step for step in walk(sum(network.sections, ())) if step.layer}


def test_a_gate_stands_before_every_block_and_slims_in_the_first_of_a_stage(network):
    kinds = [step.kind for step in sum(network.sections, ())]
    assert kinds == ["conv", "norm", "max_pool", *["gate", "residual"] * 4, "pool", "dense"]
    assert [len(section) for section in network.sections] == [4, 4, 2, 3]
    slimming = [step.is_slimming_gate for section in network.sections for step in section]
    assert sum(slimming) == 3
    assert all(section[-1].is_slimming_gate for section in network.sections[:-1])


def test_branch_and_shortcut_of_a_stage_have_the_width_of_its_gate(network):
    layers = layers_of(network)
    for stage in (1, 2, 3):
        for name in ("conv_1", "conv_2", "conv_3", "shortcut_conv"):
            step = layers[f"stage_{stage}_block_1_{name}"]
            assert step.section == stage
            assert len(step.layer.filters) == 3
    assert layers["stage_1_block_2_conv_1"].section == 1
    assert layers["stem_conv"].section == 0
    assert layers["stem_conv"].layer.filters == (8,)


def test_only_the_first_block_of_a_stage_projects_and_its_stride_is_in_the_3x3(network):
    layers = layers_of(network)
    assert "stage_1_block_2_shortcut_conv" not in layers
    strides = {
        name: layers[f"stage_2_block_1_{name}"].layer.strides
        for name in ("conv_1", "conv_2", "conv_3", "shortcut_conv")
    }
    assert strides == {"conv_1": 1, "conv_2": 2, "conv_3": 1, "shortcut_conv": 2}


def test_a_narrow_path_ignores_the_channels_it_does_not_have(network):
    images = tiny_images(2)
    before = np.array(network(images, path=(1, 0, 1)))
    kept = [v.numpy() for v in network.variables]
    for step in layers_of(network).values():
        if step.section:
            width = (None, 1, 0, 1)[step.section]
            options = getattr(step.layer, "filters", getattr(step.layer, "channels", (0,)))
            for variable in step.layer.trainable_variables:
                if variable.name in ("kernel", "gamma", "beta") and len(options) > 1:
                    value = variable.numpy()
                    value[..., options[width] :] = 99.0
                    variable.assign(value)
    np.testing.assert_array_equal(network(images, path=(1, 0, 1)), before)
    assert np.abs(network(images, path="widest") - before).max() > 0.01
    for variable, value in zip(network.variables, kept):
        variable.assign(value)


def test_fresh_blocks_are_their_shortcuts(network):
    for name, step in layers_of(network).items():
        if step.kind == "norm":
            start = 0.0 if name.endswith("norm_3") else 1.0
            np.testing.assert_array_equal(step.layer.gamma, np.full(step.layer.gamma.shape, start))


def test_groups_have_16_channels_or_8_where_the_slimmest_needs_it(network):
    """A group's channels are the same at every width, so its statistics are too."""
    for name, step in layers_of(network).items():
        if step.kind == "norm":
            assert isinstance(step.layer, SlicedGroupNormalization)
            expanded = name.endswith(("norm_3", "shortcut_norm"))
            assert step.layer.channels_per_group == (16 if expanded else 8), name


@pytest.mark.parametrize(("alpha", "slimmest"), [(1, 16), (0.75, 4), (0.5, 8), (0.25, 4)])
def test_scaled_widths_stay_equispaced(alpha, slimmest):
    for stage in ResNetSpec().scaled(alpha=alpha).stages:
        first = stage.channels[0]
        assert stage.channels == tuple(first * k for k in (1, 2, 3, 4))
        assert not first % slimmest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.3}, "multiple of 0.25. Received: alpha=0.3"),
        ({"alpha": 0.1}, "0.25 is the least.*alpha=0.1"),
        ({"strides": (1, 1, 1, 2)}, r"6 numbers.*strides=\(1, 1, 1, 2\)"),
        ({"output_stride": 4}, "output_stride=4"),
        ({"front_alpha": -1}, "front_alpha=-1"),
    ],
)
def test_what_cannot_be_scaled_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        ResNetSpec().scaled(**options)


def test_small_images_lose_the_earliest_strides_first():
    assert ResNetSpec().strides == (2, 2, 1, 2, 2, 2)
    assert ResNetSpec().scaled(output_stride=16).strides == (1, 2, 1, 2, 2, 2)
    assert ResNetSpec().scaled(output_stride=8).strides == (1, 1, 1, 2, 2, 2)
    assert ResNetSpec().scaled(strides=(1, 1, 1, 1, 2, 2)).pool_strides == 1


def test_the_output_stride_is_that_of_a_spec_with_other_strides():
    small = ResNetSpec().with_strides((1, 1, 1, 2, 2, 2))
    assert small.scaled().strides == small.scaled(output_stride=8).strides == small.strides
    with pytest.raises(ValueError, match=r"that the strides .* can give.*output_stride=16$"):
        small.scaled(output_stride=16)
