"""Routing by confidence inside a routed file.

An image whose confidence in its output is at most a threshold goes on to a wider step. All steps
use one run of the layers before the first gate. `ConfidencePlan` holds which steps a file tries and
builds the functions of its decisions, and `add_steps` adds the further steps to the main graph.

Every further step has one comparison: the confidence so far with a limit, which depends on the step
and on the width of the path so far. A limit of -1 lets no image go on, and is used where the step
is not the next one after that width, or not within the bounds. Confidence is the largest softmax
probability of the logits in float32, which an int8 file dequantizes first.
"""

import copy
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_dsnet.export.tflite_model import ImportedGraph, ModelBuilder, inline
from keras_dsnet.models.costs import section_costs

# No confidence is at most this limit.
NEVER = np.float32(-1.0)
# Every confidence is below this limit. A float32 softmax may exceed 1.0 by rounding.
_ALWAYS = np.float32(2.0)


@dataclasses.dataclass(frozen=True)
class ConfidencePlan:
    """The steps of a file that routes by confidence.

    Args:
        widths: Tuple of ints, all widths of the file in ascending order.
        steps: Tuple of ints, the widths that are tried in turn, in ascending order.
        thresholds: Tuple of floats, one for each step except the last.
        gate_routes: Tuple of ints, the widths that the gates choose a start from. It is empty in a
            file that starts every image at its first step.
    """

    widths: tuple[int, ...]
    steps: tuple[int, ...]
    thresholds: tuple[float, ...]
    gate_routes: tuple[int, ...] = ()

    @property
    def targets(self) -> tuple[int, ...]:
        """The steps that an image may go on to, in ascending order."""
        narrowest = self.gate_routes[0] if self.gate_routes else self.steps[0]
        return tuple(step for step in self.steps if step > narrowest)

    @property
    def preferred(self) -> tuple[int, ...]:
        """The widths at which an image starts if the bounds allow one of them."""
        return self.gate_routes or self.steps

    def _limit_sources(self, target: int) -> np.ndarray:
        """Returns the index of the threshold that leads from each width to a step, or -1.

        Args:
            target: Int, one of `targets`.

        Returns:
            int32 `[widths]`.
        """
        sources = np.full(len(self.widths), -1, "int32")
        for position, width in enumerate(self.widths):
            wider = [step for step in self.steps if step > width]
            if wider and wider[0] == target:
                sources[position] = max(0, self.steps.index(target) - 1)
        return sources

    def tune(self, thresholds: tf.Tensor) -> dict:
        """Computes the limits of confidence for each step that an image may go on to.

        Args:
            thresholds: float32 `[steps - 1]`.

        Returns:
            Dict of `limits`: a tuple with one float32 tensor `[targets * widths]`, the limits of
            the first of `targets` at each width, then those of the next one.
        """
        always, never = thresholds >= 1.0, thresholds <= 0.0
        limits = tf.where(always, _ALWAYS, tf.where(never, NEVER, thresholds))
        sources = np.concatenate([self._limit_sources(target) for target in self.targets])
        of_widths = tf.gather(limits, np.maximum(sources, 0))
        return {"limits": (tf.where(sources >= 0, of_widths, NEVER),)}

    def stored(self) -> dict:
        """Returns the control tensors of the signature "serving_default" as arrays."""
        with tf.init_scope():  # Also while "bounded" is traced.
            (limits,) = self.tune(tf.constant(self.thresholds, tf.float32))["limits"]
        return {
            "allowed": np.isin(self.widths, self.preferred),
            "start": self.widths.index(self.steps[0]),
            "limits": limits.numpy(),
        }

    def bound(self, min_width: tf.Tensor, max_width: tf.Tensor) -> dict:
        """Computes the control tensors of the signature "bounded".

        A start within the bounds is the first step there or, with gates, the route with the best
        score. Where the bounds hold none, it is the first width of the file within them, else the
        nearest width above, else the widest. An image goes on to steps within the bounds of every
        gate.

        Args:
            min_width: int32 `[num_gates]`.
            max_width: int32 `[num_gates]`.

        Returns:
            Dict of tuples: `limits`, as of `tune`, and `start`, with the position of the first step
            among the widths, int32 `[1]`. With gates it has instead of `start` the `allowed`
            starts: a bool tensor `[widths]` for each gate.
        """
        highest = tf.reduce_min(max_width)
        within = highest >= np.repeat(self.targets, len(self.widths)).astype("int32")
        limits = (tf.where(within, self.stored()["limits"], NEVER),)
        if not self.gate_routes:
            lowest = tf.reduce_max(min_width)
            _, _, first = self._starts(lowest[None, None], highest[None, None])
            return {"start": (first,), "limits": limits}
        right, any_right, first = self._starts(min_width[:, None], max_width[:, None])
        fallback = tf.equal(tf.range(len(self.widths)), first[:, None])
        allowed = tf.where(any_right, right, fallback)
        return {"allowed": tuple(tf.unstack(allowed, min_width.shape[0])), "limits": limits}

    def _starts(self, low, high):
        """Returns the preferred starts, whether there is any, and the position of the first one.

        Args:
            low: int32 `[bounds, 1]`.
            high: int32 `[bounds, 1]`.

        Returns:
            Tuple of bool `[bounds, widths]`, bool `[bounds, 1]` and int32 `[bounds]`.
        """
        widths = tf.constant(self.widths, tf.int32)
        inside = tf.logical_and(widths >= low, widths <= high)
        right = tf.logical_and(inside, np.isin(self.widths, self.preferred))
        # The first of the largest ranks is taken. The widest has a rank above that of nothing.
        rank = tf.where(widths >= low, 1.0, 0.5 * (np.array(self.widths) == self.widths[-1]))
        rank = tf.where(right, 3.0, tf.where(inside, 2.0, tf.cast(rank, tf.float32)))
        first = tf.argmax(rank, 1, output_type=tf.int32)
        return right, tf.reduce_any(right, 1, keepdims=True), first


