"""Where the kernels of one span of layers can be cut, and what is stored then.

Cuts are a dict from route to an ascending tuple of routes that ends with the route itself: where
the channel groups of the route end. A route shares the blocks of the route that its cuts extend,
and has the rest for itself.
"""

import itertools

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
