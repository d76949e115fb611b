"""Lists of names in messages, which show only a few of many."""

from collections.abc import Sequence


def first_names(names: Sequence[str], count: int = 3) -> str:
    """Returns the first names as text, such as `a, b, c, ...`.

    Args:
        names: Sequence of str.
        count: Int, number of names to show. Defaults to 3.
    """
    return ", ".join([*names[:count], *["..."] * (len(names) > count)])


def first_and_last_names(names: Sequence[str], count: int) -> str:
    """Returns the first names and the last one as text, such as `a, b, c, ..., z`.

    Args:
        names: Sequence of str.
        count: Int, number of words in the longest text, of which one is the dots.
    """
    if len(names) > count:
        names = [*names[: count - 2], "...", names[-1]]
    return ", ".join(names)
