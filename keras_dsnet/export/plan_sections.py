"""Where the kernels of every section of a routed file are cut."""

import dataclasses
import itertools

from keras_dsnet.export.plan_cuts import finest, folded_rows, stored_weights
from keras_dsnet.export.span import copied_weights, find_spans
from keras_dsnet.models.topology import walk

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