def confidence_metadata(network: Any, plan: ConfidencePlan, shape: Sequence[int]) -> dict:
    """Returns the metadata of routing by confidence, which `DynamicInterpreter` reads.

    Args:
        network: `DynamicSlimmableNetwork`.
        plan: `ConfidencePlan`.
        shape: `(height, width, 3)`.

    Returns:
        Dict for JSON. "trunk_madds" are the multiply-adds of the layers before the first gate,
        which all steps share. If the gates choose the start, "gate_madds" are those of all
        slimming heads after width 0, and "section_madds" has a table `[widths before][widths]` for
        each gate with those of the layers after it, including how much more the slimming head at
        their end costs than after width 0.
    """
    trunk, tables = section_costs(network, plan.widths, shape)
    metadata = {
        "routing": "gate+confidence" if plan.gate_routes else "confidence",
        "steps": list(plan.steps),
        "thresholds": list(plan.thresholds),
        "trunk_madds": int(trunk),
    }
    if not plan.gate_routes:
        return metadata
    zeros = (0,) * network.num_gates
    narrow = network.costs(zeros, shape).slimming
    # A slimming head costs as much as the width of the section that it ends.
    heads = np.zeros((network.num_gates, len(plan.widths)), "int64")
    for section, position in np.ndindex(*heads.shape):
        path = (*zeros[:section], plan.widths[position], *zeros[section + 1 :])
        heads[section, position] = network.costs(path, shape).slimming - narrow
    metadata["gate_madds"] = int(narrow)
    metadata["section_madds"] = [
        (table + of_head).tolist() for table, of_head in zip(tables, heads)
    ]
    return metadata


