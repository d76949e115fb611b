"""Times functions against each other: they take turns, so that a slow minute slows all of them."""

import itertools
import random
import statistics
import time


def milliseconds(run, count):
    """Returns the mean time of `count` calls of a function without arguments."""
    start = time.perf_counter()
    for _ in range(count):
        run()
    return 1e3 * (time.perf_counter() - start) / count


def take_turns(runs, rounds, seconds_per_turn=0.0, warm_up=2, measure=milliseconds, group=None):
    """Runs functions in turn and returns what a call took in each round.

    Every round has an order of its own, so that none always follows the same one.

    Args:
        runs: dict of functions without arguments, by name; or of whatever `measure` takes.
        rounds: int.
        seconds_per_turn: about how long each runs before it is the next one's turn; 0: one call.
        warm_up: int, calls of each beforehand, which trace and allocate.
        measure: function of one of `runs` and a number of calls; returns the mean milliseconds.
        group: function of a name; those for which it gives the same are compared with each other,
            and come one right after the other in every round. None: all are one group.

    Returns:
        Dict from name to the mean milliseconds of a call in every round.
    """
    counts = {}
    for name, run in runs.items():
        measure(run, warm_up)
        once = measure(run, warm_up) if seconds_per_turn else float("inf")
        counts[name] = max(1, round(1e3 * seconds_per_turn / once))
    times = {name: [] for name in runs}
    for _ in range(rounds):
        for name in _shuffled(runs, group):
            times[name].append(measure(runs[name], counts[name]))
    return times


def _shuffled(names, group):
    """Yields names in a random order that keeps those of a group together."""
    groups = {}
    for name in random.sample(list(names), len(names)):
        groups.setdefault(group and group(name), []).append(name)
    return itertools.chain.from_iterable(groups.values())


def low_and_middle(times):
    """Returns minimum and median of times."""
    return min(times), statistics.median(times)


def ratios(times, base):
    """Returns the ratio of the minima, and the median of the rounds' ratios."""
    return min(times) / min(base), statistics.median(a / b for a, b in zip(times, base))
