"""Decides where the kernels of every section of a routed file are cut.

Cuts are a dict from route to an ascending tuple of routes that ends with the route itself: where
the channel groups of the route end. A route shares the blocks of the route that its cuts extend
and stores the rest separately.
"""

import dataclasses
import itertools
import math

from keras_dsnet.models.costs import CostCounter
from keras_dsnet.models.path import Path
from keras_dsnet.models.topology import entry_steps, walk

LAYOUTS = ("shared", "fast")
# Weights that a file of one gate may hold more than once, over those of the widest route. In int8
# each partial sum is rounded and added by an operator of its own, which costs time and digits.
SPARE_PER_ROUTE = 0.016
SPARE_IN_INT8 = 0.2
# Weights of a file with several gates, over those of the widest path alone.
LIMITS = {"shared": 1.06, "fast": 1.96}
_TRIALS = 40


@dataclasses.dataclass(frozen=True)
class SectionPlan:
    """How the kernels behind one gate are cut; see `plan_cuts`.

    Args:
        cuts: for every `Span` of the section a dict from route to its cuts.
        layers: for every span its convolutions.
        entry: dict from route to the cuts of the outputs of the section's first convolutions, which
            the width before multiplies.
        vectors: dict from route to the cuts of what layers on pooled features take, which cost
            nothing.
    """

    cuts: tuple
    layers: tuple
    entry: dict
    vectors: dict

    def of_layers(self, steps, route, entry=False):
        """Returns a dict from layer to its cuts, as `BlockExecutor` takes it.

        Args:
            steps: of the section.
            route: int.
            entry: bool: the section's first convolutions are run, not the rest.
        """
        return {layer: cuts[route] for layer, cuts in self._by_layer(steps, entry).items()}

    def rows_of_layers(self, steps, route, entry=False):
        """Returns a dict from layer to whose statistics its groups are folded with, likewise."""
        layers = self._by_layer(steps, entry)
        return {layer: folded_rows(cuts, route) for layer, cuts in layers.items()}

    def _by_layer(self, steps, entry):
        """Returns a dict from layer to the cuts of all routes."""
        outputs = self.entry if entry else self.cuts[0]
        found = {}
        by_kind = {"conv": outputs, "gate": self.vectors, "dense": self.vectors}
        for step in walk(steps):
            if step.kind in by_kind:
                found[step.layer] = by_kind[step.kind]
        for layers, cuts in zip(self.layers, self.cuts):
            found |= dict.fromkeys(layers, cuts)
        return found


def plan_sections(network, routes, shape, layout, integer=False):
    """Chooses the cuts of every route behind every gate.

    A cut costs the more, the larger the features that partial sums are made of, against all that
    the path does. The plan is the cheapest of those that hold no more weights than the layout may:
    "fast" with one gate has no limit, and no cut.

    Args:
        network: a `DynamicSlimmableNetwork`.
        routes: tuple of widths.
        shape: `(height, width, 3)`.
        layout: "shared" or "fast".
        integer: bool: for an int8 file.

    Returns:
        Tuple with a `SectionPlan` for each gate.
    """
    spans = find_spans(network, routes, shape)
    total = network.costs(routes[-1], shape).parameters
    cut = sum(
        own.get(routes[-1], 0) for span in spans for own in (span.weights, span.entry_weights)
    )
    limit = _limit(network, routes, shape, layout, integer) * total - (total - cut)
    low, high = 0.0, 1.0 / total
    while _cheapest(spans, routes, high)[1] > limit and high < 1:
        high *= 4
    best = _cheapest(spans, routes, high)[0]
    for _ in range(_TRIALS):
        price = (low + high) / 2
        plans, stored = _cheapest(spans, routes, price)
        if stored <= limit:
            best, high = plans, price
        else:
            low = price
    return _by_sections(spans, best, routes)


def cuts_of(plans, path):
    """Returns the cuts on a path for a report: a list for each span, section by section."""
    return [list(cuts[width]) for plan, width in zip(plans, path) for cuts in plan.cuts]


def _limit(network, routes, shape, layout, integer):
    """Returns how many weights a file may hold, for each one of the widest path alone."""
    if network.num_gates > 1:
        return LIMITS[layout]
    if layout == "fast":
        return len(routes)
    if integer:
        return 1 + SPARE_IN_INT8
    copied = copied_weights(network, routes, shape) / network.costs(routes[-1], shape).parameters
    return 1 + max(0.0, SPARE_PER_ROUTE * (len(routes) - 1) - copied)


