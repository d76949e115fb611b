"""The spec and the blocks of DS-MobileNet."""

import dataclasses

from keras import layers

from keras_dsnet.layers import (
    DoubleHeadedGate,
    SlicedConv2D,
    SlicedDense,
    SlicedDepthwiseConv2D,
    SwitchableBatchNormalization,
)
from keras_dsnet.models.topology import Step


@dataclasses.dataclass(frozen=True)
class MobileNetStage:
    """Depthwise separable blocks of one width.

    Args:
        blocks: int, how many.
        strides: int, of the first block.
        channels: tuple of ints, the channel options of every block's output.
        gated: bool, whether the first block holds the slimming gate. The options before the gate
            are a pair: what every path uses, and what the wide front of path "largest" uses.
    """

    blocks: int
    strides: int
    channels: tuple
    gated: bool = False


@dataclasses.dataclass(frozen=True)
class MobileNetSpec:
    """All that makes one DS-MobileNet different from another.

    The defaults are those of the authors' released network: 14 widths, and a front at the ratio 0.5
    of MobileNetV1.

    Args:
        stem: tuple of ints, channel options of the first convolution.
        stem_strides: int.
        stages: tuple of `MobileNetStage`.
        attention: "tanh" or "sigmoid", of the gates' attention heads.
        attention_ratio: float: hidden units of a gate for each of its most channels.
        activation: name of a Keras activation.
        slimming_head: "one_hot" or "scalar".
        share_encoder: bool: whether a gate's two heads share their first layer.
        dropout: float: the rate before the classifier.
        synchronized: bool: batch statistics over all replicas.
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
    attention: str = "tanh"
    attention_ratio: float = 0.25
    activation: str = "swish"
    slimming_head: str = "one_hot"
    share_encoder: bool = True
    dropout: float = 0.0
    synchronized: bool = False

    @property
    def num_gates(self):
        return 1

    @property
    def gated_channels(self):
        """The channel options that the gate chooses from."""
        return next(stage.channels for stage in self.stages if stage.gated)

    @property
    def num_widths(self):
        return len(self.gated_channels)

    @property
    def ratios(self):
        """The slimming ratio rho of every width: its channels over MobileNetV1's 512."""
        return tuple(channels / self.base_channels for channels in self.gated_channels)

    @property
    def base_channels(self):
        """Channels at rho = 1: 4/5 of the widest, whose rho is 1.25 in the paper."""
        return self.gated_channels[-1] / 1.25

    @classmethod
    def from_dict(cls, config):
        """Rebuilds a spec from `dataclasses.asdict` after a round trip through JSON."""
        stages = tuple(
            MobileNetStage(**{**stage, "channels": tuple(stage["channels"])})
            for stage in config["stages"]
        )
        return cls(**{**config, "stem": tuple(config["stem"]), "stages": stages})

    def scaled(self, alpha=1.0, output_stride=32, front_alpha=None, strides=None):
        """Returns a spec with all channels times `alpha` and fewer strides.

        Args:
            alpha: float; channels are rounded to multiples of 8, at least 8.
            output_stride: 32, 16 or 8: height of the image over height of the last features. The
                earliest strides go first, so that small images keep their resolution where the
                features are made.
            front_alpha: float: the factor of the static front, whose features the gate judges an
                image by; None: `alpha`.
            strides: tuple of 1 and 2: the strides of the stem and of every stage one by one, in
                place of `output_stride`.

        Raises:
            ValueError: on another output stride, or an alpha that makes two widths equal.
        """
        front_alpha = alpha if front_alpha is None else front_alpha
        for name, factor in (("alpha", alpha), ("front_alpha", front_alpha)):
            if not isinstance(factor, (int, float)) or not factor > 0:
                raise ValueError(f"`{name}` must be a positive number. Received: {name}={factor!r}")
        stem_strides, *stage_strides = self._new_strides(output_stride, strides)
        stages = []
        for index, stage in enumerate(self.stages):
            factor = front_alpha if index < self._gated_index else alpha
            stages.append(
                dataclasses.replace(
                    stage, channels=_scaled(stage.channels, factor), strides=stage_strides[index]
                )
            )
        stem = _scaled(self.stem, front_alpha)
        spec = dataclasses.replace(self, stem=stem, stem_strides=stem_strides, stages=tuple(stages))
        spec.check(f"alpha={alpha!r}")
        return spec

    def _new_strides(self, output_stride, strides):
        """Returns the strides of the stem and of every stage; see `scaled`."""
        own = [self.stem_strides, *(stage.strides for stage in self.stages)]
        if strides is not None:
            strides = tuple(strides) if isinstance(strides, (list, tuple)) else (strides,)
            if len(strides) != len(own) or not set(strides) <= {1, 2} or output_stride != 32:
                raise ValueError(
                    f"`strides` must be {len(own)} numbers, each 1 or 2: of the stem and of the "
                    "stages, without another `output_stride`. "
                    f"Received: strides={strides!r}, output_stride={output_stride!r}"
                )
            return strides
        if output_stride not in (8, 16, 32):
            raise ValueError(
                f"`output_stride` must be 8, 16 or 32. Received: output_stride={output_stride!r}"
            )
        early = [index for index, stride in enumerate(own) if stride > 1]
        dropped = early[: {32: 0, 16: 1, 8: 2}[output_stride]]
        return [1 if index in dropped else stride for index, stride in enumerate(own)]

    def check(self, received):
        """Raises a ValueError if two widths of the gated stages have the same channels."""
        for stage in self.stages[self._gated_index :]:
            if any(a >= b for a, b in zip(stage.channels, stage.channels[1:])):
                raise ValueError(
                    "`alpha` makes two widths equal, since channels are multiples of 8; 0.25 is "
                    f"the least that keeps all {self.num_widths}. Received: {received}"
                )

    @property
    def _gated_index(self):
        return next(i for i, stage in enumerate(self.stages) if stage.gated)

    def build(self, input_channels, classes, include_top, dtype=None):
        """Makes the layers of the network.

        Args:
            input_channels: int, channels of the image.
            classes: int.
            include_top: bool: end with the classifier instead of the last features.
            dtype: dtype policy of the layers.

        Returns:
            Tuple of `Step`: the topology.
        """
        block, channels = _BlockBuilder(self, dtype), _options(self.stem)
        steps = block.stem(channels, self.stem_strides, input_channels)
        for stage in self.stages:
            for index in range(stage.blocks):
                gated = stage.gated and index == 0
                strides = stage.strides if index == 0 else 1
                outputs = _options(stage.channels)
                steps += block.separable(channels, outputs, strides, gated)
                channels = outputs
        if include_top:
            steps += self._head(channels, classes, dtype)
        return tuple(steps)

    def _head(self, channels, classes, dtype):
        steps = [Step("pool", section=1)]
        if self.dropout:
            dropout = layers.Dropout(self.dropout, dtype=dtype, name="dropout")
            steps.append(Step("dropout", dropout, section=1))
        dense = SlicedDense(classes, input_channels=channels[-1], dtype=dtype, name="classifier")
        dense.build((None, channels[-1]))
        return [*steps, Step("dense", dense, section=1)]


