"""Where the kernels of every section of a routed file are cut."""

import dataclasses
import itertools

from keras_dsnet.export.plan_cuts import cheapest_cuts, plan_cuts, stored_weights
from keras_dsnet.export.section_entry import entry_steps
from keras_dsnet.models.cost_counter import CostCounter
from keras_dsnet.models.path import Path

# Weights of a file with several gates, over those of the widest path alone.
LIMITS = {"shared": 1.06, "fast": 1.96}
_TRIALS = 40


@dataclasses.dataclass(frozen=True)
class SectionPlan:
    """How the kernels behind one gate are cut.

    Args:
        cuts: dict from route to its cuts; see `BlockExecutor`.
        entry: dict from route to the cuts of the outputs of the section's first convolutions, which
            the width before multiplies.
        vectors: dict from route to the cuts of layers that run on pooled features, which cost
            nothing.
    """

    cuts: dict
    entry: dict
    vectors: dict


def plan_sections(network, routes, shape, layout, integer=False):
    """Chooses the cuts of every route behind every gate.

    With one gate they are those of `plan_cuts`. With several, a cut costs the more, the larger the
    features that partial sums are made of, against all that the path does: early sections have
    large features and few weights, late ones the reverse. The plan is the cheapest of those that
    hold no more weights than the layout may.

    Args:
        network: a `DynamicSlimmableNetwork`.
        routes: tuple of widths.
        shape: `(height, width, 3)`.
        layout: "shared" or "fast".
        integer: bool: for an int8 file.

    Returns:
        Tuple with a `SectionPlan` for each gate.
    """
    if network.num_gates == 1:
        parameters = {route: network.costs(route, shape).parameters for route in routes}
        cuts = plan_cuts(parameters, layout, integer)
        return (SectionPlan(cuts, cuts, cuts),)
    sections = _count(network, routes, shape)
    total = network.costs(routes[-1], shape).parameters
    cut = sum(own.weights[routes[-1]] + own.entry_weights[routes[-1]] for own in sections)
    limit = LIMITS[layout] * total - (total - cut)
    low, high = 0.0, 1.0 / total
    while _cheapest(sections, routes, high)[1] > limit and high < 1:
        high *= 4
    best = _cheapest(sections, routes, high)[0]
    for _ in range(_TRIALS):
        price = (low + high) / 2
        plans, stored = _cheapest(sections, routes, price)
        if stored <= limit:
            best, high = plans, price
        else:
            low = price
    finest = _finest(routes)
    return tuple(SectionPlan(cuts, finest if fine else cuts, finest) for cuts, fine in best)


def cuts_of(plans, path):
    """Returns the cuts on a path for a report: a list; with several gates one for each of them."""
    own = [list(plan.cuts[width]) for plan, width in zip(plans, path)]
    return own[0] if len(own) == 1 else own


def _finest(routes):
    return {route: routes[: place + 1] for place, route in enumerate(routes)}


@dataclasses.dataclass
class _Section:
    """What a section has by width: weights of kernels, and the elements of what they give.

    Costs are in elements for each multiply-add of the whole path.
    """

    weights: dict
    outputs: dict
    entry_weights: dict
    entry_outputs: dict

    def choices(self, routes):
        """Returns pairs: cuts of all routes, and whether the entry's outputs are cut finely."""
        steps = [self.weights[routes[0]], *self.weights.values()]
        prices = [len(routes) / max(1, step) * 2.0**-k for step in steps for k in range(6)]
        plans = [{route: (route,) for route in routes}, _finest(routes)]
        plans += [cheapest_cuts(self.weights, price) for price in prices]
        unique = {tuple(plan.values()): plan for plan in plans}.values()
        return [(plan, fine) for plan in unique for fine in (False, True)]

    def cost(self, plan):
        """Returns what the cuts of the rest cost: a pass over its outputs for each one."""
        return sum((len(own) - 1) * self.outputs[route] for route, own in plan.items())

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
        routes = list(plan)
        widest = self.entry_weights[routes[-1]]
        behind = 1.0 if fine else _stored_share(plan)
        return widest * _stored_share(before) * behind


def _stored_share(plan):
    """Returns how many channels the groups of all routes have, for each one of the widest.

    Widths are taken for equispaced, which is near enough for a plan.
    """
    channels = {route: place + 1 for place, route in enumerate(plan)}
    groups = {pair for own in plan.values() for pair in itertools.pairwise((None, *own))}
    total = sum(channels[end] - channels.get(start, 0) for start, end in groups)
    return total / len(channels)


def _count(network, routes, shape):
    """Returns a `_Section` for each gate."""
    tables = [{} for _ in range(network.num_gates)]
    for route in routes:
        path = (0, *(route,) * network.num_gates)
        madds, size = network.madds(route, shape), shape
        for section, steps in enumerate(network.sections):
            entry, rest = _KernelCounter(Path(path, path)), _KernelCounter(Path(path, path))
            if section > 1:
                for step in entry_steps(steps):
                    entry.run((step,), size)
            size = rest.run(steps, size)
            if section:
                tables[section - 1][route] = (
                    rest.weights - entry.weights,
                    (rest.outputs - entry.outputs) / madds,
                    entry.weights,
                    entry.outputs / madds,
                )
    return [
        _Section(*({route: row[column] for route, row in table.items()} for column in range(4)))
        for table in tables
    ]


class _KernelCounter(CostCounter):
    """Counts the weights of convolutions, and the elements that they give."""

    def __init__(self, path):
        super().__init__(path)
        self.weights = self.outputs = 0

    def conv(self, step, shape):
        before = self.parameters
        shape = super().conv(step, shape)
        self.weights += self.parameters - before
        self.outputs += shape[0] * shape[1] * shape[2]
        return shape


def _cheapest(sections, routes, price):
    """Returns the plan of least cost, where a weight costs `price`, and the weights it stores.

    A section's entry depends on its own cuts and on those before: the best plan up to each choice
    of one section is found from those up to the section before.
    """
    reached = {None: (0.0, 0.0, ())}
    for section in sections:
        options = section.choices(routes)
        following = {}
        for index, (plan, fine) in enumerate(options):
            own_cost, own_stored = section.cost(plan), stored_weights(section.weights, plan)
            candidates = []
            for before, (total, stored, chosen) in reached.items():
                cost, kept = own_cost, own_stored
                if before is not None:
                    previous = chosen[-1][0]
                    cost += section.entry_cost(previous, plan, fine)
                    kept += section.entry_stored(previous, plan, fine)
                candidates.append(
                    (total + cost + price * kept, stored + kept, (*chosen, (plan, fine)))
                )
            following[index] = min(candidates, key=lambda candidate: candidate[0])
        reached = following
    _, stored, chosen = min(reached.values(), key=lambda candidate: candidate[0])
    return chosen, stored
