"""Pictures of the results of a table."""

from keras_dsnet_recipes.lib.reproduction.planned_runs import arm_of

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_MS = "milliseconds of an image, LiteRT, one thread"
# The endings of the names of the files, and what they show.
PICTURES = {
    "differences": "differences",
    "curves": "the slimmest over the epochs",
    "lines": "accuracy against multiply-adds",
    "latency": "accuracy against milliseconds",
    "gates": "accuracy of the gates against multiply-adds",
    "shares": "share of the images that take each width",
}


def draw_pictures(result, folder, name):
    """Draws the pictures that the results of a table have data for.

    Args:
        result: Dict of `collection.collect`.
        folder: `pathlib.Path` of the folder of the image files.
        name: Str, the beginning of their names.
    """

    def file(ending):
        return folder / f"{name}_{ending}.png"

    # Those of an earlier collection can show what this one does not have.
    for ending in PICTURES:
        file(ending).unlink(missing_ok=True)
    if result["contrasts"]:
        plot_differences(result, file("differences"))
    if result["curves"]:
        plot_curves(result, file("curves"))
    if "lines" in result:
        plot_lines(result, file("lines"))
        points = [p for lines in result["lines"].values() for line in lines for p in line]
        if any("ms" in point for point in points):
            plot_lines(result, file("latency"), "ms")
    if "shares" in result:
        plot_gates(result, file("gates"))
        plot_shares(result["shares"], file("shares"))


def plot_differences(result, path):
    """Draws the differences of a table with their intervals, and the figures of the paper.

    Args:
        result: Dict of `collect`.
        path: Path of the image file.
    """
    rows = result["contrasts"]
    figure, axes = _figure(1.2 + 0.45 * len(rows))
    for number, row in enumerate(rows):
        low, high = (row["low"], row["high"]) if row["low"] is not None else row["images"]
        style = "-" if row["low"] is not None else ":"
        axes.plot([100 * low, 100 * high], [number] * 2, style, color=_COLORS[0], linewidth=2)
        axes.plot(100 * row["value"], number, "o", color=_COLORS[0])
        if row["paper"] is not None:
            axes.plot(100 * row["paper"], number, "D", color=_COLORS[1], markersize=5)
    axes.axvline(0, color="#555555", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(
        "difference of top-1 (points); circle: measured, diamond: the paper on ImageNet"
    )
    figure.savefig(path, dpi=160, bbox_inches="tight")


def plot_curves(result, path):
    """Draws the accuracy of the slimmest over the epochs of every arm, as Fig. 6.

    Args:
        result: Dict of `collect`.
        path: Path of the image file.
    """
    figure, axes = _figure(4)
    arms = []
    for name, curve in result["curves"].items():
        # Runs that several tables share have the name of the arm of this table.
        arm = result.get("arms", {}).get(name, f"_{arm_of(name)}_s").rpartition("_s")[0]
        arm = arm.removeprefix("_")
        label = None if arm in arms else arm.replace("_", " ")
        arms += [] if arm in arms else [arm]
        color = _COLORS[arms.index(arm) % len(_COLORS)]
        axes.plot(
            range(1, len(curve) + 1), [100 * top1 for top1 in curve], color=color, label=label
        )
    axes.set_xlabel("epoch")
    axes.set_ylabel("top-1 of the slimmest (%), validation images")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=160, bbox_inches="tight")


def plot_lines(result, path, cost="madds"):
    """Draws accuracy against a cost, one line for each peer and seed.

    Args:
        result: Dict of `collect` with "lines".
        path: Path of the image file.
        cost: "madds" or "ms".
    """
    figure, axes = _figure(4.5)
    scale, label = {"madds": (1e-6, "multiply-adds of an image (M)"), "ms": (1, _MS)}[cost]
    for number, (name, lines) in enumerate(result["lines"].items()):
        color = _COLORS[number % len(_COLORS)]
        for index, line in enumerate(lines):
            points = [point for point in line if cost in point]
            axes.plot(
                [scale * point[cost] for point in points],
                [100 * point["top1"] for point in points],
                marker="o",
                markersize=3,
                color=color,
                label=name.replace("_", " ") if index == 0 else None,
            )
    axes.set_xlabel(label)
    axes.set_ylabel(f"top-1 (%), images {result['images']}")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=160, bbox_inches="tight")


def plot_gates(result, path):
    """Draws accuracy against MAdds of the gates of every arm and seed, as Fig. 7 (left).

    Args:
        result: Dict of `collect` with "static".
        path: Path of the image file.
    """
    figure, axes = _figure(4.5)
    for number, line in enumerate(result["static"].values()):
        axes.plot(
            [1e-6 * point["madds"] for point in line],
            [100 * point["top1"] for point in line],
            color="#999999",
            linewidth=0.8,
            label="static widths of the supernets" if number == 0 else None,
        )
    rows = [row for row in result["rows"] if row["path"] in ("gate", "confidence")]
    kinds = list(dict.fromkeys((row["arm"], row["path"]) for row in rows))
    for number, (arm, routing) in enumerate(kinds):
        points = [row for row in rows if (row["arm"], row["path"]) == (arm, routing)]
        axes.plot(
            [1e-6 * point["madds"] for point in points],
            [100 * point["top1"] for point in points],
            "o" if routing == "gate" else "x",
            markersize=5,
            color=_COLORS[number % len(_COLORS)],
            label=(arm if routing == "gate" else f"{arm}, {routing}").replace("_", " "),
        )
    axes.set_xlabel("multiply-adds of an image (M), the mean")
    axes.set_ylabel(f"top-1 (%), images {result['images']}")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=160, bbox_inches="tight")


def plot_shares(shares, path):
    """Draws the share of the images that take each width at each gate, as Fig. 7 (right).

    Args:
        shares: Dict from the names of runs to a dict for each gate, from widths to shares. The
            mean over the seeds of an arm is drawn.
        path: Path of the image file.
    """
    from matplotlib.figure import Figure

    arms = {}
    for name, gates in shares.items():
        arms.setdefault(arm_of(name), []).append(gates)
    every = [gate for seeds in arms.values() for gates in seeds for gate in gates]
    widths = sorted({width for gate in every for width in gate})
    columns = min(len(arms), 4)
    rows = -(-len(arms) // columns)
    figure = Figure(figsize=(1.5 + 2.3 * columns, 0.6 + 2.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(arms) :]:
        axes.set_axis_off()
    for axes, (arm, seeds) in zip(grid.flat, arms.items()):
        numbers = range(1, len(seeds[0]) + 1)
        below = [0.0] * len(numbers)
        for index, width in enumerate(widths):
            parts = [
                100 * sum(gates[number - 1].get(width, 0.0) for gates in seeds) / len(seeds)
                for number in numbers
            ]
            color = _COLORS[index % len(_COLORS)]
            axes.bar(numbers, parts, bottom=below, color=color, label=f"width {width}")
            below = [bottom + part for bottom, part in zip(below, parts)]
        axes.set_title(arm.replace("_", " "), fontsize=9)
        axes.set_xticks(numbers, [f"gate {number}" for number in numbers], fontsize=7)
    grid[0, 0].set_ylabel("share of the images (%)")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside right center")
    figure.savefig(path, dpi=160)


def _figure(height):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, height))
    return figure, figure.subplots()


def _label(row):
    weights = ", online" if row["weights"] == "online" else ""
    paths = row["path"]
    if row.get("second_path", paths) != paths:
        paths += f" - {row['second_path']}"
    return f"{row['first']} - {row['second']}, {paths}{weights}".replace("_", " ")
