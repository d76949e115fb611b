"""The spec of a network: the data that describes it, in every family."""

import dataclasses
import math
import numbers
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np

from keras_dsnet.layers.double_headed_gate import ENCODERS
from keras_dsnet.models.arguments import activation_name, positive_int
from keras_dsnet.models.topology import Step, StepBuilder, entry_steps, split_sections
from keras_dsnet.utils.argument_checks import check_bool


@dataclasses.dataclass(frozen=True)
class NetworkSpec:
    """The description of a network, and the base of every family.

    A family is a frozen dataclass that inherits from this class, carries `@register_family` and
    makes the steps of its networks in `features`.

    Args:
        stem: Tuple of ints, channel options of the first convolution.
        stem_strides: Int.
        stages: Tuple of dataclasses with `strides`, `channels` (tuple of ints, the channel options)
            and `gated` (bool, whether a slimming gate chooses among them).
        attention: "tanh" or "sigmoid", activation of the attention heads of the gates, or None for
            gates without attention.
        attention_ratio: Float, ratio of a gate's hidden units to its maximum channel count.
        activation: Name of a Keras activation.
        slimming_head: "one_hot" or "scalar".
        share_encoder: Bool, whether the two heads of a gate share their first layer.
        dropout: Float, dropout rate before the classifier.
        synchronized: Bool, whether batch statistics are computed over all replicas.
        gate_encoder: "global" or "regions", what the slimming heads see of the features: the mean
            of all positions, or also the means of four quadrants and of the centre.

    Example:

    ```python
    from keras_dsnet.models import ResNetSpec

    spec = ResNetSpec().scaled(alpha=0.5, output_stride=16)
    assert spec.num_gates == 4
    assert spec.stages[0].channels == (8, 16, 24, 32)
    ```
    """

    stem: tuple
    stem_strides: int
    stages: tuple
    attention: str | None = "tanh"
    attention_ratio: float = 0.25
    activation: str = "swish"
    slimming_head: str = "one_hot"
    share_encoder: bool = True
    dropout: float = 0.0
    synchronized: bool = False
    gate_encoder: str = "global"

    # The class of every stage.
    stage_class: ClassVar[Any] = None
    # `scaled` rounds channels to multiples of this number.
    channel_multiple: ClassVar[int] = 8
    # The fields with strides before the stages, in order.
    stride_fields: ClassVar[tuple] = ("stem_strides",)
    # Whether the layers before the gate may have a second, wider option, for the path "largest".
    wide_front: ClassVar[bool] = False

    @property
    def num_gates(self) -> int:
        """Number of slimming gates."""
        return sum(stage.gated for stage in self.stages)

    @property
    def has_wide_front(self) -> bool:
        """Whether a layer before the gate has a second option, which the path "largest" runs."""
        stages = self.stages[: self._gated_index]
        fronts = (getattr(self, "stem", ()), *(stage.channels for stage in stages))
        return self.wide_front and any(len(options) > 1 for options in fronts)

    @property
    def gated_channels(self) -> tuple:
        """The channel options that the first gate chooses from."""
        return self.stages[self._gated_index].channels

    @property
    def num_widths(self) -> int:
        """Number of widths that each gate can choose from."""
        return len(self.gated_channels)

    @property
    def ratios(self) -> tuple[float, ...]:
        """The slimming ratio rho of every width, for display."""
        channels = self.stages[self._gated_index].channels
        return tuple(count / channels[-1] for count in channels)

    @property
    def strides(self) -> tuple[int, ...]:
        """All strides that may be changed, in the order of the network."""
        return (
            *(getattr(self, name) for name in self.stride_fields),
            *(stage.strides for stage in self.stages),
        )

    @property
    def _gated_index(self):
        return next(i for i, stage in enumerate(self.stages) if stage.gated)

    @classmethod
    def from_dict(cls, config: dict) -> "NetworkSpec":
        """Rebuilds a spec from the output of `dataclasses.asdict`, also after a JSON round trip.

        Args:
            config: Dict of the fields.
        """
        fields = {name: _tuples(value) for name, value in config.items()}
        stages = tuple(
            cls.stage_class(**{name: _tuples(value) for name, value in stage.items()})
            for stage in config["stages"]
        )
        return cls(**{**fields, "stages": stages})

    def features(self, build: StepBuilder, input_channels: int) -> tuple[list[Step], tuple]:
        """Makes the network up to its last features. Every family implements this method.

        Args:
            build: A `StepBuilder`.
            input_channels: Int, number of channels of the image.

        Returns:
            `(steps, channels)`: a list of `Step` and the channel options of its last step.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method `features`.")

    def build(
        self,
        input_channels: int,
        classes: int,
        include_top: bool,
        dtype: Any = None,
        pooling: str | None = None,
    ) -> tuple[Step, ...]:
        """Makes the layers of the network.

        Args:
            input_channels: Int, number of channels of the image.
            classes: Int, number of classes.
            include_top: Bool, whether the network ends with the classifier.
            dtype: Dtype policy of the layers.
            pooling: "avg" or "max" to pool the last features of a network without the classifier.
                Defaults to None, no pooling.

        Returns:
            Tuple of `Step`, the topology.

        Raises:
            ValueError: If the channel options of the stages do not fit together, `features` returns
                another number of gates than there are gated stages, or a gate does not have a
                convolution after it.
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

    def check_options(self) -> None:
        """Raises a ValueError if a field has a wrong type or value."""
        family = type(self).__name__
        kind: Any = self.stage_class or object
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
            check_bool(f"{name}.gated", stage.gated)
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
        if self.attention not in ("tanh", "sigmoid", None):
            raise ValueError(
                "`attention` must be 'tanh', 'sigmoid' or None. "
                f"Received: attention={self.attention!r}"
            )
        if self.slimming_head not in ("one_hot", "scalar"):
            raise ValueError(
                "`slimming_head` must be 'one_hot' or 'scalar'. "
                f"Received: slimming_head={self.slimming_head!r}"
            )
        if self.gate_encoder not in ENCODERS:
            raise ValueError(
                f"`gate_encoder` must be one of {ENCODERS}. "
                f"Received: gate_encoder={self.gate_encoder!r}"
            )
        if not isinstance(self.activation, str):
            raise ValueError(
                "`activation` must be the name of a Keras activation. "
                f"Received: activation={self.activation!r}"
            )
        activation_name(self.activation, "activation")
        check_bool("share_encoder", self.share_encoder)
        check_bool("synchronized", self.synchronized)
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
        most, front = 1 + self.wide_front, ("stem", *list(options)[: self._gated_index])
        for name, channels in {"stem": self.stem, **options}.items():
            if name in front and len(channels) > most:
                second = ", and a second one for the path 'largest'" if self.wide_front else ""
                raise ValueError(
                    f"{family}: layers before the first gated stage have one channel option"
                    f"{second}. Received: {name}={channels!r}"
                )
        for index in range(self._gated_index, len(self.stages)):
            stage, widths = self.stages[index], self.num_widths
            if len(stage.channels) != widths and (stage.gated or len(stage.channels) > 1):
                raise ValueError(
                    f"{family}: all stages from the first gated one on must have the same number "
                    f"of channel options, {widths}, or a single one if they are not gated. "
                    f"Received: stages[{index}].channels={stage.channels!r}"
                )

    def scaled(
        self,
        alpha: float = 1.0,
        output_stride: int = 32,
        front_alpha: float | None = None,
        strides: Sequence[int] | None = None,
    ) -> "NetworkSpec":
        """Returns a spec with all channels multiplied by `alpha` and with fewer strides.

        Args:
            alpha: Float, factor of all channels, which are rounded to multiples of
                `channel_multiple`.
            output_stride: 32, 16 or 8, the height of the image divided by the height of the last
                features. The earliest strides are removed first, so that small images keep their
                resolution in the early layers.
            front_alpha: Float, factor of the static layers before the first gated stage, whose
                features the gate sees. Defaults to `alpha`.
            strides: Tuple of 1s and 2s, all `strides` in order, instead of `output_stride`.

        Raises:
            ValueError: If `output_stride` is unsupported, or `alpha` makes two widths equal.
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

    def with_strides(self, strides: Sequence[int]) -> "NetworkSpec":
        """Returns a spec with other strides. Strides do not change the variables of a network.

        Args:
            strides: Sequence of ints in the order of the property `strides`.
        """
        count = len(self.stride_fields)
        first_strides, stage_strides = strides[:count], strides[count:]
        stages = tuple(
            dataclasses.replace(stage, strides=stride)
            for stage, stride in zip(self.stages, stage_strides, strict=True)
        )
        fields: dict[str, Any] = dict(zip(self.stride_fields, first_strides))
        return dataclasses.replace(self, stages=stages, **fields)

    def _scaled(self, options, alpha):
        if alpha == 1:
            return options
        size = self.channel_multiple
        return tuple(max(1, int(alpha * count / size + 0.5)) * size for count in options)

    def _new_strides(self, output_stride, strides):
        current = self.strides
        if strides is not None:
            strides = tuple(strides) if isinstance(strides, (list, tuple)) else (strides,)
            whole = [positive_int(stride) for stride in strides]
            if len(strides) != len(current) or not set(whole) <= {1, 2} or output_stride != 32:
                raise ValueError(
                    f"`strides` must be {len(current)} numbers, each 1 or 2, in place of "
                    f"{current} and without another `output_stride`. "
                    f"Received: strides={strides!r}, output_stride={output_stride!r}"
                )
            return whole
        if positive_int(output_stride) not in (8, 16, 32):
            raise ValueError(
                f"`output_stride` must be 8, 16 or 32. Received: output_stride={output_stride!r}"
            )
        new, total = list(current), math.prod(current)
        for index, stride in enumerate(current):
            # The earliest strides are left out.
            if total > output_stride and stride > 1:
                new[index], total = 1, total // stride
        if output_stride != 32 and total != output_stride:
            raise ValueError(
                f"`output_stride` must be one that the strides {current} can give: 32 keeps them "
                f"all. Received: output_stride={output_stride!r}"
            )
        return new

    def check(self, received: str, unscaled: "NetworkSpec") -> None:
        """Raises a ValueError if scaling made two widths of the gated stages equal.

        Args:
            received: Str, the user's argument, for the message.
            unscaled: The spec before scaling.
        """
        for stage in self.stages[self._gated_index :]:
            if any(a >= b for a, b in zip(stage.channels, stage.channels[1:])):
                stages = unscaled.stages[self._gated_index :]
                gap = min(b - a for s in stages for a, b in zip(s.channels, s.channels[1:]))
                raise ValueError(
                    "`alpha` makes two widths equal, since channels are multiples of "
                    f"{self.channel_multiple}; {self.channel_multiple / gap:g} is the least that "
                    f"keeps all {self.num_widths} widths. Received: {received}"
                )


def _is_number(value):
    """Whether a value is a finite real number of Python or NumPy."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _tuples(value):
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