def append_confidence(part: ImportedGraph, confidence: ImportedGraph) -> None:
    """Adds the output `confidence` to a graph, whose output `logits` is then removed.

    Args:
        part: `ImportedGraph` of the last layers of a step. It is changed.
        confidence: `ImportedGraph` of `FileTask.confidence_of`.
    """
    inputs = {index: part.outputs[name] for name, index in confidence.inputs.items()}
    part.outputs.pop("logits", None)
    moved = inline(part.graph, copy.deepcopy(confidence.graph), inputs)
    part.outputs["confidence"] = moved[confidence.outputs["confidence"]]


@dataclasses.dataclass
class Reached:
    """Tensors of the main graph that describe how far an image has come.

    Args:
        level: Tensor index of the position of the path's largest width, int32 `[1]`.
        confidence: Tensor index of the confidence, float32 `[1]`.
        number: Tensor index of the row of the result in `results`, int32 `[1]`.
        path: Tensor index of the path, int32 `[num_gates]`.
        results: List of the results that may be taken, each a tuple of tensor indices.
    """

    level: int
    confidence: int
    number: int
    path: int
    results: list[tuple[int, ...]]


def reached_by_start(
    builder: ModelBuilder, main: Any, called: Any, positions: Sequence[int], widths: Sequence[int]
) -> Reached:
    """Returns the `Reached` of the start of an image.

    Args:
        builder: `ModelBuilder`.
        main: `schema.SubGraphT`, the main graph.
        called: `CalledGraphs` of the last section.
        positions: Tensor indices of the positions of the path's widths, one per gate.
        widths: Tuple of ints, all widths of the file in ascending order.
    """
    level, *others = dict.fromkeys(positions)
    for position in others:
        level = builder.maximum(main, level, position)
    confidences = builder.concatenate(main, [features[0] for features in called.features])
    of_positions = builder.add_constant(main, widths)
    return Reached(
        level=level,
        confidence=builder.gather(main, confidences, called.number),
        number=called.number,
        path=builder.gather(main, of_positions, builder.concatenate(main, positions)),
        results=called.results,
    )


def add_steps(
    builder: ModelBuilder,
    main: Any,
    plan: ConfidencePlan,
    limits: int,
    calls: Sequence[Any],
    reached: Reached,
) -> Reached:
    """Adds the further steps to the main graph.

    The `IF`s of a step call the same subgraphs as the start, and none of them runs twice for an
    image: a step is wider than all that ran before it.

    Args:
        builder: `ModelBuilder`.
        main: `schema.SubGraphT`, the main graph, which ends with the start.
        plan: `ConfidencePlan`.
        limits: Tensor index of the limits, as of `ConfidencePlan.tune`.
        calls: `CalledGraphs` of each section, as called by the start.
        reached: `Reached` of the start.

    Returns:
        `Reached` of the last step.
    """
    constant = functools.partial(builder.add_constant, main)
    num_gates = main.tensors[reached.path].shape[0]
    for place, target in enumerate(plan.targets):
        position = plan.widths.index(target)
        entry = builder.add_sum(main, reached.level, constant([place * len(plan.widths)]))
        limit = builder.gather(main, limits, entry)
        go_on = builder.less_equal(main, reached.confidence, limit)
        result, confidence = _add_step(builder, main, calls, position, go_on)
        select = functools.partial(builder.select, main, go_on)
        row = len(reached.results)
        reached = Reached(
            level=select(constant([position]), reached.level),
            confidence=select(confidence, reached.confidence),
            number=select(constant([row]), reached.number),
            path=select(constant([target] * num_gates), reached.path),
            results=[*reached.results, result],
        )
    return reached


def _add_step(builder, main, calls, position, go_on):
    """Adds an `IF` for each section of a step.

    Returns:
        Tuple of the tensor indices of the results, themselves a tuple, and of their confidence.
    """
    replaced: dict = {}
    for called in calls:
        arguments = [replaced.get(index, index) for index in called.arguments]
        outputs = builder.add_if(main, go_on, arguments, called.branches[position])
        replaced = dict(zip(called.features[position], outputs))
        replaced[called.number] = builder.add_constant(main, [position])
    confidence, *results = outputs
    return tuple(results), confidence
