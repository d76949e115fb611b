"""The parsers of the values of flags. Nothing here imports TensorFlow."""

import math
import pathlib

from absl import flags


class PathParser(flags.ArgumentParser):
    """A path of the file system."""

    syntactic_help = "a path; ~ is the home folder"

    def parse(self, argument):
        # Shells do not expand the ~ in --name=~/folder.
        if not argument.startswith("~"):
            return argument
        try:
            return str(pathlib.Path(argument).expanduser())
        except RuntimeError:
            raise ValueError("must be a path; there is no such home folder") from None


class NumberParser(flags.FloatParser):
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


class ItemsParser(flags.ArgumentParser):
    """A list of items separated by commas; `convert` parses an item, `check` accepts the list."""

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


class NetworkPathParser(flags.ArgumentParser):
    """A path through a network, in the form that a call of the network takes."""

    NAMES = ("slimmest", "widest", "largest")
    syntactic_help = "slimmest, widest, largest, a width, or one width per gate such as 0,2,1"

    def parse(self, argument):
        if argument in self.NAMES or not isinstance(argument, str):
            return argument
        try:
            widths = tuple(whole(width.strip()) for width in argument.split(","))
        except ValueError:
            raise ValueError(f"must be {self.syntactic_help}") from None
        return widths if len(widths) > 1 else widths[0]


def whole(text):
    if not text.isdecimal():
        raise ValueError(text)
    return int(text)


def ascends(items):
    return all(a < b for a, b in zip(items, items[1:]))