def _by_sections(spans, chosen, routes):
    """Returns a `SectionPlan` for each section."""
    plans = []
    pairs = zip(spans, chosen)
    for _, own in itertools.groupby(pairs, lambda pair: pair[0].section):
        own = list(own)
        cuts = tuple(plan for _, (plan, _) in own)
        layers = tuple(tuple(span.layers) for span, _ in own)
        entry = finest(routes) if own[0][1][1] else cuts[0]
        plans.append(SectionPlan(cuts, layers, entry, finest(routes)))
    return tuple(plans)


def _cheapest(spans, routes, price):
    """Returns the plan of least cost, where a weight costs `price`, and the weights it stores.

    What a span costs depends on its own cuts and on those before: the best plan up to each choice
    of one span is found from those up to the span before.
    """
    reached = {None: (0.0, 0.0, ())}
    section = 0
    for span in spans:
        following = {}
        for index, (plan, fine) in enumerate(span.choices(routes)):
            own_cost, own_stored = span.cost(plan), stored_weights(span.weights, plan)
            candidates = []
            for total, stored, chosen in reached.values():
                cost, kept = own_cost, own_stored
                if span.has_entry:
                    before = chosen[-1][0]
                    cost += span.entry_cost(before, plan, fine)
                    kept += span.entry_stored(before, plan, fine)
                elif span.section == section:
                    cost += span.regroup_cost(chosen[-1][0], plan)
                candidates.append(
                    (total + cost + price * kept, stored + kept, (*chosen, (plan, fine)))
                )
            following[index] = min(candidates, key=lambda candidate: candidate[0])
        reached, section = following, span.section
    _, stored, chosen = min(reached.values(), key=lambda candidate: candidate[0])
    return chosen, stored


# The most pixels of a depthwise convolution's output, for each weight of a channel, at which routes
# share its kernel.
PIXELS_PER_WEIGHT = 6


def whole(routes):
    """Returns the cuts with which every route has whole kernels of its own."""
    return {route: (route,) for route in routes}


def finest(routes):
    """Returns the cuts with which every weight is there once: each route extends the one before."""
    return {route: tuple(routes[: place + 1]) for place, route in enumerate(routes)}


def cheapest_cuts(weights, price):
    """Returns for every route the cuts that cost least: one per cut, `price` per stored weight.

    Args:
        weights: dict from route to the number of weights that it runs, ascending.
        price: float.
    """
    plan = {}
    for route, own in weights.items():
        options = [((), 0), *((plan[other], weights[other]) for other in plan)]
        cost = [len(cuts) + price * (own - shared) for cuts, shared in options]
        # Among equals the one that shares most.
        best = min(range(len(options)), key=lambda index: (cost[index], -index))
        plan[route] = (*options[best][0], route)
    return plan


def stored_weights(weights, cuts):
    """Returns how many weights a file with these cuts holds; the weights as `cheapest_cuts`."""
    kept = set(cuts.values())
    kept |= {own[:end] for own in kept for end in range(1, len(own))}
    return sum(weights[own[-1]] - (weights[own[-2]] if len(own) > 1 else 0) for own in kept)


def folded_rows(cuts, route):
    """Returns for each group of a route the route whose statistics it is folded with: a tuple.

    Of the routes that share a group, all but one multiply it with a ratio. The widest have the most
    groups, so the second widest is spared; of two the narrowest, which has the least time.
    """
    rows = []
    for end in range(1, len(cuts[route]) + 1):
        sharing = [other for other, own in cuts.items() if own[:end] == cuts[route][:end]]
        rows.append(sharing[-2] if len(sharing) > 1 else route)
    return tuple(rows)


def stored_share(cuts):
    """Returns how many channels the groups of all routes have, for each one of the widest.

    Widths are taken for equispaced, which is near enough for a plan.
    """
    channels = {route: place + 1 for place, route in enumerate(cuts)}
    groups = {pair for own in cuts.values() for pair in itertools.pairwise((None, *own))}
    total = sum(channels[end] - channels.get(start, 0) for start, end in groups)
    return total / len(channels)


def shares_depthwise(layer, size):
    """Returns whether routes share the kernel of a depthwise convolution in a float file.

    Its outputs are then multiplied with the ratio of the routes' batch norms, which costs a pass
    over them; most of these kernels are small enough to be there once per route instead.

    Args:
        layer: a `SlicedDepthwiseConv2D`.
        size: height and width of its input.
    """
    pixels = size[0] * size[1] / layer.strides**2
    return pixels < PIXELS_PER_WEIGHT * layer.kernel_size**2


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
