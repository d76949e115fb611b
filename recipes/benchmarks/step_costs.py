"""The costs of a stage-I step, counted from the network.

A step trains the label path, random paths and the slimmest path (Section 3.1 of the paper). The
layers before the first gate run once for all paths. A random path is counted by its mean.
"""

import dataclasses
import itertools
import math

import numpy as np

from keras_dsnet.layers.slicing import option_at
from keras_dsnet.models.costs import CostCounter
from keras_dsnet.models.topology import walk

FLOAT_BYTES = 4
# Paths through several gates are too many to count all of them.
_DRAWS = 64
_KINDS = (
    *("conv", "depthwise", "norm", "gate", "max_pool", "stock", "resize", "pool"),
    *("global_max_pool", "dropout", "dense", "add"),
)


@dataclasses.dataclass(frozen=True)
class StepCosts:
    """The costs of one step on one replica.

    Attributes:
        student_madds: Float, multiply-adds of an image in the forward passes that are trained, by
            the count of `model.madds`.
        teacher_madds: Float, multiply-adds of an image in the passes of the teacher.
        student_elements: Float, elements of all outputs of layers of the trained passes.
        teacher_elements: Float, elements of all outputs of layers of the teacher's passes.
        weights: Int, elements of the variables that are trained.
        variables: Int, elements of all variables of the network.
        gradients: Int, elements of the gradients, which the replicas sum.
        statistics: Float, elements of the moving statistics, which the replicas average.
        synchronization: Float, elements of batch statistics that the replicas sum, in the forward
            and in the backward pass.
        collectives: Float, number of separate sums over the replicas.
    """

    student_madds: float
    teacher_madds: float
    student_elements: float
    teacher_elements: float
    weights: int
    variables: int
    gradients: int
    statistics: float
    synchronization: float
    collectives: float

    @property
    def reduced_bytes(self):
        """Bytes that each replica adds to those of the others in a step."""
        return FLOAT_BYTES * (self.gradients + self.statistics + self.synchronization)


def stage_one_costs(trainer):
    """Counts a step of a trainer with the sandwich rule.

    Args:
        trainer: `SupernetTrainer`, built for images of a fixed size.

    Returns:
        `StepCosts`.
    """
    model, num_random = trainer.model, trainer.num_random
    label, slimmest = (model.resolve_path(name) for name in (trainer.label_path, "slimmest"))
    draws = [_PathCosts(model, path) for path in _random_paths(model)]
    weight = num_random / len(draws)
    ends = [_PathCosts(model, label), _PathCosts(model, slimmest)]

    def total(name, shares):
        """Sums a cost over the paths; the fronts that they share count once."""
        costs, fronts = 0.0, {}
        for path, share in shares:
            front, rest = getattr(path, name)
            costs += share * rest
            fronts[path.front] = front
        return costs + sum(fronts.values())

    trained = [*((path, 1.0) for path in ends), *((path, weight) for path in draws)]
    taught = {"in_place": [], "ema": trained[:1], "ensemble": [trained[0], *trained[2:]]}
    taught = taught[trainer.target]
    norms = total("norms", trained)
    # Synchronized, all replicas compute the same moving statistics and send none.
    sent = "synchronization" if model.spec.synchronized else "statistics"
    sent = {"synchronization": 0.0, "statistics": 0.0, sent: total(sent, trained)}
    weights = sum(math.prod(v.shape) for v in trainer.optimized_variables)
    return StepCosts(
        student_madds=total("madds", trained),
        teacher_madds=total("madds", taught),
        student_elements=total("elements", trained),
        teacher_elements=total("elements", taught),
        weights=weights,
        variables=sum(math.prod(variable.shape) for variable in model.variables),
        gradients=weights,
        **sent,
        # The batch statistics are summed forward and backward.
        collectives=1 + norms * (1 + model.spec.synchronized),
    )


def _random_paths(model):
    gates, widths = model.num_gates, model.num_widths
    if gates == 1:
        return [model.resolve_path(width) for width in range(1, widths - 1) or range(widths)]
    draws = np.random.default_rng(0).integers(0, widths, (_DRAWS, gates)).tolist()
    return [model.resolve_path(tuple(draw)) for draw in draws]


class _PathCosts:
    """The costs of an image along a path, as pairs: of the front, of the rest."""

    def __init__(self, model, path):
        self.front = path.widths[0]
        counter, shape, ends = _OutputCounter(path), model.input_shape[1:], []
        for steps in model.sections:
            shape = counter.run(steps, shape)
            ends.append((counter.madds + counter.pooling, counter.elements))
        self.madds, self.elements = (
            (front, last - front) for front, last in zip(ends[0], ends[-1], strict=True)
        )
        norms = [
            [(step.layer, path.widths[step.section]) for step in walk(steps) if _is_norm(step)]
            for steps in model.sections
        ]
        parts = norms[0], list(itertools.chain(*norms[1:]))
        self.norms = tuple(map(len, parts))
        self.statistics = tuple(
            sum(2 * option_at(layer.channels, width) for layer, width in part) for part in parts
        )
        # The number of values, their sum and the sum of their squares, forward and backward.
        self.synchronization = tuple(
            sum(2 * (1 + 2 * option_at(layer.channels, width)) for layer, width in part)
            for part in parts
        )


def _is_norm(step):
    return step.kind == "norm" and step.is_batch_norm


def _counting(kind):
    def run(self, step, shape, *others):
        outputs = getattr(CostCounter, kind)(self, step, shape, *others)
        self.elements += math.prod(outputs)
        return outputs

    return run


class _OutputCounter(CostCounter):
    """Also counts the elements of the outputs of all layers."""

    def __init__(self, path):
        super().__init__(path)
        self.elements = 0


for _kind in _KINDS:
    setattr(_OutputCounter, _kind, _counting(_kind))
