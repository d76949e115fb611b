"""Times functions against each other: they take turns, so that a slow minute slows all of them."""

import statistics
import time


def milliseconds(run, count):
    """Returns the mean time of `count` calls of a function without arguments."""
    start = time.perf_counter()
    for _ in range(count):
        run()
    return 1e3 * (time.perf_counter() - start) / count


def take_turns(runs, rounds, seconds_per_turn=0.0, warm_up=2, measure=milliseconds):
    """Runs functions in turn and returns what a call took in each round.

    Args:
        runs: dict of functions without arguments, by name; or of whatever `measure` takes.
        rounds: int.
        seconds_per_turn: about how long each runs before it is the next one's turn; 0: one call.
        warm_up: int, calls of each beforehand, which trace and allocate.
        measure: function of one of `runs` and a number of calls; returns the mean milliseconds.

    Returns:
        Dict from name to the mean milliseconds of a call in every round.
    """
    counts = {}
    for name, run in runs.items():
        measure(run, warm_up)
        once = measure(run, warm_up) if seconds_per_turn else float("inf")
        counts[name] = max(1, round(1e3 * seconds_per_turn / once))
    times = {name: [] for name in runs}
    order = list(runs)
    for _ in range(rounds):
        for name in order:
            times[name].append(measure(runs[name], counts[name]))
        # None is always the one that follows the largest.
        order.append(order.pop(0))
    return times


def low_and_middle(times):
    """Returns minimum and median of times."""
    return min(times), statistics.median(times)


def ratios(times, base):
    """Returns the ratio of the minima, and the median of the rounds' ratios."""
    return min(times) / min(base), statistics.median(a / b for a, b in zip(times, base))
