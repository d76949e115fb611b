"""The spec of a network: the data that describes it, whatever its family."""

import dataclasses
import math
import numbers
from typing import Any, ClassVar

from keras_dsnet.models.arguments import activation_name, check_flag, positive_int
from keras_dsnet.models.topology import StepBuilder, entry_steps, split_sections


@dataclasses.dataclass(frozen=True)
class NetworkSpec:
    """All that makes one network different from another; the base of every family.

    A family is a subclass, a frozen dataclass under `@register_family`, that says by `features`
    what its network is made of.

    Args:
        stem: tuple of ints, channel options of the first convolution.
        stem_strides: int.
        stages: tuple of dataclasses with `strides`, `channels` (a tuple of ints, the channel
            options) and `gated` (bool: whether a slimming gate chooses among them).
        attention: "tanh" or "sigmoid", of the gates' attention heads.
        attention_ratio: float: hidden units of a gate for each of its most channels.
        activation: name of a Keras activation.
        slimming_head: "one_hot" or "scalar".
        share_encoder: bool: whether a gate's two heads share their first layer.
        dropout: float: the rate before the classifier.
        synchronized: bool: batch statistics over all replicas.
    """

    stem: tuple
    stem_strides: int
    stages: tuple
    attention: str = "tanh"
    attention_ratio: float = 0.25
    activation: str = "swish"
    slimming_head: str = "one_hot"
    share_encoder: bool = True
    dropout: float = 0.0
    synchronized: bool = False

    # The class of a stage.
    stage_class: ClassVar[Any] = None
    # Scaled channels are multiples of it.
    channel_multiple: ClassVar[int] = 8
    # Fields that are strides before the stages', in order.
    stride_fields: ClassVar[tuple] = ("stem_strides",)
    # Whether the layers before the gate have a second, wider option: the path "largest".
    wide_front: ClassVar[bool] = False

    @property
    def num_gates(self):
        """How many slimming gates there are."""
        return sum(stage.gated for stage in self.stages)

    @property
    def gated_channels(self):
        """The channel options that the first gate chooses from."""
        return self.stages[self._gated_index].channels

    @property
    def num_widths(self):
        """How many widths each gate can choose from."""
        return len(self.gated_channels)

    @property
    def ratios(self):
        """The slimming ratio rho of every width, for display."""
        channels = self.stages[self._gated_index].channels
        return tuple(count / channels[-1] for count in channels)

    @property
    def strides(self):
        """All strides that a user may change, in the order of the network."""
        return (
            *(getattr(self, name) for name in self.stride_fields),
            *(stage.strides for stage in self.stages),
        )

    @property
    def _gated_index(self):
        return next(i for i, stage in enumerate(self.stages) if stage.gated)

    @classmethod
    def from_dict(cls, config):
        """Rebuilds a spec from `dataclasses.asdict` after a round trip through JSON.

        Args:
            config: dict.
        """
        fields = {name: _tuples(value) for name, value in config.items()}
        stages = tuple(
            cls.stage_class(**{name: _tuples(value) for name, value in stage.items()})
            for stage in config["stages"]
        )
        return cls(**{**fields, "stages": stages})

    def features(self, build, input_channels):
        """Makes the network up to its last features; every family has its own.

        Args:
            build: a `StepBuilder`.
            input_channels: int, channels of the image.

        Returns:
            `(steps, channels)`: a list of `Step`, and the channel options of the last.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method `features`.")

    def build(self, input_channels, classes, include_top, dtype=None, pooling=None):
        """Makes the layers of the network.

        Args:
            input_channels: int, channels of the image.
            classes: int.
            include_top: bool: end with the classifier instead of the last features.
            dtype: dtype policy of the layers.
            pooling: "avg", "max" or None: without the classifier, how the last features are pooled.

        Returns:
            Tuple of `Step`: the topology.

        Raises:
            ValueError: the channel options of the stages do not fit together, `features` does not
                give the gates that the stages say, or something else than a convolution stands
                behind one.
        """
        self.check_options()
        builder = StepBuilder(self, dtype)
        steps, channels = self.features(builder, input_channels)
        gates = sum(step.is_slimming_gate for step in steps)
        if gates != self.num_gates:
            raise ValueError(
                f"{type(self).__name__} has {self.num_gates} gated stages, and each needs one "
                f"slimming gate outside of residual branches. Received: {gates}"
            )
        for section in split_sections(steps)[1:]:
            entry_steps(section)
        if include_top:
            return (*steps, *builder.head(channels, classes))
        return (*steps, *([builder.global_pool(pooling)] if pooling else []))

    def check_options(self):
        """Raises a ValueError if a field has a type or a value that no network has."""
        family = type(self).__name__
        kind = self.stage_class or object
        if not isinstance(self.stages, tuple):
            raise ValueError(
                f"{family}: `stages` must be a tuple of stages. Received: stages={self.stages!r}"
            )
        for index, stage in enumerate(self.stages):
            name = f"stages[{index}]"
            if not isinstance(stage, kind):
                raise ValueError(
                    f"{family}: `{name}` must be a {kind.__name__}. Received: {name}={stage!r}"
                )
            if hasattr(stage, "blocks"):
                self._check_positive(f"{name}.blocks", stage.blocks)
            self._check_positive(f"{name}.strides", stage.strides)
            check_flag(f"{name}.gated", stage.gated)
        for name in self.stride_fields:
            self._check_positive(name, getattr(self, name))
        if not _is_number(self.attention_ratio) or not self.attention_ratio > 0:
            raise ValueError(
                "`attention_ratio` must be a positive number. "
                f"Received: attention_ratio={self.attention_ratio!r}"
            )
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise ValueError(
                f"`dropout` must be a number from 0 to below 1. Received: dropout={self.dropout!r}"
            )
        for name, values in (
            ("attention", ("tanh", "sigmoid")),
            ("slimming_head", ("one_hot", "scalar")),
        ):
            if getattr(self, name) not in values:
                raise ValueError(
                    f"`{name}` must be {values[0]!r} or {values[1]!r}. "
                    f"Received: {name}={getattr(self, name)!r}"
                )
        if not isinstance(self.activation, str):
            raise ValueError(
                "`activation` must be the name of a Keras activation. "
                f"Received: activation={self.activation!r}"
            )
        activation_name(self.activation, "activation")
        check_flag("share_encoder", self.share_encoder)
        check_flag("synchronized", self.synchronized)
        self._check_channels()

    def _check_positive(self, name, value):
        if positive_int(value) is None:
            family = type(self).__name__
            raise ValueError(
                f"{family}: `{name}` must be a positive int. Received: {name}={value!r}"
            )

    def _check_channels(self):
        family = type(self).__name__
        options = {f"stages[{i}].channels": stage.channels for i, stage in enumerate(self.stages)}
        for name, channels in {"stem": self.stem, **options}.items():
            whole = isinstance(channels, tuple) and all(isinstance(c, int) for c in channels)
            if not channels or not whole:
                raise ValueError(
                    f"{family}: `{name}` must be a tuple of ints, the channel options. "
                    f"Received: {name}={channels!r}"
                )
        if not self.num_gates:
            raise ValueError(f"{family} needs a gated stage. Received: stages={self.stages!r}")
        for index in range(self._gated_index, len(self.stages)):
            stage, widths = self.stages[index], self.num_widths
            if len(stage.channels) != widths and (stage.gated or len(stage.channels) > 1):
                raise ValueError(
                    f"{family}: from the first gated stage on all have as many channel options: "
                    f"{widths} here. Received: stages[{index}].channels={stage.channels!r}"
                )

    def scaled(self, alpha=1.0, output_stride=32, front_alpha=None, strides=None):
        """Returns a spec with all channels times `alpha` and fewer strides.

        Args:
            alpha: float; channels are rounded to multiples of `channel_multiple`.
            output_stride: 32, 16 or 8: height of the image over height of the last features. The
                earliest strides go first, so that small images keep their resolution where the
                features are made.
            front_alpha: float: the factor of the static front, whose features the gate judges an
                image by; None: `alpha`.
            strides: tuple of 1 and 2: all `strides` one by one, in place of `output_stride`.

        Raises:
            ValueError: on another output stride, or an alpha that makes two widths equal.
        """
        front_alpha = alpha if front_alpha is None else front_alpha
        for name, factor in (("alpha", alpha), ("front_alpha", front_alpha)):
            if not _is_number(factor) or not factor > 0:
                raise ValueError(f"`{name}` must be a positive number. Received: {name}={factor!r}")
        strides = self._new_strides(output_stride, strides)
        stages = []
        for index, stage in enumerate(self.stages):
            factor = front_alpha if index < self._gated_index else alpha
            channels = self._scaled(stage.channels, factor)
            stages.append(dataclasses.replace(stage, channels=channels))
        spec = dataclasses.replace(
            self, stem=self._scaled(self.stem, front_alpha), stages=tuple(stages)
        ).with_strides(strides)
        spec.check(f"alpha={alpha!r}", self)
        return spec

    def with_strides(self, strides):
        """Returns a spec with other `strides`, which change no variable of a network.

        Args:
            strides: sequence of ints, as `strides`.
        """
        own, stage_strides = strides[: len(self.stride_fields)], strides[len(self.stride_fields) :]
        stages = tuple(
            dataclasses.replace(stage, strides=stride)
            for stage, stride in zip(self.stages, stage_strides, strict=True)
        )
        return dataclasses.replace(self, stages=stages, **dict(zip(self.stride_fields, own)))

    def _scaled(self, options, alpha):
        if alpha == 1:
            return options
        size = self.channel_multiple
        return tuple(max(1, int(alpha * count / size + 0.5)) * size for count in options)

    def _new_strides(self, output_stride, strides):
        own = self.strides
        if strides is not None:
            strides = tuple(strides) if isinstance(strides, (list, tuple)) else (strides,)
            whole = [positive_int(stride) for stride in strides]
            if len(strides) != len(own) or not set(whole) <= {1, 2} or output_stride != 32:
                raise ValueError(
                    f"`strides` must be {len(own)} numbers, each 1 or 2, in place of "
                    f"{own} and without another `output_stride`. "
                    f"Received: strides={strides!r}, output_stride={output_stride!r}"
                )
            return whole
        if positive_int(output_stride) not in (8, 16, 32):
            raise ValueError(
                f"`output_stride` must be 8, 16 or 32. Received: output_stride={output_stride!r}"
            )
        early = [index for index, stride in enumerate(own) if stride > 1]
        dropped = early[: {32: 0, 16: 1, 8: 2}[output_stride]]
        return [1 if index in dropped else stride for index, stride in enumerate(own)]

    def check(self, received, unscaled):
        """Raises a ValueError if scaling made two widths of the gated stages equal.

        Args:
            received: what the user asked for, for the message.
            unscaled: the spec that was scaled.
        """
        for stage in self.stages[self._gated_index :]:
            if any(a >= b for a, b in zip(stage.channels, stage.channels[1:])):
                stages = unscaled.stages[self._gated_index :]
                gap = min(b - a for s in stages for a, b in zip(s.channels, s.channels[1:]))
                raise ValueError(
                    "`alpha` makes two widths equal, since channels are multiples of "
                    f"{self.channel_multiple}; {self.channel_multiple / gap:g} is the least that "
                    f"keeps all {self.num_widths}. Received: {received}"
                )


def _is_number(value):
    """Whether a value is a finite real number, NumPy's included."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _tuples(value):
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


