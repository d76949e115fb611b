"""Figures of Matplotlib that leave the process of the user as it is."""

import os
import pathlib
from typing import Any

from keras_dsnet.utils.atomic_file import atomic_file

_DOTS_PER_INCH = 160


def new_figure(width: float, height: float) -> Any:
    """Returns an empty `matplotlib.figure.Figure`.

    Args:
        width: Float, in inches.
        height: Float, in inches.
    """
    # Not pyplot, which would choose a backend for the user's whole process. Imported here to keep
    # `import keras_dsnet` fast.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: str | os.PathLike) -> Any:
    """Writes a figure to an image file, whose suffix is the format, and returns the figure.

    The folder is made if it does not exist.
    """
    path = pathlib.Path(path)
    for text in _texts(figure):
        # The name of a class or of a data set is no formula, even if it holds two "$".
        text.set_parse_math(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, "wb") as file:
        figure.savefig(file, format=path.suffix.lstrip(".") or "png", dpi=_DOTS_PER_INCH)
    return figure


def _texts(figure):
    """Yields the titles, the notes and the lines of the legends of a figure."""
    yield from figure.texts
    legends = [*figure.legends]
    for axes in figure.axes:
        yield axes.title
        yield from axes.texts
        legends += [axes.get_legend()] if axes.get_legend() else []
    for legend in legends:
        yield from legend.get_texts()
