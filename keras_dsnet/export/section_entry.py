"""The layers of a section that see the width before it, and the rest."""


def enter(executor, steps, x):
    """Runs the convolutions that a section begins with.

    Args:
        executor: a `BlockExecutor`, whose cuts are those of the entry's outputs.
        steps: of the section.
        x: the groups of its input.

    Returns:
        The groups of all that the rest of the section needs: those of the shortcut last.
    """
    first = steps[0]
    branches = (first.branch, first.shortcut) if first.kind == "residual" else (steps,)
    return tuple(group for branch in branches for group in executor.run_first(branch, x))


def leave(executor, steps, x, groups):
    """Runs the rest of a section, from what `enter` gives.

    Args:
        executor: a `BlockExecutor`.
        steps: of the section.
        x: what `enter` gives.
        groups: int: how many groups each of its convolutions has.
    """
    first = steps[0]
    if first.kind != "residual":
        return _go_on(executor, steps, x)
    branch = _go_on(executor, first.branch, x[:groups])
    shortcut = _go_on(executor, first.shortcut, x[groups:])
    return executor.run(steps[1:], executor.add(first, branch, shortcut))


def _go_on(executor, steps, x):
    """Runs the steps behind a convolution; its norm still runs on the groups of the entry."""
    norms = 1 + (len(steps) > 1 and steps[1].kind == "norm")
    x = executor.run(steps[1:norms], x)
    return executor.run(steps[norms:], executor.regroup(steps[0], x))
