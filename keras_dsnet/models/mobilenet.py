"""The spec of DS-MobileNet, with the widths of the released network or of the paper."""

import dataclasses
import math
import numbers
from typing import Any, ClassVar

from keras_dsnet.models.spec import NetworkSpec, NetworkStage, register_family
from keras_dsnet.models.topology import Step, StepBuilder, with_level


@dataclasses.dataclass(frozen=True)
class MobileNetStage(NetworkStage):
    """Depthwise separable blocks of one width. The other arguments are those of `NetworkStage`.

    A stage before the gate has one or two channel options: the channels on every path, and the
    channels of the wide front, which only the path "largest" uses.

    Args:
        gated: Bool, whether the first block holds the slimming gate.
    """

    gated: bool = False


@register_family
@dataclasses.dataclass(frozen=True)
class MobileNetSpec(NetworkSpec):
    """The description of a DS-MobileNet.

    The defaults are those of the network that the authors released: 14 widths in steps of 32
    channels after the gate. Their MAdds are those that the paper reports for DS-MBNet-S, M and L.
    `paper()` returns the 18 widths that Sec. 4 of the paper describes.

    The other arguments are those of `NetworkSpec`, and `stages` holds `MobileNetStage`.

    Args:
        widest_ratio: Float, the slimming ratio rho of the widest width. It only scales `ratios`,
            which are for display.

    Example:

    ```python
    from keras_dsnet.models import MobileNetSpec

    assert MobileNetSpec().num_widths == 14
    assert MobileNetSpec.paper().num_widths == 18
    ```
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
    widest_ratio: float = 1.25

    stage_class: ClassVar[Any] = MobileNetStage
    wide_front: ClassVar[bool] = True

    @classmethod
    def paper(cls, **options: Any) -> "MobileNetSpec":
        """Returns the spec of the paper's text: 18 widths, rho in [0.35 : 0.05 : 1.25] (Sec. 4).

        Every layer has rho times the channels of MobileNetV1, rounded to the nearest multiple of 8.
        The first five blocks have rho = 0.5, and there is no wide front. The range excludes its
        end, as a Python range does. Only then does it have the 18 paths that the paper counts, with
        rho from 0.35 to 1.2. After rounding, the widths differ by 24 or 32 channels in the first
        gated stage and by 48 or 56 in the stage after it. In the released network they differ by 32
        in both.

        Args:
            **options: Other fields of the spec.

        Returns:
            A `MobileNetSpec`.
        """
        ratios = [percent / 100 for percent in range(35, 125, 5)]
        gated, last = (
            tuple(_nearest_multiple(ratio * channels) for ratio in ratios)
            for channels in (512, 1024)
        )
        stages = (
            MobileNetStage(1, 1, (32,)),
            MobileNetStage(2, 2, (64,)),
            MobileNetStage(2, 2, (128,)),
            MobileNetStage(6, 2, gated, gated=True),
            MobileNetStage(2, 2, last),
        )
        return cls(**{"stem": (16,), "stages": stages, "widest_ratio": gated[-1] / 512, **options})

    @property
    def ratios(self) -> tuple[float, ...]:
        """The slimming ratio rho of every width: its channels divided by `base_channels`."""
        return tuple(channels / self.base_channels for channels in self.gated_channels)

    @property
    def base_channels(self) -> float:
        """Channels of the gated stage at rho = 1, which are 512 in MobileNetV1."""
        return self.gated_channels[-1] / self.widest_ratio

    def check_options(self) -> None:
        super().check_options()
        ratio = self.widest_ratio
        is_number = isinstance(ratio, numbers.Real) and not isinstance(ratio, bool)
        if not is_number or not 0 < ratio < math.inf:
            raise ValueError(
                f"`widest_ratio` must be a positive number. Received: widest_ratio={ratio!r}"
            )

    def features(self, build: StepBuilder, input_channels: int) -> tuple[list[Step], tuple]:
        channels = _options(self.stem)
        steps = [
            build.conv("stem_conv", (input_channels,), channels, 3, self.stem_strides),
            build.batch_norm("stem_norm", channels, self.activation),
        ]
        count = 0
        for number, stage in enumerate(self.stages, start=1):
            outputs = _options(stage.channels)
            for index in range(stage.blocks):
                count += 1
                strides = stage.strides if index == 0 else 1
                gated = stage.gated and index == 0
                steps += self._separable(build, f"block_{count}", channels, outputs, strides, gated)
                channels = outputs
            steps = with_level(steps, f"stage_{number}")
        return steps, channels

    def _separable(self, build, name, channels, outputs, strides, gated):
        """Makes a depthwise separable block.

        The gate stands between the depthwise and the pointwise convolution. It chooses the output
        channels of the pointwise one.
        """
        depthwise = build.depthwise(f"{name}_depthwise", channels, 3, strides)
        # A layer draws the seed of its initial values when it is made. Making both convolutions
        # first gives the same initial values for a global seed as earlier versions of the package.
        pointwise = build.conv(f"{name}_pointwise", channels, outputs)
        depthwise_norm = build.batch_norm(f"{name}_depthwise_norm", channels, self.activation)
        gate = build.gate(f"{name}_gate", channels, gated)
        pointwise = dataclasses.replace(pointwise, section=build.section)
        pointwise_norm = build.batch_norm(f"{name}_pointwise_norm", outputs, self.activation)
        return [depthwise, depthwise_norm, gate, pointwise, pointwise_norm]


def _nearest_multiple(channels, multiple=8):
    return int(channels / multiple + 0.5) * multiple


def _options(channels):
    """Returns channel options without repeats.

    Rounding can give the wide front the channels of the narrow one. The layer is then static.
    """
    return tuple(sorted(set(channels)))
