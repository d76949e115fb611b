"""The spans of a network: layers that are cut alike, and what cutting them costs."""

import dataclasses
import math

from keras_dsnet.export.plan_cuts import (
    cheapest_cuts,
    finest,
    shares_depthwise,
    stored_share,
    whole,
)
from keras_dsnet.models.cost_counter import CostCounter
from keras_dsnet.models.path import Path
from keras_dsnet.models.topology import entry_steps


@dataclasses.dataclass
class Span:
    """The convolutions of a section whose outputs have one height and width.

    Early spans have large features and few weights, late ones the reverse, so that it pays to cut
    them differently. All dicts are by route. Elements are for each multiply-add of the whole path:
    a pass over them is what a cut costs.

    Args:
        section: int.
        layers: the convolutions, but for those of the section's entry.
        weights: of the kernels.
        outputs: elements that the kernels give.
        inputs: elements that the first of them takes.
        entry_weights: of the convolutions that see the width before; empty: there are none here.
        entry_outputs: elements that those give.
    """

    section: int
    layers: list = dataclasses.field(default_factory=list)
    weights: dict = dataclasses.field(default_factory=dict)
    outputs: dict = dataclasses.field(default_factory=dict)
    inputs: dict = dataclasses.field(default_factory=dict)
    entry_weights: dict = dataclasses.field(default_factory=dict)
    entry_outputs: dict = dataclasses.field(default_factory=dict)

    def choices(self, routes):
        """Returns pairs: cuts of all routes, and whether the entry's outputs are cut finely."""
        steps = [self.weights[routes[0]], *self.weights.values()]
        prices = [len(routes) / max(1, step) * 2.0**-k for step in steps for k in range(6)]
        plans = [whole(routes), finest(routes)]
        plans += [cheapest_cuts(self.weights, price) for price in prices]
        unique = {tuple(plan.values()): plan for plan in plans}.values()
        return [(plan, fine) for plan in unique for fine in (False, True)[: 1 + self.has_entry]]

    @property
    def has_entry(self):
        """Whether the span begins with convolutions that see the width before."""
        return bool(self.entry_weights)

    def cost(self, plan):
        """Returns what the cuts cost: a pass over the outputs for each one."""
        return sum((len(own) - 1) * self.outputs[route] for route, own in plan.items())

    def regroup_cost(self, before, plan):
        """Returns what it costs to take features whose cuts are those of the span before."""
        return sum(self.inputs[route] for route, own in plan.items() if own != before[route])

    def entry_cost(self, before, plan, fine):
        """Returns what the entry costs: a partial sum for each cut before, and a concatenation."""
        sums = sum(len(own) - 1 for own in before.values()) / len(before)
        cost = 0.0
        for place, (route, own) in enumerate(plan.items()):
            joins = fine and len(own) < place + 1
            cost += (sums + 0.4 * joins) * self.entry_outputs[route]
        return cost

    def entry_stored(self, before, plan, fine):
        """Returns the weights of the entry: every group before with every group behind."""
        widest = self.entry_weights[list(plan)[-1]]
        return widest * stored_share(before) * (1.0 if fine else stored_share(plan))


def find_spans(network, routes, shape):
    """Returns the `Span`s behind the first gate, in the order in which they run.

    Args:
        network: a `DynamicSlimmableNetwork`.
        routes: tuple of widths.
        shape: `(height, width, 3)`.
    """
    entries = {step.layer for steps in network.sections[2:] for step in entry_steps(steps)}
    spans = {}
    for route in routes:
        path = (0, *(route,) * network.num_gates)
        counter, size = _ConvCounter(Path(path, path)), shape
        for section, steps in enumerate(network.sections):
            counter.convs.clear()
            size = counter.run(steps, size)
            if section:
                own = spans.setdefault(section, {})
                _add_convs(own, section, counter.convs, entries, route)
    found = [span for own in spans.values() for span in own.values()]
    for span in found:
        for elements in (span.outputs, span.inputs, span.entry_outputs):
            for route in elements:
                elements[route] /= network.madds(route, shape)
    return found


def _add_convs(spans, section, convs, entries, route):
    """Adds what one route has in a section to its spans, a dict by the size of the outputs."""
    first = [conv for conv in convs if conv[0] in entries]
    rest = [conv for conv in convs if conv[0] not in entries]
    # A section of an entry alone is a span of no convolutions.
    for size in dict.fromkeys([outputs[:2] for _, _, _, outputs in rest] or [None]):
        own = [conv for conv in rest if conv[-1][:2] == size]
        span = spans.setdefault(size, Span(section))
        span.layers = [layer for layer, *_ in own]
        span.weights[route], span.outputs[route] = _totals(own)
        span.inputs[route] = math.prod(own[0][2]) if own else 0
    if first:
        span = next(iter(spans.values()))
        span.entry_weights[route], span.entry_outputs[route] = _totals(first)


def _totals(convs):
    """Returns the weights of convolutions and the elements that they give."""
    return sum(conv[1] for conv in convs), sum(math.prod(conv[-1]) for conv in convs)


def copied_weights(network, routes, shape):
    """Returns how many weights behind the first gate are there for every route but the widest.

    These are the kernels of depthwise convolutions that routes do not share, and, where batch norm
    is folded, the biases and the ratios.

    Args:
        network: a `DynamicSlimmableNetwork`.
        routes: tuple of widths.
        shape: `(height, width, 3)`.
    """
    total = 0
    for route in routes[:-1]:
        path = (0, *(route,) * network.num_gates)
        counter, size = _ConvCounter(Path(path, path)), shape
        for section, steps in enumerate(network.sections):
            before = counter.copied
            size = counter.run(steps, size)
            total += (counter.copied - before) * (section > 0)
    return total


class _ConvCounter(CostCounter):
    """Keeps for each convolution its layer, its weights, and the shapes that it takes and gives.

    Attributes:
        convs: list of those.
        copied: weights that no two routes share.
    """

    def __init__(self, path):
        super().__init__(path)
        self.convs, self.copied = [], 0

    def conv(self, step, shape):
        before = self.parameters
        result = super().conv(step, shape)
        self.convs.append((step.layer, self.parameters - before, shape, result))
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
