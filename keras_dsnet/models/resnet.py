"""The spec of DS-ResNet."""

import dataclasses
from typing import Any, ClassVar

from keras_dsnet.models.spec import NetworkSpec, NetworkStage, register_family
from keras_dsnet.models.topology import Step, StepBuilder, with_level

_EXPANSION = 4


@dataclasses.dataclass(frozen=True)
class ResNetStage(NetworkStage):
    """Bottleneck blocks of one width.

    Args:
        blocks: Int, number of blocks.
        strides: Int, strides of the first block.
        channels: Tuple of ints, channel options inside the blocks. The outputs of the blocks have
            four times as many channels.
        gated: Bool, whether the stage has a slimming gate. Without a gate `channels` has one
            option.
    """

    gated: bool = True


@register_family
@dataclasses.dataclass(frozen=True)
class ResNetSpec(NetworkSpec):
    """The description of a DS-ResNet.

    The defaults are DS-ResNet-50 (Sec. 4 of the paper, "Architecture details"): four stages with a
    gate in the first block of each, and rho in {0.25, 0.5, 0.75, 1}. The other arguments are those
    of `NetworkSpec`, and `stages` holds `ResNetStage`.

    Args:
        pool_strides: Int, strides of the max pool after the stem. 1 removes the pool.

    Example:

    ```python
    from keras_dsnet.models import ResNetSpec

    assert ResNetSpec().num_gates == 4
    assert ResNetSpec().ratios == (0.25, 0.5, 0.75, 1.0)
    ```
    """

    stem: tuple = (32,)
    stem_strides: int = 2
    stages: tuple = (
        ResNetStage(3, 1, (16, 32, 48, 64)),
        ResNetStage(4, 2, (32, 64, 96, 128)),
        ResNetStage(6, 2, (64, 128, 192, 256)),
        ResNetStage(3, 2, (128, 256, 384, 512)),
    )
    activation: str = "relu"
    pool_strides: int = 2

    stage_class: ClassVar[Any] = ResNetStage
    # Groups of fewer than 4 channels do not normalise well.
    channel_multiple: ClassVar[int] = 4
    stride_fields: ClassVar[tuple] = ("stem_strides", "pool_strides")

    @property
    def gated_channels(self) -> tuple:
        """The channels inside the blocks of every gated stage, for every width."""
        return tuple(zip(*(stage.channels for stage in self.stages if stage.gated)))

    def features(self, build: StepBuilder, input_channels: int) -> tuple[list[Step], tuple]:
        channels = self.stem
        steps = [
            build.conv("stem_conv", (input_channels,), channels, 7, self.stem_strides),
            build.group_norm("stem_norm", channels, self.activation),
        ]
        if self.pool_strides > 1:
            steps.append(build.max_pool("stem_pool", 3, self.pool_strides))
        for number, stage in enumerate(self.stages, start=1):
            for index in range(stage.blocks):
                first = index == 0
                name = f"stage_{number}_block_{index + 1}"
                # The gate stands before its block: branch and shortcut have the width it chooses.
                steps.append(build.gate(f"{name}_gate", channels, first and stage.gated))
                steps.append(self._bottleneck(build, name, channels, stage, first))
                channels = _expanded(stage.channels)
            steps = with_level(steps, f"stage_{number}")
        return steps, channels

    def _bottleneck(self, build, name, inputs, stage, first):
        channels, outputs = stage.channels, _expanded(stage.channels)
        strides = stage.strides if first else 1
        branch = [
            build.conv(f"{name}_conv_1", inputs, channels),
            build.group_norm(f"{name}_norm_1", channels, self.activation),
            build.conv(f"{name}_conv_2", channels, channels, 3, strides),
            build.group_norm(f"{name}_norm_2", channels, self.activation),
            build.conv(f"{name}_conv_3", channels, outputs),
            # At initialization a block equals its shortcut (appendix A of the paper).
            build.group_norm(f"{name}_norm_3", outputs, zero_gamma=True),
        ]
        shortcut = []
        if first:
            shortcut = [
                build.conv(f"{name}_shortcut_conv", inputs, outputs, 1, strides),
                build.group_norm(f"{name}_shortcut_norm", outputs),
            ]
        return build.residual(branch, shortcut, self.activation)

    def check(self, received: str, unscaled: NetworkSpec) -> None:
        super().check(received, unscaled)
        for stage in self.stages:
            if len({b - a for a, b in zip(stage.channels, stage.channels[1:])}) > 1:
                raise ValueError(
                    "`alpha` must keep the widths of a stage equispaced, which group normalisation "
                    f"needs: a multiple of 0.25. Received: {received}"
                )


def _expanded(channels):
    return tuple(_EXPANSION * count for count in channels)
