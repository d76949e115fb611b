"""The topology of a network: its steps, which executors run.

A network is a flat tuple of steps, written once. A family makes them with a `StepBuilder`.
Executors (`SlicedExecutor`, `MaskedExecutor`, `PlainExecutor`, `CostCounter`) have one method per
kind of step and run the steps over tensors, symbolic tensors or shapes. Executors do not depend on
a network, and a network does not depend on them.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from keras import layers

from keras_dsnet.layers import (
    DoubleHeadedGate,
    SlicedConv2D,
    SlicedDense,
    SlicedDepthwiseConv2D,
    SlicedGroupNormalization,
    SwitchableBatchNormalization,
)


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation of a network.

    Args:
        kind: "conv", "depthwise", "norm", "gate", "max_pool" (padding "same"), "pool" (global
            average), "global_max_pool", "dropout", "dense", "resize" (bilinear), "stock" (a
            layer of Keras without variables) or "residual" (the sum of a branch and a shortcut of
            the same input).
        layer: The Keras layer, if the kind has one.
        section: Int, number of slimming gates before this step. The outputs of section i have the
            i-th width of the path.
        activation: Name of the activation that follows a "norm" or "residual" step, or None.
        branch: Tuple of `Step`, the branch of a "residual" step.
        shortcut: Tuple of `Step`, the shortcut of a "residual" step. Empty for the identity.
        level: Str, name of the features after this step, such as "stage_3". None if they have no
            name.
        size: `(height, width)` of the outputs of a "resize" step.
    """

    kind: str
    layer: Any = None
    section: int = 0
    activation: str | None = None
    branch: tuple = ()
    shortcut: tuple = ()
    level: str | None = None
    size: tuple = ()

    @property
    def is_slimming_gate(self) -> bool:
        """Whether this step chooses the width of the next section."""
        return self.kind == "gate" and bool(self.layer.num_choices)

    @property
    def is_batch_norm(self) -> bool:
        """Whether this step is a batch norm, which can be folded into a convolution."""
        return isinstance(self.layer, SwitchableBatchNormalization)


