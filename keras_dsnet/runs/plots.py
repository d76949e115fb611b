"""The plots of a run, in the manner of the paper's figures."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_dsnet.runs.csv_log import EVALUATION_PREFIXES, read_log
from keras_dsnet.training.evaluation import OFF_ROUTE_ROWS
from keras_dsnet.utils.figures import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Nearly everybody can distinguish blue and vermilion (Okabe and Ito).
_STATIC_COLOR, _DYNAMIC_COLOR, _NEUTRAL_COLOR = "#0072B2", "#D55E00", "#555555"
_LOSS_COLORS = ("#000000", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_RHO = "\N{GREEK SMALL LETTER RHO}"
_WIDTH_MAP = "viridis"
# Marks of the rows of `evaluate_paths` that belong to no path of the routes, by name.
_MARKS = {
    "gate": {"color": "#CC79A7", "marker": "D", "markersize": 7},
    "confidence": {"color": "#009E73", "marker": "^", "markersize": 8},
    "gate+confidence": {"color": "#E69F00", "marker": "v", "markersize": 5},
    "dynamic": {"color": _DYNAMIC_COLOR, "marker": "*", "markersize": 15},
    "largest": {"color": _NEUTRAL_COLOR, "marker": "s", "markersize": 6},
}
_MEASURES = {"top1": "Top-1 accuracy (%)", "map": "Mean average precision (%)"}
# Fraction of a bar. Thinner parts have no room for text.
_SMALLEST_LABELLED_SHARE = 0.04


def plot_accuracy_against_madds(
    rows: Sequence[Mapping[str, Any]],
    path: str | os.PathLike,
    title: str | None = None,
    metric: str = "top1",
) -> "Figure":
    """Plots top-1 accuracy against MAdds, as Figs. 1 and 7 (left) of the paper.

    The static sub-networks form a line. The dynamic network and each routing are points, or several
    points, and a gate's curve is a thin line. The path "largest" is also a point, because its wider
    front does not belong to the line.

    Args:
        rows: List of dicts with "path", "madds", "top1" in [0, 1] and, for a path of one width,
            "rho", as `evaluate_paths` returns them.
        path: Path of the image file. Its suffix is the format.
        title: String, title of the plot. Optional.
        metric: String, the entry of the rows to plot: "top1", or "map" for the mean average
            precision of a detector. Defaults to "top1".

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: If there are no rows, or no such metric.

    Example:

    ```python
    import pathlib
    import tempfile
    from keras_dsnet.runs import plot_accuracy_against_madds

    rows = [
        {"path": 0, "madds": 150_000_000, "top1": 0.70, "rho": 0.35},
        {"path": 1, "madds": 560_000_000, "top1": 0.74, "rho": 1.25},
        {"path": "dynamic", "madds": 300_000_000, "top1": 0.73},
    ]
    plot_accuracy_against_madds(rows, pathlib.Path(tempfile.mkdtemp()) / "accuracy.png")
    ```
    """
    if not rows:
        raise ValueError(f"A plot of accuracy needs rows. Received: rows={rows}")
    if metric not in _MEASURES:
        raise ValueError(f"`metric` must be 'top1' or 'map'. Received: metric={metric!r}")
    rows = [{**row, "top1": row[metric]} for row in rows]
    figure = new_figure(6.4, 4.6)
    axes = figure.add_subplot(
        xlabel="Multiply-adds per image (M MAdds)", ylabel=_MEASURES[metric], title=title
    )
    static = [row for row in rows if row["path"] not in OFF_ROUTE_ROWS]
    static.sort(key=lambda row: row["madds"])
    line = {"color": _STATIC_COLOR, "marker": "o", "markersize": 5, "linewidth": 1.8}
    if static:
        axes.plot(*_points(static), **line, label="static sub-networks")
        for row, side in zip((static[0], static[-1]), ((0, -17), (0, 9))):
            if row.get("rho") is not None:
                _annotate(axes, row, f"{_RHO} = {row['rho']:.2f}", side, _STATIC_COLOR)
    for name, style in _MARKS.items():
        chosen = [row for row in rows if row["path"] == name]
        for row in chosen:
            if len(row.get("curve", ())) > 1:
                # The gate with other biases on its scores.
                curve = {"color": style["color"], "linewidth": 1, "zorder": 2}
                axes.plot(*_points(row["curve"]), **curve, label=f"{name} with a bias")
        if chosen:
            label = f"{name} network" if name == "dynamic" else name
            # The network by its own routing repeats the mark of that routing, which lies above it.
            level = 3 if name == "dynamic" else 4
            axes.plot(*_points(chosen), **style, linestyle="none", label=label, zorder=level)
    dynamic = [row for row in rows if row["path"] == "dynamic"]
    if len(dynamic) == 1:
        text = f"{100 * dynamic[0]['top1']:.1f} % at {dynamic[0]['madds'] / 1e6:.3g}M"
        _annotate(axes, dynamic[0], text, (0, 10), _DYNAMIC_COLOR)
    axes.margins(x=0.1, y=0.15)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return save_figure(figure, path)


def plot_confidence_curve(
    rows: Sequence[Mapping[str, Any]],
    path: str | os.PathLike,
    title: str | None = None,
    static: Sequence[Mapping[str, Any]] = (),
) -> "Figure":
    """Plots the accuracy of routing by confidence over that of the static widths.

    Args:
        rows: List of dicts of `keras_dsnet.training.calibrate_confidence`, the curve.
        path: Path of the image file. Its suffix is the format.
        title: String, title of the plot. Optional.
        static: List of dicts with "path", "madds" and "top1" of the static widths, such as rows of
            `evaluate_paths`. Defaults to the "line" of `rows`.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: If there are no rows.
    """
    if not rows:
        raise ValueError(f"A plot of a confidence curve needs rows. Received: rows={rows}")
    figure = new_figure(6.4, 4.6)
    axes = figure.add_subplot(
        xlabel="Mean multiply-adds per image (M MAdds)", ylabel="Top-1 accuracy (%)", title=title
    )
    rows = sorted(rows, key=lambda row: row["madds"])
    points = [row for row in static if row["path"] not in OFF_ROUTE_ROWS]
    points = sorted(points, key=lambda row: row["madds"]) or [
        {"madds": row["madds"], "top1": row["line"]} for row in rows
    ]
    marker = "o" if static else None
    line = {"color": _STATIC_COLOR, "marker": marker, "markersize": 5, "linewidth": 1.8}
    label = "static sub-networks" if static else "line between the steps"
    axes.plot(*_points(points), **line, label=label)
    color = _MARKS["confidence"]["color"]
    axes.plot(*_points(rows), color=color, linewidth=1.8, label="confidence")
    for row in rows:
        if row.get("chosen"):
            numbers = ", ".join(f"{threshold:.2f}" for threshold in row["thresholds"])
            text = f"threshold {numbers}: {100 * row['top1']:.1f} % at {row['madds'] / 1e6:.3g}M"
            axes.plot(*_points([row]), **_MARKS["dynamic"], linestyle="none", label=text)
    axes.margins(x=0.1, y=0.15)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return save_figure(figure, path)


def plot_reliability(
    confidence: Any,
    correct: Any,
    path: str | os.PathLike,
    title: str | None = None,
    bins: int = 10,
) -> "Figure":
    """Plots how often a network is right at each confidence, as a reliability diagram.

    Bars on the diagonal mean that the confidence is the probability of being right. Bars below it
    mean that the network is too sure.

    Args:
        confidence: `[images]`, the largest softmax probability of each image.
        correct: `[images]`, whether the network was right.
        path: Path of the image file. Its suffix is the format.
        title: String, title of the plot. Optional.
        bins: Int, number of intervals of the confidence.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: If there are no images, or their numbers differ.
    """
    values, right = np.asarray(confidence, "float64"), np.asarray(correct, "float64")
    if not values.size or values.shape != right.shape:
        raise ValueError(
            "A reliability diagram needs a confidence and a correctness of each image. "
            f"Received: shapes {values.shape} and {right.shape}"
        )
    edges = np.linspace(0, 1, bins + 1)
    index = np.clip(np.ceil(values * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    filled = counts > 0
    accuracy = np.bincount(index, right, bins)[filled] / counts[filled]
    mean = np.bincount(index, values, bins)[filled] / counts[filled]
    error = float(np.abs(accuracy - mean) @ counts[filled] / counts.sum())
    figure = new_figure(5.2, 5.4)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.bar(edges[:-1][filled], 100 * accuracy, 1 / bins, align="edge", edgecolor="white")
    axes.plot([0, 1], [0, 100], color=_NEUTRAL_COLOR, linestyle="--", linewidth=1)
    axes.text(0.03, 92, f"calibration error {100 * error:.1f} %", color=_NEUTRAL_COLOR)
    axes.set(ylabel="Top-1 accuracy (%)", ylim=(0, 100), xlim=(0, 1), title=title)
    below.bar(edges[:-1], 100 * counts / counts.sum(), 1 / bins, align="edge", edgecolor="white")
    below.set(xlabel="Confidence", ylabel="Images (%)")
    return save_figure(figure, path)


def plot_gallery(
    images: Any,
    widths: Any,
    labels: Any,
    predictions: Any,
    confidence: Any,
    path: str | os.PathLike,
    class_names: Sequence[str] | None = None,
    columns: int = 8,
    title: str | None = None,
) -> "Figure":
    """Draws test images by the width that they took, with label and confidence.

    Each width has one row of images, and the slimmest width is the first. A row shows images of
    evenly spaced confidence, the surest first. A wrong prediction is written in red.

    Args:
        images: `[images, height, width, 3]`, RGB pixels from 0 to 255.
        widths: Int `[images]`, the largest width of the path of each image.
        labels: Int `[images]`, the right classes.
        predictions: Int `[images]`, the classes that the network gave.
        confidence: Float `[images]`, the confidence of the output, in [0, 1].
        path: Path of the image file. Its suffix is the format.
        class_names: Sequence of str. Defaults to the numbers of the classes.
        columns: Int, number of images in a row.
        title: String, title of the plot. Optional.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: If there are no images, or the arguments are of other numbers of images.
    """
    arrays = [np.asarray(values) for values in (images, widths, labels, predictions, confidence)]
    images, widths, labels, predictions, confidence = arrays
    if not len(images) or len({len(array) for array in arrays}) > 1:
        raise ValueError(
            "A gallery needs a width, a label, a prediction and a confidence of each image. "
            f"Received: {', '.join(str(len(array)) for array in arrays)} values"
        )
    taken = np.unique(widths)
    figure = new_figure(1.35 * columns + 0.8, 1.75 * len(taken) + 0.5)
    grid = figure.subplots(len(taken), columns, squeeze=False)
    for row, width in zip(grid, taken):
        chosen = np.flatnonzero(widths == width)
        chosen = chosen[np.argsort(-confidence[chosen], kind="stable")]
        share = len(chosen) / len(widths)
        chosen = chosen[np.linspace(0, len(chosen) - 1, min(columns, len(chosen))).astype(int)]
        for axes in row:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        row[0].set_ylabel(f"width {width}\n{share:.0%} of images", fontsize=10)
        for axes, index in zip(row, chosen):
            axes.imshow(np.clip(images[index], 0, 255).astype("uint8"))
            right = predictions[index] == labels[index]
            text = _class_name(labels[index], class_names)
            if not right:
                text += f"\ntaken for {_class_name(predictions[index], class_names)}"
            axes.set_title(text, fontsize=8, color="black" if right else "#C00000")
            axes.set_xlabel(f"{confidence[index]:.0%} sure", fontsize=8)
    figure.suptitle(title)
    return save_figure(figure, path)


def _class_name(index, class_names):
    name = str(index) if class_names is None else " ".join(class_names[index].split())
    return name if len(name) <= 18 else f"{name[:15].rstrip()}..."


def plot_width_shares(
    shares: Sequence[Mapping[float, float]],
    path: str | os.PathLike,
    title: str | None = None,
    labels: Sequence[str] | None = None,
) -> "Figure":
    """Plots the share of the images that take each width, as Fig. 7 (right).

    Args:
        shares: List of a dict for each gate or routing, from slimming ratios rho to shares in
            [0, 1], which sum to 1.
        path: Path of the image file. Its suffix is the format.
        title: String, title of the plot. Optional.
        labels: Sequence of str, the names of the dicts. Defaults to "gate 1", "gate 2" and so on.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: If there are no gates, or another number of labels.
    """
    ratios = sorted({rho for gate in shares for rho in gate})
    if not ratios:
        raise ValueError(f"A plot of shares needs gates. Received: shares={shares}")
    labels = labels or [f"gate {number}" for number in range(1, len(shares) + 1)]
    if len(labels) != len(shares):
        raise ValueError(f"{len(shares)} shares need as many labels. Received: labels={labels}")
    figure = new_figure(2.6 + 1.1 * len(shares), 4.6)
    axes = figure.add_subplot(ylabel="Share of images (%)", title=title)
    colors = _width_colors(len(ratios))
    bottoms = [0.0] * len(shares)
    for rho, color in zip(ratios, colors):
        heights = [100 * gate.get(rho, 0.0) for gate in shares]
        bars = axes.bar(
            range(len(shares)),
            heights,
            bottom=bottoms,
            color=color,
            width=0.7,
            edgecolor="white",
            linewidth=0.6,
            label=f"{_RHO} = {rho:.2f}",
        )
        texts = [f"{h:.0f}" if h >= 100 * _SMALLEST_LABELLED_SHARE else "" for h in heights]
        axes.bar_label(bars, texts, label_type="center", color=_readable_on(color), fontsize=9)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights)]
    axes.set_xticks(range(len(shares)), [label.replace("+", "+\n") for label in labels])
    axes.set(xlim=(-0.6, len(shares) - 0.4), ylim=(0, 100))
    axes.spines[["top", "right"]].set_visible(False)
    # Reversed, so that the legend is in the order of the bars.
    axes.legend(reverse=True, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return save_figure(figure, path)


def plot_training_curves(
    csv_path: str | os.PathLike, path: str | os.PathLike, title: str | None = None
) -> "Figure":
    """Plots the accuracy of every width and the losses over the epochs, as Fig. 6.

    Args:
        csv_path: Path of a log of `CsvLog`. Its columns `val_top1_<path>` are accuracies, and its
            columns `val_map_<path>` mean average precisions.
        path: Path of the image file. Its suffix is the format.
        title: String, title of the plot. Optional.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: If the log has no epochs, or the file is not a log.
    """
    rows = read_log(csv_path)
    names = list(dict.fromkeys(name for row in rows for name in row))
    losses = [name for name in names if name.endswith("loss")]
    accuracies = [name for name in names if name.startswith(EVALUATION_PREFIXES)]
    if not losses and not accuracies:
        raise ValueError(f"{csv_path} has no epochs with losses or accuracies to draw")
    panels = [panel for panel in (accuracies, losses) if panel]
    figure = new_figure(7.2, 1.0 + 3.2 * len(panels))
    all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, panel in zip(all_axes, panels):
        if panel is accuracies:
            _draw_accuracies(axes, rows, panel)
        else:
            _draw_losses(axes, rows, panel)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    all_axes[-1].set_xlabel("Epoch")
    figure.suptitle(title)
    return save_figure(figure, path)


def _draw_accuracies(axes, rows, names):
    metric = "top1" if names[0].startswith(EVALUATION_PREFIXES[0]) else "map"
    axes.set_ylabel(_MEASURES[metric])
    widths = [name for name in names if _path_of(name).isdecimal()]
    others = [name for name in names if name not in widths]
    widths.sort(key=lambda name: int(_path_of(name)), reverse=True)
    colors = [
        *reversed(_width_colors(len(widths))),
        *[_DYNAMIC_COLOR, _NEUTRAL_COLOR] * len(others),
    ]
    for name, color in zip(widths + others, colors):
        word = _path_of(name)
        epochs, values = _series(rows, name)
        axes.plot(
            epochs,
            [100 * value for value in values],
            color=color,
            marker="o",
            markersize=3,
            linewidth=1.5,
            linestyle="-" if name in widths else "--",
            label=f"width {word}" if name in widths else word,
        )


def _draw_losses(axes, rows, names):
    axes.set_ylabel("Loss")
    for index, name in enumerate(names):
        color = _LOSS_COLORS[index % len(_LOSS_COLORS)]
        label = "sum" if name == "loss" else name.removesuffix("_loss").replace("_", " ")
        # The line of a run of one epoch is invisible without markers.
        marker = "o" if len(rows) < 20 else None
        style = {"color": color, "marker": marker, "markersize": 3, "linewidth": 1.5}
        axes.plot(*_series(rows, name), **style, label=label)
    axes.set_ylim(bottom=0)


def _series(rows, name):
    present = [row for row in rows if name in row]
    return [row["epoch"] for row in present], [row[name] for row in present]


def _path_of(name):
    for prefix in EVALUATION_PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _points(rows):
    return [row["madds"] / 1e6 for row in rows], [100 * row["top1"] for row in rows]


def _annotate(axes, row, text, offset, color, side="center"):
    x, y = row["madds"] / 1e6, 100 * row["top1"]
    axes.annotate(text, (x, y), offset, textcoords="offset points", color=color, ha=side)


def _width_colors(count):
    """Returns a colour per width, from dark to light, ordered also in colour-blind vision."""
    from matplotlib import colormaps

    return [colormaps[_WIDTH_MAP](0.92 * index / max(count - 1, 1)) for index in range(count)]


def _readable_on(color):
    red, green, blue = color[:3]
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
