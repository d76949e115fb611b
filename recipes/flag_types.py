"""Flags whose values are checked as they are parsed, before TensorFlow is loaded."""

import math
import pathlib

from absl import flags

# The flags belong to the modules that define them, not to this one.
flags.disclaim_key_flags()


class _Path(flags.ArgumentParser):
    syntactic_help = "a path; ~ is the home folder"

    def parse(self, argument):
        # Shells leave the ~ of --name=~/folder as it is.
        if not argument.startswith("~"):
            return argument
        try:
            return str(pathlib.Path(argument).expanduser())
        except RuntimeError:
            raise ValueError("must be a path; there is no such home folder") from None


class _Number(flags.FloatParser):
    """A finite number between bounds, each of which may be excluded."""

    def __init__(self, low, high, above, below):
        super().__init__()
        self._bounds = ((low, ">="), (high, "<="), (above, ">"), (below, "<"))
        bounds = [f"{sign} {bound:g}" for bound, sign in self._bounds if bound is not None]
        self.syntactic_help = f"a finite number {' and '.join(bounds)}".rstrip()

    def convert(self, argument):
        value = super().convert(argument)
        low, high, above, below = (bound for bound, _ in self._bounds)
        fits = (
            math.isfinite(value)
            and (low is None or value >= low)
            and (high is None or value <= high)
            and (above is None or value > above)
            and (below is None or value < below)
        )
        if not fits:
            raise ValueError(f"must be {self.syntactic_help}")
        return value


class _Items(flags.ArgumentParser):
    """A list separated by commas, of items that `convert` takes."""

    def __init__(self, convert, what, check):
        self.syntactic_help = what
        self._convert, self._check = convert, check

    def parse(self, argument):
        if isinstance(argument, (list, tuple)):
            return list(argument)
        try:
            items = [self._convert(item.strip()) for item in argument.split(",")]
        except ValueError:
            items = []
        if not items or not self._check(items):
            raise ValueError(f"must be {self.syntactic_help}")
        return items

    def flag_type(self):
        return "comma separated list"


def define_path(name, default, help, required=False):
    """Defines a flag that names a file or a folder; `~` becomes the home folder.

    Args:
        name: str.
        default: str or None.
        help: str.
        required: bool.
    """
    _define(_Path(), name, default, help, required)


def define_number(name, default, help, low=None, high=None, above=None, below=None):
    """Defines a flag that holds a finite number.

    Args:
        name: str.
        default: float or None.
        help: str.
        low: smallest value, or None.
        high: largest value, or None.
        above: a bound below all values, or None.
        below: a bound above all values, or None.
    """
    _define(_Number(low, high, above, below), name, default, help)


def define_widths(name, help):
    """Defines a list of widths, ascending, such as 0,4,8,13; the default is None.

    Args:
        name: str.
        help: str.
    """
    parser = _Items(_whole, "ascending widths such as 0,4,8,13", _ascends)
    _define(parser, name, None, help)


def define_strides(name, help):
    """Defines a list of strides, 1 or 2 each; the default is None.

    Args:
        name: str.
        help: str.
    """
    parser = _Items(_whole, "strides of 1 or 2 such as 1,1,2,1,2,2", lambda x: set(x) <= {1, 2})
    _define(parser, name, None, help)


def define_numbers(name, count, help):
    """Defines a list of finite numbers, 0 or more; the default is None.

    Args:
        name: str.
        count: int, how many numbers.
        help: str.
    """
    example = ",".join((["1", "0.5"] * count)[:count])
    parser = _Items(
        float,
        f"{count} finite numbers, 0 or more, such as {example}",
        lambda items: len(items) == count and all(0 <= item < math.inf for item in items),
    )
    _define(parser, name, None, help)


def define_paths_through(name, help):
    """Defines a list of paths through a network, such as 0,4,8,13 or 0-0-0-0,0-1-2-3.

    Args:
        name: str.
        help: str.
    """
    parser = _Items(
        lambda item: tuple(map(_whole, item.split("-"))),
        "paths such as 0,4,8,13, or of several gates 0-0-0-0,0-1-2-3",
        lambda items: len({len(item) for item in items}) == 1,
    )
    _define(parser, name, None, help)


class _OnePath(flags.ArgumentParser):
    NAMES = ("slimmest", "widest", "largest")
    syntactic_help = "slimmest, widest, largest, a width, or one width per gate such as 0,2,1"

    def parse(self, argument):
        if argument in self.NAMES or not isinstance(argument, str):
            return argument
        try:
            widths = tuple(_whole(width.strip()) for width in argument.split(","))
        except ValueError:
            raise ValueError(f"must be {self.syntactic_help}") from None
        return widths if len(widths) > 1 else widths[0]


def define_path_through(name, help):
    """Defines a path through a network as a call of the network takes it; the default is None.

    Args:
        name: str.
        help: str.
    """
    _define(_OnePath(), name, None, help)


def _define(parser, name, default, help, required=False):
    flags.DEFINE(parser, name, default, help, required=required)


def _whole(text):
    if not text.isdecimal():
        raise ValueError(text)
    return int(text)


def _ascends(items):
    return all(a < b for a, b in zip(items, items[1:]))
