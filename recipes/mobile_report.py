"""What benchmark_mobile.py writes of its figures."""

import importlib.metadata
import shlex
import sys

from absl import flags
from loading_cost import loading_cost

FLAGS = flags.FLAGS
COLORS = {"static": "#555555", "shared": "#0072B2", "fast": "#D55E00", "naive": "#CC79A7"}
BASELINE_COLOR = "#009E73"


def describe_sizes(routed, static):
    """Yields a line for each routed file: its size, and what a second signature takes.

    Args:
        routed: dict of filenames by name.
        static: dict of filenames by path through the network; may be empty.
    """
    widest = static[max(static)].stat().st_size if static else None
    for name, path in routed.items():
        size = path.stat().st_size
        line = f"{name}: {size / 1e6:.2f} MB"
        if widest:
            line += f", {size / widest:.3f} of the widest width alone"
        one = loading_cost(path, FLAGS.threads, ["serving_default"])["rss_mib"]
        both = loading_cost(path, FLAGS.threads, ["serving_default", "bounded"])["rss_mib"]
        yield f"{line}; one signature takes {one:.1f} MiB, both {both:.1f} MiB"


def write_markdown(rows, sizes, huge_share, path):
    """Writes the command, what it ran on, and the table, for a page of the documentation.

    Args:
        rows: the figures.
        sizes: lines on the sizes of files.
        huge_share: least share of a process's memory in huge pages.
        path: of the file to write.
    """
    from keras_dsnet.utils.atomic_file import atomic_file

    command = shlex.join(["python", "recipes/benchmark_mobile.py", *sys.argv[1:]])
    others = [key[3:-4] for row in rows for key in row if key.startswith("to_") and "_min" in key]
    others = list(dict.fromkeys(others))
    titles = ["type", "file", "path", "M MAdds", "MB", "init ms", "RSS MiB", "ms, min / median"]
    titles += [f"to {other}, min / median" for other in others]
    pages = f"; in huge pages: {huge_share:.0%} or more of each" if FLAGS.huge_pages else ""
    lines = [
        f"```\n{command}\n```\n",
        f"{_engine()}; threads: {FLAGS.threads}; turns: {FLAGS.rounds} of each of {FLAGS.loads} "
        f"processes{pages}.\n",
    ]
    lines += [f"- {line}" for line in sizes]
    lines += ["", f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for row in rows:
        cells = [row["quantize"], row["file"], str(row.get("path", ""))]
        cells += [f"{row['madds'] / 1e6:.1f}" if "madds" in row else ""]
        cells += [f"{row['mb']:.2f}", f"{row['init_ms']:.0f}", f"{row['rss_mib']:.0f}"]
        cells += [_pair(row, "min_ms", "median_ms")]
        cells += [_pair(row, f"to_{other}_min", f"to_{other}_median") for other in others]
        lines.append(f"| {' | '.join(cells)} |")
    with atomic_file(path) as file:
        file.write("\n".join(lines) + "\n")


def _pair(row, low, middle):
    return f"{row[low]:.3f} / {row[middle]:.3f}" if low in row else ""


def save_latency_tables(rows, metadata, folder):
    """Writes `latency_<type>_<file>.json` for each routed file, and for the static ones.

    Args:
        rows: the figures.
        metadata: dict of what the routed files say of themselves, by type and name.
        folder: to write to.
    """
    from keras_dsnet.export import LatencyTable

    for quantize, name in sorted({(row["quantize"], row["file"]) for row in rows if "path" in row}):
        own = [r for r in rows if (r["quantize"], r["file"]) == (quantize, name) and "path" in r]
        routed = metadata.get((quantize, name))
        about = routed or next(value for key, value in metadata.items() if key[0] == quantize)
        LatencyTable(
            device=FLAGS.device,
            engine=_engine(),
            threads=FLAGS.threads,
            network=about["network"],
            input_shape=tuple(about["input_shape"]),
            num_widths=about["num_widths"],
            quantize=None if quantize == "float32" else quantize,
            layout=routed and routed["layout"],
            rows=[
                {
                    "path": [row["path"]] if isinstance(row["path"], int) else list(row["path"]),
                    **{key: row[key] for key in ("madds", "min_ms", "median_ms")},
                }
                for row in own
            ],
        ).save(folder / f"latency_{quantize}_{name}.json")


def _engine():
    return f"LiteRT {importlib.metadata.version('ai-edge-litert')}, XNNPACK"


def plot_latency(rows, path):
    """Draws median latency against MAdds: a panel for each type, a line for each kind of file."""
    from matplotlib.figure import Figure

    from keras_dsnet.utils.atomic_file import atomic_file

    types = list(dict.fromkeys(row["quantize"] for row in rows))
    figure = Figure(figsize=(5.2 * len(types), 4.4), layout="constrained")
    for axes, quantize in zip(figure.subplots(1, len(types), squeeze=False)[0], types):
        own = [row for row in rows if row["quantize"] == quantize]
        for name in dict.fromkeys(row["file"] for row in own):
            line = [row for row in own if row["file"] == name]
            line.sort(key=lambda row: row.get("madds", 0))
            color = COLORS.get(name, BASELINE_COLOR)
            if "path" in line[0]:
                madds = [row["madds"] / 1e6 for row in line]
                times = [row["median_ms"] for row in line]
                axes.plot(madds, times, marker="o", color=color, label=name)
            else:
                axes.axhline(line[0]["median_ms"], color=color, linestyle=":", linewidth=1)
                axes.text(
                    0.99,
                    line[0]["median_ms"],
                    name,
                    ha="right",
                    va="bottom",
                    fontsize=7,
                    transform=axes.get_yaxis_transform(),
                )
        axes.set(title=quantize, xlabel="Multiply-adds per image (M)", ylabel="Median latency (ms)")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_file(path, "wb") as file:
        figure.savefig(file, format="png", dpi=160)
