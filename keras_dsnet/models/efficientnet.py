"""The spec and the block of DS-EfficientNet."""

import dataclasses
from typing import Any, ClassVar

from keras_dsnet.models.spec import NetworkSpec, NetworkStage, register_family

_LAST_RATIO = 1.7


@dataclasses.dataclass(frozen=True)
class EfficientNetStage(NetworkStage):
    """Inverted residual blocks of one width; the other arguments are those of `NetworkStage`.

    Args:
        kernel_size: int, of the depthwise convolutions.
        expansion: int: channels inside of a block for each of its input.
        gated: bool, whether the first block holds the slimming gate.
    """

    kernel_size: int = 3
    expansion: int = 6
    gated: bool = False


@register_family
@dataclasses.dataclass(frozen=True)
class EfficientNetSpec(NetworkSpec):
    """All that makes one DS-EfficientNet different from another.

    The defaults are DS-EfficientNet-B0 (appendix B of the paper): rho = 0.5 in stem and first 8
    blocks, and in the other 8 blocks 20 widths, rho from 0.75 to 1.7 in steps of 0.05. As the
    paper's appendix A asks, a layer's channels are multiples of 8 at one interval: the multiples
    nearest to the ratios' 5.6, 9.6 and 16 channels, from the slimmest's 84, 144 and 240 up.

    The other arguments are those of `NetworkSpec`; `stages` are `EfficientNetStage`.

    Args:
        top: int, channels of the last convolution, which every path ends with.
    """

    stem: tuple = (16,)
    stem_strides: int = 2
    stages: tuple = (
        EfficientNetStage(1, 1, (8,), expansion=1),
        EfficientNetStage(2, 2, (16,)),
        EfficientNetStage(2, 2, (24,), kernel_size=5),
        EfficientNetStage(3, 2, (40,)),
        EfficientNetStage(3, 1, tuple(range(88, 241, 8)), kernel_size=5, gated=True),
        EfficientNetStage(4, 2, tuple(range(144, 297, 8)), kernel_size=5),
        EfficientNetStage(1, 1, tuple(range(240, 545, 16))),
    )
    top: int = 1280

    stage_class: ClassVar[Any] = EfficientNetStage
    channel_multiple: ClassVar[int] = 4

    @property
    def ratios(self):
        """The slimming ratio rho of every width, by the last stage: its interval is exact."""
        channels = self.stages[-1].channels
        return tuple(_LAST_RATIO * count / channels[-1] for count in channels)

    def features(self, build, input_channels):
        channels = self.stem
        steps = [
            build.conv("stem_conv", (input_channels,), channels, 3, self.stem_strides),
            build.batch_norm("stem_norm", channels, self.activation),
        ]
        count = 0
        for stage in self.stages:
            for index in range(stage.blocks):
                count += 1
                steps += self._block(build, f"block_{count}", channels, stage, index == 0)
                channels = stage.channels
        top = (self.top,)
        steps.append(build.conv("top_conv", channels, top))
        steps.append(build.batch_norm("top_norm", top, self.activation))
        return steps, top

    def _block(self, build, name, inputs, stage, first):
        """Expansion, depthwise, gate, projection; the gate's attention is squeeze-and-excitation.

        The slimming gate is that of the first block behind the front: it chooses the channels of
        the block's projection and of all that follows.
        """
        strides = stage.strides if first else 1
        has_shortcut = strides == 1 and inputs == stage.channels
        inside = tuple(stage.expansion * count for count in inputs)
        steps = []
        if stage.expansion > 1:
            steps = [
                build.conv(f"{name}_expand", inputs, inside),
                build.batch_norm(f"{name}_expand_norm", inside, self.activation),
            ]
        # As in EfficientNet, the hidden units are counted by the block's input.
        hidden_units = max(1, round(self.attention_ratio * inputs[-1]))
        steps += [
            build.depthwise(f"{name}_depthwise", inside, stage.kernel_size, strides),
            build.batch_norm(f"{name}_depthwise_norm", inside, self.activation),
            build.gate(f"{name}_gate", inside, first and stage.gated, hidden_units),
            build.conv(f"{name}_project", inside, stage.channels),
            # A block starts as its shortcut (appendix A of the paper).
            build.batch_norm(f"{name}_project_norm", stage.channels, zero_gamma=has_shortcut),
        ]
        return [build.residual(steps)] if has_shortcut else steps

    def scaled(self, alpha=1.0, **arguments):
        spec = super().scaled(alpha, **arguments)
        return dataclasses.replace(spec, top=self._scaled((self.top,), alpha)[0])