class StepBuilder:
    """Makes the steps of a network, with built layers.

    Channels are tuples of channel options; a single option is static. Steps that are made after a
    slimming gate belong to the section of that gate.

    Args:
        spec: A `NetworkSpec`, whose options the layers follow.
        dtype: Dtype policy of the layers.

    Attributes:
        section: Int, number of slimming gates made so far.
    """

    def __init__(self, spec, dtype=None):
        self.spec = spec
        self.dtype = dtype
        self.section = 0

    def conv(
        self,
        name: str,
        inputs: tuple,
        outputs: tuple,
        kernel_size: int = 1,
        strides: int = 1,
        **options: Any,
    ) -> Step:
        """Makes a convolution.

        Args:
            name: Str, name of the layer.
            inputs: Tuple of ints, channel options of the input.
            outputs: Tuple of ints, channel options of the output.
            kernel_size: Int, height and width of the kernel.
            strides: Int.
            **options: Further arguments of `SlicedConv2D`.

        Returns:
            A `Step`.
        """
        conv = SlicedConv2D(
            outputs,
            kernel_size,
            strides,
            input_channels=inputs[-1],
            dtype=self.dtype,
            name=name,
            **options,
        )
        return self._built("conv", conv, inputs[-1])

    def depthwise(
        self, name: str, channels: tuple, kernel_size: int = 3, strides: int = 1, **options: Any
    ) -> Step:
        """Makes a depthwise convolution.

        Args:
            name: Str, name of the layer.
            channels: Tuple of ints, channel options of input and output.
            kernel_size: Int, height and width of the kernel.
            strides: Int.
            **options: Further arguments of `SlicedDepthwiseConv2D`.

        Returns:
            A `Step`.
        """
        conv = SlicedDepthwiseConv2D(
            channels, kernel_size, strides, dtype=self.dtype, name=name, **options
        )
        return self._built("depthwise", conv, channels[-1])

    def batch_norm(
        self, name: str, channels: tuple, activation: str | None = None, zero_gamma: bool = False
    ) -> Step:
        """Makes a batch normalisation with separate statistics for every width of this section.

        Args:
            name: Str, name of the layer.
            channels: Tuple of ints, channel options of input and output.
            activation: Name of the Keras activation that follows. Defaults to no activation.
            zero_gamma: Bool, whether `gamma` starts at zero, as in the last norm of a residual
                branch.

        Returns:
            A `Step`.

        Raises:
            ValueError: If the activation is "mish".
        """
        if activation == "mish":
            raise ValueError(
                "`activation` after a batch norm must not be 'mish': TensorFlow joins the two, and "
                f"then cannot run them on a CPU. Received: activation={activation!r}"
            )
        widths = self.spec.num_widths if self.section else 1
        norm = SwitchableBatchNormalization(
            channels,
            # The path "largest" has an additional row.
            num_statistics=widths + self.spec.wide_front,
            synchronized=self.spec.synchronized,
            gamma_initializer="zeros" if zero_gamma else "ones",
            dtype=self.dtype,
            name=name,
        )
        return self._built("norm", norm, channels[-1], activation)

    def group_norm(
        self, name: str, channels: tuple, activation: str | None = None, zero_gamma: bool = False
    ) -> Step:
        """Makes a group normalisation with 16 channels per group, or 8 or 4 if 16 do not fit.

        Args:
            name: Str, name of the layer.
            channels: Tuple of ints, channel options of input and output.
            activation: Name of the Keras activation that follows. Defaults to no activation.
            zero_gamma: Bool, whether `gamma` starts at zero, as in the last norm of a residual
                branch.

        Returns:
            A `Step`.

        Raises:
            ValueError: If channels are no multiples of 4.
        """
        if any(count % 4 for count in channels):
            raise ValueError(
                f"Channels of group normalisation must be multiples of 4. Received: {channels} "
                f"channels for '{name}'"
            )
        norm = SlicedGroupNormalization(
            channels,
            channels_per_group=next((s for s in (16, 8) if not any(c % s for c in channels)), 4),
            gamma_initializer="zeros" if zero_gamma else "ones",
            dtype=self.dtype,
            name=name,
        )
        return self._built("norm", norm, channels[-1], activation)

    def gate(
        self, name: str, channels: tuple, slimming: bool = False, hidden_units: int | None = None
    ) -> Step:
        """Makes a gate. With `slimming` it chooses the width of all steps made after it.

        Args:
            name: Str, name of the layer.
            channels: Tuple of ints, channel options of the input.
            slimming: Bool, whether the gate has a slimming head.
            hidden_units: Int. Defaults to the spec's `attention_ratio` times the maximum channel
                count.

        Returns:
            A `Step`.
        """
        spec = self.spec
        ratios = spec.ratios
        gate = DoubleHeadedGate(
            channels,
            hidden_units=hidden_units or max(1, int(spec.attention_ratio * channels[-1] + 0.5)),
            attention=spec.attention,
            num_choices=spec.num_widths if slimming else None,
            slimming_head=spec.slimming_head,
            choice_ratios=[ratio / ratios[-1] for ratio in ratios] if slimming else None,
            share_encoder=spec.share_encoder,
            encoder=spec.gate_encoder if slimming else "global",
            dtype=self.dtype,
            name=name,
        )
        step = self._built("gate", gate, channels[-1])
        self.section += slimming
        return step

    def max_pool(self, name: str, size: int, strides: int) -> Step:
        """Makes a max pool with padding "same".

        Args:
            name: Str, name of the layer.
            size: Int, height and width of a window.
            strides: Int.

        Returns:
            A `Step`.
        """
        # All other layers support only this format, whatever Keras's global one is.
        pool = layers.MaxPooling2D(
            size, strides, "same", "channels_last", dtype=self.dtype, name=name
        )
        return Step("max_pool", pool, self.section)

    def residual(
        self,
        branch: Sequence[Step],
        shortcut: Sequence[Step] = (),
        activation: str | None = None,
    ) -> Step:
        """Makes the sum of a branch and a shortcut of the same input.

        Args:
            branch: List of `Step`.
            shortcut: List of `Step`. Defaults to the identity.
            activation: Name of the Keras activation after the sum. Defaults to no activation.

        Returns:
            A `Step`.
        """
        return Step(
            "residual",
            section=self.section,
            activation=activation,
            branch=tuple(branch),
            shortcut=tuple(shortcut),
        )

    def global_pool(self, pooling: str) -> Step:
        """Makes the mean or the maximum of the features over height and width.

        Args:
            pooling: "avg" or "max".

        Returns:
            A `Step`.
        """
        return Step({"avg": "pool", "max": "global_max_pool"}[pooling], section=self.section)

    def head(self, channels: tuple, classes: int) -> list[Step]:
        """Makes the global pool, the dropout if the spec has one, and the classifier.

        Args:
            channels: Tuple of ints, channel options of the last features.
            classes: Int, number of classes.

        Returns:
            List of `Step`.
        """
        steps = [self.global_pool("avg")]
        if self.spec.dropout:
            dropout = layers.Dropout(self.spec.dropout, dtype=self.dtype, name="dropout")
            steps.append(Step("dropout", dropout, self.section))
        dense = SlicedDense(
            classes, input_channels=channels[-1], dtype=self.dtype, name="classifier"
        )
        dense.build((None, channels[-1]))
        return [*steps, Step("dense", dense, self.section)]

    def _built(self, kind, layer, channels, activation=None):
        layer.build((None, None, None, channels))
        return Step(kind, layer, self.section, activation)


