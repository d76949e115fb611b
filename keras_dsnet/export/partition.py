"""Partition of a network's kernels into the channel blocks of a routed file.

Group ends are a dict from route to an ascending tuple of routes that ends with the route itself:
the routes at whose channels the channel groups of the route end. A route shares the blocks of the
route whose group ends it extends, and stores the rest of its kernels separately.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from keras_dsnet.export.file_task import task_of
from keras_dsnet.layers import SlicedDepthwiseConv2D
from keras_dsnet.models.costs import CostCounter
from keras_dsnet.models.dynamic_slimmable_network import DynamicSlimmableNetwork
from keras_dsnet.models.path import Path
from keras_dsnet.models.topology import entry_steps

LAYOUTS = ("shared", "fast", "staged")
# Weights that a file of one gate may store more than once, as a share of the widest route's. In
# int8 an operator rounds and adds each partial sum, which costs time and digits.
SPARE_PER_ROUTE = 0.016
SPARE_IN_INT8 = 0.2
# Weights of a file with several gates, as a multiple of the widest path's.
LIMITS = {"shared": 1.06, "fast": 1.96, "staged": 1.96}
# A depthwise kernel is shared up to this many output pixels for each weight of a channel.
PIXELS_PER_WEIGHT = 6
_BISECTION_STEPS = 40


@dataclasses.dataclass(frozen=True)
class SectionPlan:
    """The group ends of every layer after one gate.

    Args:
        group_ends: Tuple with the group ends of each `Span` of the section.
        layers: Tuple with the convolutions of each `Span`, themselves tuples.
        entry_layers: Tuple of the section's first convolutions, which see the width before.
        entry: Group ends of the outputs of these.
        pooled_layers: Tuple of the gates and dense layers, which take pooled features, and of the
            layers whose channels are the same at every width.
        pooled: Group ends of the inputs of these, whose sums cost nothing or which are not cut.
    """

    group_ends: tuple
    layers: tuple
    entry_layers: tuple
    entry: dict
    pooled_layers: tuple
    pooled: dict

    def of_layers(self, route: int, entry: bool = False) -> dict[Any, tuple[int, ...]]:
        """Returns a dict from layer to the group ends of a route, for a `BlockExecutor`.

        Args:
            route: Integer.
            entry: Boolean. `True` for an executor of only the section's first convolutions, `False`
                for one of the rest. Defaults to `False`.
        """
        return {layer: ends[route] for layer, ends in self._by_layer(entry).items()}

    def folded_with(self, route: int, entry: bool = False) -> dict[Any, tuple[int, ...]]:
        """Returns a dict from layer to the routes that its groups are folded with.

        Args:
            route: Integer.
            entry: Boolean, as of `of_layers`.
        """
        return {layer: folded_routes(ends, route) for layer, ends in self._by_layer(entry).items()}

    def _by_layer(self, entry):
        """Returns a dict from layer to the group ends of all routes."""
        # The rest of the section joins the entry's outputs to the groups of its first span.
        found = dict.fromkeys(self.entry_layers, self.entry if entry else self.group_ends[0])
        found |= dict.fromkeys(self.pooled_layers, self.pooled)
        for layers, ends in zip(self.layers, self.group_ends):
            found |= dict.fromkeys(layers, ends)
        return found


def plan_sections(
    network: DynamicSlimmableNetwork,
    routes: Sequence[int],
    shape: Sequence[int],
    layout: str,
    integer: bool = False,
) -> tuple[SectionPlan, ...]:
    """Chooses the group ends of every route after every gate.

    A cut costs a pass over the partial sums of a layer, relative to the MAdds of the whole path.
    The plan has the lowest cost of those that store no more weights than the layout allows. The
    layout "fast" of one gate has no limit, so its plan has no cuts.

    Args:
        network: `DynamicSlimmableNetwork`.
        routes: Tuple of candidate widths, ascending.
        shape: `(height, width, 3)`.
        layout: One of `LAYOUTS`. "staged" has the group ends of "fast".
        integer: Boolean, whether the plan is for an int8 file. Defaults to `False`.

    Returns:
        Tuple with a `SectionPlan` for each gate.
    """
    survey = survey_network(network, routes, shape)
    spans, total = survey.spans, survey.parameters
    # The weights that a plan can store more than once. The limit leaves room for all others.
    planned = sum(
        weights.get(routes[-1], 0)
        for span in spans
        for weights in (span.weights, span.entry_weights)
    )
    limit = _limit(network, routes, survey, layout, integer) * total - (total - planned)
    # The higher the cost of a stored weight, the fewer weights the cheapest plan stores. Bisection
    # finds the lowest cost with which that plan keeps to the limit.
    low, high = 0.0, 1.0 / total
    while _cheapest(spans, routes, high)[1] > limit and high < 1:
        high *= 4
    best = _cheapest(spans, routes, high)[0]
    for _ in range(_BISECTION_STEPS):
        weight_cost = (low + high) / 2
        chosen, stored = _cheapest(spans, routes, weight_cost)
        if stored <= limit:
            best, high = chosen, weight_cost
        else:
            low = weight_cost
    return _by_sections(survey, best, routes)


def group_ends_of(plans: Sequence[SectionPlan], path: Sequence[int]) -> list[list[int]]:
    """Returns the group ends on a path for a report: a list for each span, section by section."""
    return [list(ends[width]) for plan, width in zip(plans, path) for ends in plan.group_ends]


def _limit(network, routes, survey, layout, integer):
    """Returns the number of weights that a file may store, as a multiple of the widest path's."""
    if network.num_gates > 1:
        return LIMITS[layout]
    if layout != "shared":
        return len(routes)
    if integer:
        return 1 + SPARE_IN_INT8
    copied = survey.copied / survey.parameters
    return 1 + max(0.0, SPARE_PER_ROUTE * (len(routes) - 1) - copied)


