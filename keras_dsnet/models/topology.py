"""The topology of a network: its steps, written once and run by executors.

A network is a flat tuple of steps. Executors (`SlicedExecutor`, `MaskedExecutor`, `PlainExecutor`,
`CostCounter`) have one method per kind of step and run them over tensors, symbolic tensors or
shapes; none of them knows the network, and the network knows none of them.
"""

import dataclasses
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
            average), "global_max_pool", "dropout", "dense" or "residual" (branch plus shortcut, of
            the same input).
        layer: the Keras layer, where the kind has one.
        section: 0 before the first slimming gate; i from the step after the i-th one on. The path's
            i-th width is the width of the outputs of section i.
        activation: for "norm" and "residual": name of the activation that follows, or None.
        branch: for "residual": the steps of the branch.
        shortcut: for "residual": the steps of the shortcut; empty: the identity.
    """

    kind: str
    layer: Any = None
    section: int = 0
    activation: str | None = None
    branch: tuple = ()
    shortcut: tuple = ()

    @property
    def is_slimming_gate(self):
        """Whether this step chooses the width of the next section."""
        return self.kind == "gate" and bool(self.layer.num_choices)

    @property
    def is_batch_norm(self):
        """Whether this step is a norm with moving statistics, which a convolution can take in."""
        return isinstance(self.layer, SwitchableBatchNormalization)


def split_sections(steps):
    """Cuts steps behind every slimming gate.

    A gate at the start of a residual block is a step before the block's "residual" step: what it
    attends is the input of branch and shortcut, and its choice the width of both.

    Returns:
        Tuple of tuples of steps, one more than there are slimming gates.
    """
    sections = [[]]
    for step in steps:
        sections[-1].append(step)
        if step.is_slimming_gate:
            sections.append([])
    return tuple(map(tuple, sections))


def entry_steps(steps):
    """Returns the convolutions that a section behind a gate begins with: one, or two of a residual.

    Only these see how many channels there were before the gate.

    Args:
        steps: of the section.

    Raises:
        ValueError: it begins with something else, which has no width of its own to choose.
    """
    first = steps[0] if steps else None
    residual = first and first.kind == "residual"
    branches = (first.branch, first.shortcut) if residual else (steps,)
    found = [branch[0] for branch in branches if branch and branch[0].kind == "conv"]
    if len(found) < len(branches):
        raise ValueError(
            "A slimming gate needs a convolution behind it, or a residual block whose branch and "
            "shortcut begin with one. "
            f"Received: {repr(first.kind) if first else 'the end of the features'}"
        )
    return found


def walk(steps):
    """Yields every step, those inside of residual branches and shortcuts included.

    Args:
        steps: iterable of `Step`.
    """
    for step in steps:
        if step.kind == "residual":
            yield from walk(step.branch)
            yield from walk(step.shortcut)
        else:
            yield step


class Executor:
    """Runs steps one after the other; subclasses define a method per kind of step."""

    def run(self, steps, x):
        """Runs `steps` on `x` and returns what the last one gives.

        Args:
            steps: iterable of `Step`.
            x: what the executor runs over: a tensor, a symbolic tensor or a shape.
        """
        for step in steps:
            x = getattr(self, step.kind)(step, x)
        return x

    def residual(self, step, x):
        shortcut = self.run(step.shortcut, x)
        return self.add(step, self.run(step.branch, x), shortcut)


class StepBuilder:
    """Makes steps whose layers are built, and counts the sections.

    Channels are tuples of channel options; one option is static. What is made after a slimming gate
    belongs to the gate's section.

    Args:
        spec: a `NetworkSpec`, whose options the layers follow.
        dtype: dtype policy of the layers.

    Attributes:
        section: int: the slimming gates made so far.
    """

    def __init__(self, spec, dtype=None):
        self.spec = spec
        self.dtype = dtype
        self.section = 0

    def conv(self, name, inputs, outputs, kernel_size=1, strides=1):
        """A convolution from channel options to channel options.

        Args:
            name: str, of the layer.
            inputs: tuple of ints, channel options of the input.
            outputs: tuple of ints, channel options of the output.
            kernel_size: int.
            strides: int.

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
        )
        return self._built("conv", conv, inputs[-1])

    def depthwise(self, name, channels, kernel_size=3, strides=1):
        """A depthwise convolution.

        Args:
            name: str, of the layer.
            channels: tuple of ints, channel options of input and output.
            kernel_size: int.
            strides: int.

        Returns:
            A `Step`.
        """
        conv = SlicedDepthwiseConv2D(channels, kernel_size, strides, dtype=self.dtype, name=name)
        return self._built("depthwise", conv, channels[-1])

    def batch_norm(self, name, channels, activation=None, zero_gamma=False):
        """Batch normalisation with statistics for every width of this section.

        Args:
            name: str, of the layer.
            channels: tuple of ints, channel options of input and output.
            activation: name of the Keras activation that follows; None: none does.
            zero_gamma: bool: start with scales of 0, as the last norm of a residual branch does.

        Returns:
            A `Step`.
        """
        widths = self.spec.num_widths if self.section else 1
        norm = SwitchableBatchNormalization(
            channels,
            # One row more for the path "largest".
            num_statistics=widths + self.spec.wide_front,
            synchronized=self.spec.synchronized,
            gamma_initializer="zeros" if zero_gamma else "ones",
            dtype=self.dtype,
            name=name,
        )
        return self._built("norm", norm, channels[-1], activation)

    def group_norm(self, name, channels, activation=None, zero_gamma=False):
        """Group normalisation, 16 channels a group, or 8 or 4 where the slimmest needs it.

        Args:
            name: str, of the layer.
            channels: tuple of ints, channel options of input and output.
            activation: name of the Keras activation that follows; None: none does.
            zero_gamma: bool: start with scales of 0, as the last norm of a residual branch does.

        Returns:
            A `Step`.
        """
        norm = SlicedGroupNormalization(
            channels,
            channels_per_group=next((s for s in (16, 8) if not any(c % s for c in channels)), 4),
            gamma_initializer="zeros" if zero_gamma else "ones",
            dtype=self.dtype,
            name=name,
        )
        return self._built("norm", norm, channels[-1], activation)

    def gate(self, name, channels, slimming=False, hidden_units=None):
        """A gate; with `slimming` it chooses the width of all steps made after it.

        Args:
            name: str.
            channels: tuple of ints, the channel options of its input.
            slimming: bool.
            hidden_units: int; None: the spec's `attention_ratio` times the most channels.

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
            dtype=self.dtype,
            name=name,
        )
        step = self._built("gate", gate, channels[-1])
        self.section += slimming
        return step

    def max_pool(self, name, size, strides):
        """A maximum over windows, padded at the end where the size needs it.

        Args:
            name: str, of the layer.
            size: int, of a window.
            strides: int.

        Returns:
            A `Step`.
        """
        # Whatever Keras's global format is: all other layers know this one alone.
        pool = layers.MaxPooling2D(
            size, strides, "same", "channels_last", dtype=self.dtype, name=name
        )
        return Step("max_pool", pool, self.section)

    def residual(self, branch, shortcut=(), activation=None):
        """The sum of a branch and a shortcut of the same input; no shortcut: the input itself.

        Args:
            branch: list of `Step`.
            shortcut: list of `Step`.
            activation: name of the Keras activation behind the sum; None: none.

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

    def global_pool(self, pooling):
        """The features' mean or maximum over height and width.

        Args:
            pooling: "avg" or "max".

        Returns:
            A `Step`.
        """
        return Step({"avg": "pool", "max": "global_max_pool"}[pooling], section=self.section)

    def head(self, channels, classes):
        """Pool, dropout where the spec has it, and classifier: a list of steps.

        Args:
            channels: tuple of ints, channel options of the last features.
            classes: int.
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
