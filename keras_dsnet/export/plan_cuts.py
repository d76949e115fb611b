"""Where the kernels of a routed file are cut."""

# Weights that a file may hold twice, over those of the widest route. Partial sums cost little in
# float: a little more than nothing for every route after the first. In int8 each is rounded and
# added by an operator of its own, which costs time and digits.
SPARE_PER_ROUTE = 0.008
SPARE_IN_INT8 = 0.2
LAYOUTS = ("shared", "fast")
_TRIALS = 60


def plan_cuts(parameters, layout, integer=False):
    """Chooses the cuts of every route; see `BlockExecutor`.

    A route shares the blocks of the route that its cuts extend, and has the rest for itself. In the
    layout "fast" no route is cut and each has kernels of its own. In the layout "shared" routes are
    cut as little as the spare weights allow: with none to spare, every route extends the one before
    it and each weight is there once.

    Args:
        parameters: dict from route to the number of weights that it runs, ascending.
        layout: "shared" or "fast".
        integer: bool: for an int8 file, which may spare more.

    Returns:
        Dict from route to its cuts: ascending tuple of routes that ends with the route.
    """
    routes = list(parameters)
    if layout == "fast":
        return {route: (route,) for route in routes}
    spare = SPARE_IN_INT8 if integer else SPARE_PER_ROUTE * (len(routes) - 1)
    limit = (1 + spare) * parameters[routes[-1]]
    # The price of a weight in cuts: the least price whose plan fits, between none and one at which
    # every route extends the one before it.
    low, high = 0.0, len(routes) / min(_steps(parameters))
    best = cheapest_cuts(parameters, high)
    for _ in range(_TRIALS):
        price = (low + high) / 2
        plan = cheapest_cuts(parameters, price)
        if stored_weights(parameters, plan) <= limit:
            best, high = plan, price
        else:
            low = price
    return best


def stored_weights(parameters, cuts):
    """Returns how many weights a file with these cuts holds."""
    kept = set(cuts.values())
    kept |= {own[:end] for own in kept for end in range(1, len(own))}
    return sum(parameters[own[-1]] - (parameters[own[-2]] if len(own) > 1 else 0) for own in kept)


def cheapest_cuts(parameters, price):
    """Returns for every route the cuts that cost least: one per cut, `price` per stored weight."""
    plan = {}
    for route, weights in parameters.items():
        options = [((), 0), *((plan[other], parameters[other]) for other in plan)]
        cost = [len(own) + price * (weights - shared) for own, shared in options]
        # Among equals the one that shares most.
        best = min(range(len(options)), key=lambda index: (cost[index], -index))
        plan[route] = (*options[best][0], route)
    return plan


def _steps(parameters):
    """Returns how many weights each route adds to the one before it, the first to none."""
    weights = list(parameters.values())
    return [b - a for a, b in zip([0, *weights], weights)]