def _by_sections(survey, chosen, routes):
    """Returns a `SectionPlan` for each section."""
    plans = []
    pairs = zip(survey.spans, chosen)
    for section, group in itertools.groupby(pairs, lambda pair: pair[0].section):
        spans, choices = zip(*group)
        group_ends = tuple(ends for ends, _ in choices)
        is_fine = choices[0][1]
        plan = SectionPlan(
            group_ends=group_ends,
            layers=tuple(tuple(span.layers) for span in spans),
            entry_layers=survey.entry_layers[section],
            entry=finest(routes) if is_fine else group_ends[0],
            pooled_layers=survey.pooled_layers[section],
            pooled=finest(routes),
        )
        plans.append(plan)
    return tuple(plans)


def _cheapest(spans, routes, weight_cost):
    """Returns the choices of lowest cost for all spans, and the number of weights they store.

    The cost of a span depends on its group ends and on those of the span before. So the best
    choices up to each choice of one span follow from those up to the span before.
    """
    reached = {None: (0.0, 0.0, ())}
    section = 0
    for span in spans:
        following = {}
        for index, (ends, is_fine) in enumerate(span.choices(routes)):
            span_cost, span_stored = span.cost(ends), stored_weights(span.weights, ends)
            candidates = []
            for total, stored, chosen in reached.values():
                cost, kept = span_cost, span_stored
                if span.has_entry:
                    before = chosen[-1][0]
                    cost += span.entry_cost(before, ends, is_fine)
                    kept += span.entry_stored(before, ends, is_fine)
                elif span.section == section:
                    cost += span.regroup_cost(chosen[-1][0], ends)
                candidates.append(
                    (total + cost + weight_cost * kept, stored + kept, (*chosen, (ends, is_fine)))
                )
            following[index] = min(candidates, key=lambda candidate: candidate[0])
        reached, section = following, span.section
    _, stored, chosen = min(reached.values(), key=lambda candidate: candidate[0])
    return chosen, stored


