r"""Times Table 1 of the paper: ways to run a quarter of the channels of ResNet-50's convolutions.

    python recipes/benchmarks/benchmark_slicing.py --workdir=runs/benchmark_slicing

On TensorFlow and on LiteRT with XNNPACK, one image, random weights:
- full: all channels;
- masking: all channels, multiplied by a mask that keeps the first quarter;
- indexing: kernels gathered by the indices of the channels to keep;
- slicing: the first channels of the full kernels, by `SlicedConv2D`; LiteRT's converter folds the
  slices, TensorFlow takes them of its variables in every call;
- slicing at run time: slices that the converter cannot fold (LiteRT alone);
- individual: a network that was built with a quarter of the channels.

What is chosen at run time is an input, so no engine can know it beforehand; XNNPACK leaves
convolutions whose kernels are made at run time to slower code. All but the full network are checked
to give equal features before anything is timed. The ways to run alternate in one process, each for
half a second a round. Prints a table and writes it as CSV, JSON and Markdown, with a plot.
"""

import importlib.metadata
import pathlib
import shlex
import sys

from absl import flags
from keras_dsnet_recipes.benchmarks.timing import low_and_middle, ratios, take_turns
from keras_dsnet_recipes.lib import checks
from keras_dsnet_recipes.lib import flags as shared
from keras_dsnet_recipes.lib.start import start

ENGINES = {
    "LiteRT": ("full", "masking", "indexing", "slicing", "slicing_at_run_time", "individual"),
    "TensorFlow": ("full", "masking", "indexing", "slicing", "individual"),
}
ALL_CHANNELS = ("full", "masking")
# Milliseconds of Table 1, on a GeForce RTX 2080 Ti.
PAPER_MS = {"full": 12.2, "masking": 12.4, "indexing": 16.6, "slicing": 7.9, "individual": 7.2}
SECONDS_PER_ROUND = 0.5
COLORS = {"slicing": "#0072B2", "individual": "#555555"}
OTHER_COLOR = "#D55E00"

FLAGS = flags.FLAGS
shared.define_workdir("Folder for the figures.")
shared.define_image_size("Side of the image.", 224, lower_bound=32)
shared.define_rounds(9, "Rounds of the comparison.")
shared.define_threads("Threads of either engine.")
flags.DEFINE_multi_enum(
    "engine", list(ENGINES), list(ENGINES), "Which to run; repeatable.", case_sensitive=False
)


def check_flags():
    """Raises an error for a folder that cannot be written, or a package that is missing."""
    checks.check_workdir(FLAGS.workdir)
    checks.check_plots()


def make_rows(engine, stack, times):
    """Returns the rows of an engine's part of the table."""
    from keras_dsnet_recipes.benchmarks.slicing_methods import SHARE

    rows, ideal = [], times["individual"]
    for method, values in times.items():
        low, middle = low_and_middle(values)
        low_ratio, middle_ratio = ratios(values, ideal)
        rows.append(
            {
                "engine": engine,
                "method": method.replace("_", " "),
                "madds": stack.madds(FLAGS.image_size, 1 if method in ALL_CHANNELS else SHARE),
                "min_ms": low,
                "median_ms": middle,
                "min_ratio": low_ratio,
                "median_ratio": middle_ratio,
                "paper_ms": PAPER_MS.get(method),
            }
        )
    return rows


def format_markdown(rows):
    """Returns the command, what it ran on, and the table, for a page of the documentation."""
    command = shlex.join(["python", "recipes/benchmarks/benchmark_slicing.py", *sys.argv[1:]])
    versions = " and ".join(
        f"{name} {importlib.metadata.version(distribution)}"
        for name, distribution in (("LiteRT", "ai-edge-litert"), ("TensorFlow", "tensorflow"))
    )
    lines = [
        f"```\n{command}\n```\n",
        f"One image of {FLAGS.image_size}x{FLAGS.image_size}; threads: {FLAGS.threads}; rounds: "
        f"{FLAGS.rounds}; {versions}.\n",
        "| engine | method | MAdds | time, min / median | ratio to individual, min / median "
        "| paper's ratio (GPU) |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        paper = f"{row['paper_ms'] / PAPER_MS['individual']:.2f}" if row["paper_ms"] else ""
        cells = (
            row["engine"],
            row["method"],
            f"{row['madds'] / 1e6:.0f}M",
            f"{row['min_ms']:.2f} / {row['median_ms']:.2f} ms",
            f"{row['min_ratio']:.2f} / {row['median_ratio']:.2f}",
            paper,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot_latencies(rows, path):
    """Draws the median times, a panel for each engine."""
    from matplotlib.figure import Figure

    from keras_dsnet.utils.atomic_file import atomic_file

    engines = list(dict.fromkeys(row["engine"] for row in rows))
    figure = Figure(figsize=(7.2, 0.8 + 2.4 * len(engines)), layout="constrained")
    panels = figure.subplots(len(engines), 1, squeeze=False)[:, 0]
    for axes, engine in zip(panels, engines):
        own = [row for row in rows if row["engine"] == engine]
        names = [row["method"] for row in own]
        colors = [COLORS.get(name, OTHER_COLOR) for name in names]
        bars = axes.barh(names, [row["median_ms"] for row in own], color=colors, height=0.7)
        texts = [f"{row['median_ms']:.1f} ms ({row['median_ratio']:.2f}x)" for row in own]
        axes.bar_label(bars, texts, padding=4, fontsize=9)
        # As in the table, from above; and room for the longest bar's text.
        axes.invert_yaxis()
        axes.margins(x=0.3)
        axes.set_title(engine)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("Median time per image (ms), and its ratio to the individual network's")
    with atomic_file(path, "wb") as file:
        figure.savefig(file, format="png", dpi=160)


def main(_):
    import keras
    import numpy as np
    import tensorflow as tf
    from keras_dsnet_recipes.benchmarks.slicing_methods import ResNetStack, prepare_runs

    from keras_dsnet.runs import write_table
    from keras_dsnet.utils.atomic_file import atomic_file

    tf.config.threading.set_intra_op_parallelism_threads(FLAGS.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(0)
    shape = (1, FLAGS.image_size, FLAGS.image_size, 3)
    image = np.random.default_rng(0).normal(size=shape).astype("float32")
    stack, rows = ResNetStack(), []
    for engine in dict.fromkeys(FLAGS.engine):
        print(f"{engine}: preparing {', '.join(ENGINES[engine])}", flush=True)
        runs = prepare_runs(engine, stack, image, ENGINES[engine], FLAGS.threads)
        print(f"{engine}: equal features; timing {FLAGS.rounds} rounds", flush=True)
        times = take_turns(runs, FLAGS.rounds, SECONDS_PER_ROUND)
        rows += make_rows(engine, stack, times)
    workdir = pathlib.Path(FLAGS.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    print(write_table(rows, workdir, "slicing"))
    with atomic_file(workdir / "table.md") as file:
        file.write(format_markdown(rows))
    plot_latencies(rows, workdir / "slicing.png")


if __name__ == "__main__":
    start(main, check_flags)
