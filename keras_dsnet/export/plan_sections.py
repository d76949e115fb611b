"""Where the kernels of every section of a routed file are cut."""

from keras_dsnet.export.plan_cuts import plan_cuts
from keras_dsnet.models.cost_counter import CostCounter
from keras_dsnet.models.path import Path


def plan_sections(network, routes, shape, layout, integer=False):
    """Chooses the cuts of every route behind every gate; see `plan_cuts`.

    Args:
        network: a `DynamicSlimmableNetwork`.
        routes: tuple of widths.
        shape: `(height, width, 3)`.
        layout: "shared" or "fast".
        integer: bool: for an int8 file.

    Returns:
        Tuple with a dict from route to its cuts for each gate.
    """
    if network.num_gates == 1:
        parameters = {route: network.costs(route, shape).parameters for route in routes}
        return (plan_cuts(parameters, layout, integer),)
    return tuple(
        plan_cuts(parameters, layout, integer) for parameters in _parameters(network, routes, shape)
    )


def cuts_of(cuts, path):
    """Returns the cuts on a path for a report: a list; with several gates one for each of them."""
    own = [list(section[width]) for section, width in zip(cuts, path)]
    return own[0] if len(own) == 1 else own


def _parameters(network, routes, shape):
    """Returns for each gate how many weights each route runs between it and the next."""
    tables = [{} for _ in range(network.num_gates)]
    for route in routes:
        path = (0, *(route,) * network.num_gates)
        counter, size = CostCounter(Path(path, path)), shape
        for section, steps in enumerate(network.sections):
            before = counter.parameters
            size = counter.run(steps, size)
            if section:
                tables[section - 1][route] = counter.parameters - before
    return tables