def whole(routes: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Returns the group ends with which every route stores whole kernels separately."""
    return {route: (route,) for route in routes}


def finest(routes: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Returns the group ends with which every weight is stored once."""
    return {route: tuple(routes[: place + 1]) for place, route in enumerate(routes)}


def cheapest_group_ends(weights: Mapping[int, int], weight_cost: float) -> dict:
    """Returns the group ends of lowest cost: 1 per cut, `weight_cost` per stored weight.

    Args:
        weights: Dict from route, in ascending order, to the number of weights that it runs.
        weight_cost: Float.
    """
    ends: dict = {}
    for route, count in weights.items():
        options = [((), 0), *((ends[other], weights[other]) for other in ends)]
        cost = [len(extended) + weight_cost * (count - shared) for extended, shared in options]
        # Of equal ones the one that shares most.
        best = min(range(len(options)), key=lambda index: (cost[index], -index))
        ends[route] = (*options[best][0], route)
    return ends


def stored_weights(weights: Mapping[int, int], group_ends: Mapping) -> int:
    """Returns the number of weights that a file stores.

    Args:
        weights: Dict from route to the number of weights that it runs.
        group_ends: Group ends of all routes.
    """
    kept = set(group_ends.values())
    kept |= {ends[:end] for ends in kept for end in range(1, len(ends))}
    return sum(weights[ends[-1]] - (weights[ends[-2]] if len(ends) > 1 else 0) for ends in kept)


def folded_routes(group_ends: Mapping, route: int) -> tuple[int, ...]:
    """Returns for each group of a route the route whose statistics it is folded with.

    All but one of the routes that share a group multiply it with a ratio. The widest routes have
    the most groups, so the second widest is spared; of two routes the narrower one is spared, which
    has less time.

    Args:
        group_ends: Group ends of all routes.
        route: Integer.
    """
    found = []
    for end in range(1, len(group_ends[route]) + 1):
        first = group_ends[route][:end]
        sharing = [other for other, ends in group_ends.items() if ends[:end] == first]
        found.append(sharing[-2] if len(sharing) > 1 else route)
    return tuple(found)


def stored_share(group_ends: Mapping) -> float:
    """Returns the number of channels in the groups of all routes, relative to the widest route's.

    The widths are assumed to be equispaced, which is accurate enough for a plan.
    """
    channels = {route: place + 1 for place, route in enumerate(group_ends)}
    groups = {pair for ends in group_ends.values() for pair in itertools.pairwise((None, *ends))}
    total = sum(channels[end] - channels.get(start, 0) for start, end in groups)
    return total / len(channels)


def shares_depthwise(layer: SlicedDepthwiseConv2D, size: Sequence[int]) -> bool:
    """Returns whether routes share the kernel of a depthwise convolution in a float file.

    Its outputs are then multiplied with the ratio of the routes' batch norms, which costs a pass
    over them. Most of these kernels are small enough to be stored once per route instead.

    Args:
        layer: `SlicedDepthwiseConv2D`.
        size: `(height, width)` of its input.
    """
    pixels = size[0] * size[1] / layer.strides**2
    return pixels < PIXELS_PER_WEIGHT * layer.kernel_size**2


@dataclasses.dataclass
class Span:
    """The convolutions of a section whose outputs have one height and width.

    Early spans have large features and few weights; late spans have the reverse. So it pays to cut
    them differently. All dicts are by route. Element counts are normalised by the path's MAdds; one
    pass over them is the cost of one cut.

    Args:
        section: Integer.
        layers: List of the convolutions, except those that see the width before.
        weights: Number of weights of the kernels.
        outputs: Number of elements of their outputs.
        inputs: Number of elements of the first one's input.
        entry_weights: Number of weights of the convolutions that see the width before. Empty
            where the span does not begin with such.
        entry_outputs: Number of elements of the outputs of these.
    """

    section: int
    layers: list = dataclasses.field(default_factory=list)
    weights: dict = dataclasses.field(default_factory=dict)
    outputs: dict = dataclasses.field(default_factory=dict)
    inputs: dict = dataclasses.field(default_factory=dict)
    entry_weights: dict = dataclasses.field(default_factory=dict)
    entry_outputs: dict = dataclasses.field(default_factory=dict)

    def choices(self, routes: Sequence[int]) -> list[tuple[dict, bool]]:
        """Returns pairs: group ends of all routes, and whether the entry has the finest ones."""
        steps = [self.weights[routes[0]], *self.weights.values()]
        costs = [len(routes) / max(1, step) * 2.0**-k for step in steps for k in range(6)]
        options = [whole(routes), finest(routes)]
        options += [cheapest_group_ends(self.weights, cost) for cost in costs]
        unique = {tuple(ends.values()): ends for ends in options}.values()
        return [(ends, fine) for ends in unique for fine in (False, True)[: 1 + self.has_entry]]

    @property
    def has_entry(self) -> bool:
        """Whether the span begins with convolutions that see the width before."""
        return bool(self.entry_weights)

    def cost(self, group_ends: Mapping) -> float:
        """Returns the cost of cutting the kernels: a pass over the outputs for each cut."""
        return sum((len(ends) - 1) * self.outputs[route] for route, ends in group_ends.items())

    def regroup_cost(self, before: Mapping, group_ends: Mapping) -> float:
        """Returns the cost of taking features with the group ends of the span before."""
        changed = [route for route, ends in group_ends.items() if ends != before[route]]
        return sum(self.inputs[route] for route in changed)

    def entry_cost(self, before: Mapping, group_ends: Mapping, is_fine: bool) -> float:
        """Returns the cost of the entry: a partial sum per cut before it, and a concatenation."""
        sums = sum(len(ends) - 1 for ends in before.values()) / len(before)
        cost = 0.0
        for place, (route, ends) in enumerate(group_ends.items()):
            joins = is_fine and len(ends) < place + 1
            cost += (sums + 0.4 * joins) * self.entry_outputs[route]
        return cost

    def entry_stored(self, before: Mapping, group_ends: Mapping, is_fine: bool) -> float:
        """Returns the weights of the entry: every input group with every output group."""
        widest = self.entry_weights[list(group_ends)[-1]]
        return widest * stored_share(before) * (1.0 if is_fine else stored_share(group_ends))


@dataclasses.dataclass(frozen=True)
class Survey:
    """The convolutions of a network after the first gate, measured on every route.

    Args:
        spans: List of the `Span`s after the first gate, in the order in which they run.
        entry_layers: Dict from section to its first convolutions, where they see the width before.
        pooled_layers: Dict from section to the layers of `SectionPlan.pooled_layers`.
        parameters: Integer, the parameters of the widest path.
        copied: Integer, the weights after the first gate that are stored for every route in
            addition to the widest: the depthwise kernels that routes do not share, and the biases
            and ratios where batch norm is folded.
    """

    spans: list
    entry_layers: dict
    pooled_layers: dict
    parameters: int
    copied: int


def survey_network(
    network: DynamicSlimmableNetwork, routes: Sequence[int], shape: Sequence[int]
) -> Survey:
    """Walks every route through a network once and returns a `Survey`.

    Args:
        network: `DynamicSlimmableNetwork`.
        routes: Tuple of candidate widths, ascending.
        shape: `(height, width, 3)`.
    """
    sections = dict(enumerate(network.sections))
    static_layers = frozenset(task_of(network).static_layers)
    entry_layers = {
        section: tuple(step.layer for step in entry_steps(steps)) if section > 1 else ()
        for section, steps in sections.items()
    }
    spans: dict = {section: {} for section in sections if section}
    pooled_layers: dict = {}
    copied = 0
    for route in routes:
        path = (0, *(route,) * network.num_gates)
        counter, state = _SurveyCounter(Path(path, path), static_layers), shape
        for section in sections:
            counter.start_section()
            state = network.run_steps(counter, section, state)
            pooled_layers[section] = tuple(counter.pooled)
            if section:
                _add_convs(spans[section], section, counter.convs, entry_layers[section], route)
                copied += counter.copied if route != routes[-1] else 0
        madds = counter.madds + counter.pooling
        for span in _all_spans(spans):
            for elements in (span.outputs, span.inputs, span.entry_outputs):
                if route in elements:
                    elements[route] /= madds
    return Survey(_all_spans(spans), entry_layers, pooled_layers, counter.parameters, copied)


def _all_spans(spans):
    return [span for of_section in spans.values() for span in of_section.values()]


def _add_convs(spans, section, convs, entry_layers, route):
    """Adds a route's convolutions in a section to its spans, a dict by the size of the outputs."""
    first = [conv for conv in convs if conv.layer in entry_layers]
    rest = [conv for conv in convs if conv.layer not in entry_layers]
    # A section that is only an entry has a span without convolutions.
    for size in dict.fromkeys([conv.outputs[:2] for conv in rest] or [None]):
        same_size = [conv for conv in rest if conv.outputs[:2] == size]
        span = spans.setdefault(size, Span(section))
        span.layers = [conv.layer for conv in same_size]
        span.weights[route], span.outputs[route] = _totals(same_size)
        span.inputs[route] = math.prod(same_size[0].inputs) if same_size else 0
    if first:
        span = next(iter(spans.values()))
        span.entry_weights[route], span.entry_outputs[route] = _totals(first)


def _totals(convs):
    """Returns the number of weights of convolutions, and of elements of their outputs."""
    return sum(conv.weights for conv in convs), sum(math.prod(conv.outputs) for conv in convs)


@dataclasses.dataclass(frozen=True)
class _Conv:
    """A convolution on a route: its layer, its number of weights, and the shapes around it."""

    layer: Any
    weights: int
    inputs: tuple
    outputs: tuple


class _SurveyCounter(CostCounter):
    """Counts the costs of a route and collects the layers of each section on the way.

    Args:
        path: `Path`.
        static_layers: Set of the convolutions whose channels are the same at every width.

    Attributes:
        convs: List of the `_Conv`s of the current section.
        pooled: List of the current section's layers on pooled features, and of its static layers.
        copied: Integer, number of weights of the current section that no two routes share.
    """

    def __init__(self, path, static_layers):
        super().__init__(path)
        self._static_layers = static_layers

    def start_section(self):
        self.convs, self.pooled, self.copied = [], [], 0

    def conv(self, step, shape):
        before = self.parameters
        result = super().conv(step, shape)
        if step.layer in self._static_layers:
            self.pooled.append(step.layer)
            return result
        self.convs.append(_Conv(step.layer, self.parameters - before, shape, result))
        return result

    def depthwise(self, step, shape):
        before = self.parameters
        result = super().depthwise(step, shape)
        if not shares_depthwise(step.layer, shape[:2]):
            self.copied += self.parameters - before
        return result

    def norm(self, step, shape):
        # Group norm has the same variables at every width.
        if step.is_batch_norm:
            self.copied += 2 * shape[2]
        return super().norm(step, shape)

    def gate(self, step, shape):
        self.pooled.append(step.layer)
        return super().gate(step, shape)

    def dense(self, step, shape):
        self.pooled.append(step.layer)
        return super().dense(step, shape)