def with_level(steps: Sequence[Step], name: str) -> list[Step]:
    """Names the features after the last of `steps`, so that a detector can read them.

    Args:
        steps: Sequence of `Step`, such as those of a stage.
        name: Str, name of the level, such as "stage_3".

    Returns:
        List of the same steps, the last of which has the level.
    """
    return [*steps[:-1], dataclasses.replace(steps[-1], level=name)]


def split_sections(steps: Iterable[Step]) -> tuple[tuple[Step, ...], ...]:
    """Splits steps after every slimming gate.

    The gate of a residual block stands before the "residual" step. Its output is the input of
    branch and shortcut, and both have the width that it chooses.

    Returns:
        Tuple of tuples of steps, one more than there are slimming gates.
    """
    sections: list[list[Step]] = [[]]
    for step in steps:
        sections[-1].append(step)
        if step.is_slimming_gate:
            sections.append([])
    return tuple(map(tuple, sections))


def entry_steps(steps: Sequence[Step]) -> list[Step]:
    """Returns the convolutions at the start of a section: one, or two in a residual block.

    Only their inputs have the channels of the section before.

    Args:
        steps: The steps of a section after a gate.

    Raises:
        ValueError: If the section starts with another kind of step, whose width cannot be chosen.
    """
    first = steps[0] if steps else None
    branches: tuple = (steps,)
    if first and first.kind == "residual":
        branches = (first.branch, first.shortcut)
    found = [branch[0] for branch in branches if branch and branch[0].kind == "conv"]
    if len(found) < len(branches):
        raise ValueError(
            "A slimming gate needs a convolution after it, or a residual block whose branch and "
            "shortcut begin with one. "
            f"Received: {repr(first.kind) if first else 'the end of the features'}"
        )
    return found


def walk(steps: Iterable[Step]) -> Iterator[Step]:
    """Yields every step, including those inside residual branches and shortcuts.

    Args:
        steps: Iterable of `Step`.
    """
    for step in steps:
        if step.kind == "residual":
            yield from walk(step.branch)
            yield from walk(step.shortcut)
        else:
            yield step


def split_levels(
    steps: Iterable[Step], levels: Sequence[str]
) -> list[tuple[tuple[Step, ...], str | None]]:
    """Splits steps after each of some levels.

    Args:
        steps: Iterable of `Step`, of one section.
        levels: Names of levels. Levels of other sections are ignored.

    Returns:
        List of `(steps, level)`. The level is that after the steps, or None after the last steps.
    """
    parts: list[tuple[tuple[Step, ...], str | None]] = []
    part: list[Step] = []
    for step in steps:
        part.append(step)
        if step.level is not None and step.level in levels:
            parts.append((tuple(part), step.level))
            part = []
    return [*parts, (tuple(part), None)] if part else parts


class Executor:
    """Runs steps one after the other. Subclasses define one method per kind of step."""

    def run(self, steps: Iterable[Step], x: Any) -> Any:
        """Runs `steps` on `x` and returns the output of the last step.

        Args:
            steps: Iterable of `Step`.
            x: Input of the first step: a tensor, a symbolic tensor or a shape.
        """
        for step in steps:
            x = getattr(self, step.kind)(step, x)
        return x

    def run_aside(self, steps: Iterable[Step], x: Any) -> Any:
        """Runs `steps` on `x`, which the steps that run next take too, instead of their result.

        Args:
            steps: Iterable of `Step`.
            x: As for `run`.
        """
        return self.run(steps, x)

    def residual(self, step, x):
        """Runs the branch and the shortcut of a "residual" step, and sums them with `add`.

        Args:
            step: A `Step`.
            x: Input of the step.
        """
        shortcut = self.run(step.shortcut, x)
        return self.add(step, self.run(step.branch, x), shortcut)
