"""The layers of a section that see the width before it, and the rest."""


def enter(executor, steps, x):
    """Runs the convolutions that a section begins with.

    A gate stands before a convolution, or before a residual block whose branch and shortcut begin
    with one: only these see how many channels there were before the gate.

    Args:
        executor: a `BlockExecutor`.
        steps: of the section.
        x: the groups of its input.

    Returns:
        The groups of all that the rest of the section needs: those of the shortcut last.
    """
    first = steps[0]
    if first.kind == "conv":
        return executor.run_first(steps, x)
    return (*executor.run_first(first.branch, x), *executor.run_first(first.shortcut, x))


def leave(executor, steps, x):
    """Runs the rest of a section, from what `enter` gives."""
    first = steps[0]
    if first.kind == "conv":
        return executor.run(steps[1:], x)
    groups = executor.groups(first.branch[0])
    branch = executor.run(first.branch[1:], x[:groups])
    shortcut = executor.run(first.shortcut[1:], x[groups:])
    return executor.run(steps[1:], executor.add(first, branch, shortcut))