@dataclasses.dataclass(frozen=True)
class NetworkStage:
    """Blocks of one width; the base of every family's stage, which says in addition `gated`.

    Args:
        blocks: int, how many.
        strides: int, of the first block.
        channels: tuple of ints, the channel options of every block's output.
    """

    blocks: int
    strides: int
    channels: tuple


FAMILIES = {}


def register_family(spec_class):
    """Makes saved networks of a family loadable; a decorator of its `NetworkSpec`.

    Args:
        spec_class: a subclass of `NetworkSpec`; files know it by its name.

    Returns:
        `spec_class`.

    Raises:
        ValueError: another class has this name.
    """
    name = spec_class.__name__
    known = FAMILIES.get(name, spec_class)
    # The same class once more is a cell of a notebook that was run again.
    if (known.__module__, known.__qualname__) != (spec_class.__module__, spec_class.__qualname__):
        raise ValueError(
            f"There is a family of this name, in {known.__module__}: choose another. "
            f"Received: {name}"
        )
    FAMILIES[name] = spec_class
    return spec_class


def find_family(name):
    """Returns the spec class of a saved network.

    Args:
        name: str, the name of the class.

    Raises:
        ValueError: no imported module registers it.
    """
    if name not in FAMILIES:
        raise ValueError(
            f"The network is of a family that is not known here, of {sorted(FAMILIES)}: import the "
            f"module that registers it first. Received: {name!r}"
        )
    return FAMILIES[name]


def spec_config(spec):
    """Returns a spec as JSON can hold it, with the name of its family.

    Args:
        spec: a `NetworkSpec`.
    """
    return {"family": type(spec).__name__, **dataclasses.asdict(spec)}


def spec_from_config(config):
    """Rebuilds a spec from what `spec_config` returned, also after a round trip through JSON.

    Args:
        config: dict.

    Returns:
        A `NetworkSpec`.

    Raises:
        ValueError: no imported module registers its family.
    """
    fields = dict(config)
    return find_family(fields.pop("family")).from_dict(fields)