class _BlockBuilder:
    """Makes the steps of stem and blocks, with names that count the blocks from 1."""

    def __init__(self, spec, dtype):
        self.spec = spec
        self.dtype = dtype
        self.section = 0
        self.count = 0

    def stem(self, channels, strides, input_channels):
        conv = SlicedConv2D(
            channels,
            3,
            strides,
            input_channels=input_channels,
            dtype=self.dtype,
            name="stem_conv",
        )
        return [self._built("conv", conv, input_channels), self._norm("stem_norm", channels)]

    def separable(self, channels, outputs, strides, gated):
        self.count += 1
        name = f"block_{self.count}"
        depthwise = SlicedDepthwiseConv2D(
            channels, 3, strides, dtype=self.dtype, name=f"{name}_depthwise"
        )
        pointwise = SlicedConv2D(
            outputs,
            1,
            input_channels=channels[-1],
            dtype=self.dtype,
            name=f"{name}_pointwise",
        )
        steps = [
            self._built("depthwise", depthwise, channels[-1]),
            self._norm(f"{name}_depthwise_norm", channels),
            self._gate(f"{name}_gate", channels, gated),
        ]
        self.section += gated
        steps.append(self._built("conv", pointwise, channels[-1]))
        steps.append(self._norm(f"{name}_pointwise_norm", outputs))
        return steps

    def _gate(self, name, channels, gated):
        spec = self.spec
        widest = spec.gated_channels[-1]
        gate = DoubleHeadedGate(
            channels,
            hidden_units=max(1, int(spec.attention_ratio * channels[-1] + 0.5)),
            attention=spec.attention,
            num_choices=spec.num_widths if gated else None,
            slimming_head=spec.slimming_head,
            choice_ratios=[c / widest for c in spec.gated_channels] if gated else None,
            share_encoder=spec.share_encoder,
            dtype=self.dtype,
            name=name,
        )
        return self._built("gate", gate, channels[-1])

    def _norm(self, name, channels):
        # One row of statistics more than there are widths: that of the path "largest".
        rows = 2 if self.section == 0 else self.spec.num_widths + 1
        norm = SwitchableBatchNormalization(
            channels,
            num_statistics=rows,
            synchronized=self.spec.synchronized,
            dtype=self.dtype,
            name=name,
        )
        step = self._built("norm", norm, channels[-1])
        return dataclasses.replace(step, activation=self.spec.activation)

    def _built(self, kind, layer, channels):
        layer.build((None, None, None, channels))
        return Step(kind, layer, self.section)


def _scaled(options, alpha):
    if alpha == 1:
        return options
    return tuple(max(8, int(alpha * channels / 8 + 0.5) * 8) for channels in options)


def _options(channels):
    """A wide front that rounds to the channels of the narrow one is the same, static front."""
    return tuple(sorted(set(channels)))
