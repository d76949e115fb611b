"""The spec and the blocks of DS-MobileNet."""

import dataclasses
from typing import Any, ClassVar

from keras_dsnet.models.spec import NetworkSpec, NetworkStage, register_family


@dataclasses.dataclass(frozen=True)
class MobileNetStage(NetworkStage):
    """Depthwise separable blocks of one width; the other arguments are those of `NetworkStage`.

    Args:
        gated: bool, whether the first block holds the slimming gate. The options before the gate
            are a pair: what every path uses, and what the wide front of path "largest" uses.
    """

    gated: bool = False


@register_family
@dataclasses.dataclass(frozen=True)
class MobileNetSpec(NetworkSpec):
    """All that makes one DS-MobileNet different from another.

    The defaults are those of the authors' released network: 14 widths, and a front at the ratio 0.5
    of MobileNetV1. The arguments are those of `NetworkSpec`; `stages` are `MobileNetStage`.
    """

    stem: tuple = (16, 24)
    stem_strides: int = 2
    stages: tuple = (
        MobileNetStage(1, 1, (32, 88)),
        MobileNetStage(2, 2, (48, 168)),
        MobileNetStage(2, 2, (96, 264)),
        MobileNetStage(6, 2, tuple(range(224, 641, 32)), gated=True),
        MobileNetStage(2, 2, tuple(range(736, 1153, 32))),
    )

    stage_class: ClassVar[Any] = MobileNetStage
    wide_front: ClassVar[bool] = True

    @property
    def ratios(self):
        """The slimming ratio rho of every width: its channels over MobileNetV1's 512."""
        return tuple(channels / self.base_channels for channels in self.gated_channels)

    @property
    def base_channels(self):
        """Channels at rho = 1: 4/5 of the widest, whose rho is 1.25 in the paper."""
        return self.gated_channels[-1] / 1.25

    def features(self, build, input_channels):
        channels = _options(self.stem)
        steps = [
            build.conv("stem_conv", (input_channels,), channels, 3, self.stem_strides),
            build.batch_norm("stem_norm", channels, self.activation),
        ]
        count = 0
        for stage in self.stages:
            outputs = _options(stage.channels)
            for index in range(stage.blocks):
                count += 1
                strides = stage.strides if index == 0 else 1
                gated = stage.gated and index == 0
                steps += self._separable(build, f"block_{count}", channels, outputs, strides, gated)
                channels = outputs
        return steps, channels

    def _separable(self, build, name, channels, outputs, strides, gated):
        """The gate stands between depthwise and pointwise, whose outputs it chooses."""
        depthwise = build.depthwise(f"{name}_depthwise", channels, 3, strides)
        # Layers draw the seeds of their first values when they are made: the two convolutions
        # first, so that a seed gives the same network as it always did.
        pointwise = build.conv(f"{name}_pointwise", channels, outputs)
        depthwise_norm = build.batch_norm(f"{name}_depthwise_norm", channels, self.activation)
        gate = build.gate(f"{name}_gate", channels, gated)
        pointwise = dataclasses.replace(pointwise, section=build.section)
        pointwise_norm = build.batch_norm(f"{name}_pointwise_norm", outputs, self.activation)
        return [depthwise, depthwise_norm, gate, pointwise, pointwise_norm]


def _options(channels):
    """A wide front that rounds to the channels of the narrow one is the same, static front."""
    return tuple(sorted(set(channels)))