@dataclasses.dataclass(frozen=True)
class NetworkStage:
    """Blocks of one width, the base of the stages of every family.

    The stage of a family adds the field `gated`.

    Args:
        blocks: Int, number of blocks.
        strides: Int, strides of the first block.
        channels: Tuple of ints, channel options of the output of every block.
    """

    blocks: int
    strides: int
    channels: tuple


Spec = TypeVar("Spec", bound=NetworkSpec)

FAMILIES: dict[str, type[NetworkSpec]] = {}


def register_family(spec_class: type[Spec]) -> type[Spec]:
    """Registers a family, so that its saved networks can be loaded. Used as a decorator.

    Args:
        spec_class: A subclass of `NetworkSpec`. Saved files refer to it by its name.

    Returns:
        `spec_class`.

    Raises:
        ValueError: If another class has this name.
    """
    name = spec_class.__name__
    known = FAMILIES.get(name, spec_class)
    # A notebook cell that runs again defines the same class again.
    if (known.__module__, known.__qualname__) != (spec_class.__module__, spec_class.__qualname__):
        raise ValueError(
            f"There is already a family of this name in {known.__module__}: choose another name. "
            f"Received: {name}"
        )
    FAMILIES[name] = spec_class
    return spec_class


def find_family(name: str) -> type[NetworkSpec]:
    """Returns the spec class of a saved network.

    Args:
        name: Str, name of the class.

    Raises:
        ValueError: If no imported module registers the class.
    """
    if name not in FAMILIES:
        raise ValueError(
            f"The family of the network is not one of {sorted(FAMILIES)}: import the module that "
            f"registers it first. Received: {name!r}"
        )
    return FAMILIES[name]


def spec_config(spec: NetworkSpec) -> dict:
    """Returns a spec as a dict for JSON, with the name of its family.

    Args:
        spec: A `NetworkSpec`.
    """
    return {"family": type(spec).__name__, **_plain(dataclasses.asdict(spec))}


def _plain(value):
    """Returns a value with Python's numbers in place of NumPy's, which JSON cannot hold."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def spec_from_config(config: dict) -> NetworkSpec:
    """Rebuilds a spec from the output of `spec_config`, also after a JSON round trip.

    Args:
        config: Dict.

    Returns:
        A `NetworkSpec`.

    Raises:
        ValueError: If no imported module registers its family.
    """
    fields = dict(config)
    return find_family(fields.pop("family")).from_dict(fields)
