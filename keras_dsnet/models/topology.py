"""The topology of a network: its steps, written once and run by executors.

A network is a flat tuple of steps. Executors (`SlicedExecutor`, `MaskedExecutor`, `PlainExecutor`,
`CostCounter`) have one method per kind of step and run them over tensors, symbolic tensors or
shapes; none of them knows the network, and the network knows none of them.
"""

import dataclasses
from typing import Any

from keras_dsnet.layers import SwitchableBatchNormalization


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
