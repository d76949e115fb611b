"""The spec of DS-EfficientNet."""

import dataclasses
from typing import Any, ClassVar

from keras_dsnet.models.spec import NetworkSpec, NetworkStage, register_family
from keras_dsnet.models.topology import Step, StepBuilder, with_level

_LAST_RATIO = 1.7


@dataclasses.dataclass(frozen=True)
class EfficientNetStage(NetworkStage):
    """Inverted residual blocks of one width. The other arguments are those of `NetworkStage`.

    Args:
        kernel_size: Int, height and width of the depthwise kernels.
        expansion: Int, ratio of the channels inside a block to the channels of its input.
        gated: Bool, whether the first block holds the slimming gate.
    """

    kernel_size: int = 3
    expansion: int = 6
    gated: bool = False


@register_family
@dataclasses.dataclass(frozen=True)
class EfficientNetSpec(NetworkSpec):
    """The description of a DS-EfficientNet.

    The defaults are DS-EfficientNet-B0 (appendix B of the paper). The stem and the first 8 blocks
    have rho = 0.5. The other 8 blocks have 20 widths, with rho from 0.75 to 1.7 in steps of 0.05.
    The channels of a layer are multiples of 8 at a constant interval, as appendix A requires. In
    the last three stages a step of rho is 5.6, 9.6 and 16 channels and the slimmest width has 84,
    144 and 240 channels. The interval and the first option are the multiples nearest to these.

    The other arguments are those of `NetworkSpec`, and `stages` holds `EfficientNetStage`.

    Args:
        top: Int, channels of the last convolution, which all paths share.

    Example:

    ```python
    from keras_dsnet.models import EfficientNetSpec

    assert EfficientNetSpec().num_widths == 20
    ```
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
    def ratios(self) -> tuple[float, ...]:
        """The slimming ratio rho of every width.

        It is that of the last stage that has all widths; in the network of the paper this is the
        last stage, whose interval is exact. A single width has 1.
        """
        widths = self.num_widths
        if widths == 1:
            return (1.0,)
        channels = [s.channels for s in self.stages if len(s.channels) == widths][-1]
        return tuple(_LAST_RATIO * count / channels[-1] for count in channels)

    def features(self, build: StepBuilder, input_channels: int) -> tuple[list[Step], tuple]:
        channels = self.stem
        steps = [
            build.conv("stem_conv", (input_channels,), channels, 3, self.stem_strides),
            build.batch_norm("stem_norm", channels, self.activation),
        ]
        count = 0
        for number, stage in enumerate(self.stages, start=1):
            for index in range(stage.blocks):
                count += 1
                steps += self._block(build, f"block_{count}", channels, stage, index == 0)
                channels = stage.channels
            steps = with_level(steps, f"stage_{number}")
        top = (self.top,)
        steps.append(build.conv("top_conv", channels, top))
        steps.append(build.batch_norm("top_norm", top, self.activation))
        return steps, top

    def _block(self, build, name, inputs, stage, first):
        """Makes the expansion, depthwise convolution, gate and projection of a block.

        The attention of the gate is squeeze-and-excitation. The slimming gate is in the first block
        of the gated stage. It chooses the channels of that block's projection and of all layers
        after it.
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
        # As in EfficientNet, the hidden units depend on the input channels of the block.
        hidden_units = max(1, round(self.attention_ratio * inputs[-1]))
        steps += [
            build.depthwise(f"{name}_depthwise", inside, stage.kernel_size, strides),
            build.batch_norm(f"{name}_depthwise_norm", inside, self.activation),
            build.gate(f"{name}_gate", inside, first and stage.gated, hidden_units),
            build.conv(f"{name}_project", inside, stage.channels),
            # At initialization a block equals its shortcut (appendix A of the paper).
            build.batch_norm(f"{name}_project_norm", stage.channels, zero_gamma=has_shortcut),
        ]
        return [build.residual(steps)] if has_shortcut else steps

    def scaled(self, alpha: float = 1.0, *args: Any, **kwargs: Any) -> "EfficientNetSpec":
        spec: Any = super().scaled(alpha, *args, **kwargs)
        return dataclasses.replace(spec, top=self._scaled((self.top,), alpha)[0])
