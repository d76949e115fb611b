r"""Compares all routings of a network on images that did not choose their settings.

    python recipes/benchmarks/cross_fit.py --workdir=runs/cross_fit
    python recipes/benchmarks/cross_fit.py --workdir=runs/fit --model=runs/x --dataset=digits

By default these are the weights for CIFAR-10 that come with the package, and 5,000 images that were
held out of their training. Each of 20 random splits chooses on one half and scores the other half,
then the halves change places. The limits of a choice are mean MAdds as a share of those of the
widest path (--shares), and a drop of top-1 under the widest path (--drops). The gate is moved along
the axis of MAdds by a bias on its scores, so that all routings are compared at equal MAdds.

The program prints a table, writes it as CSV, JSON and Markdown, and plots the curves over the
static widths. docs/results/confidence.md has the results.
"""

import pathlib
import shlex
import sys

from absl import flags
from keras_dsnet_recipes.lib import checks
from keras_dsnet_recipes.lib import flags as shared
from keras_dsnet_recipes.lib.start import start

FLAGS = flags.FLAGS
shared.define_workdir("Folder that the tables and plots are written into.")
shared.define_saved_model(
    required=False,
    help="Network: a .keras file or the work directory of a run. Defaults to the weights for "
    "CIFAR-10 that come with the package.",
)
shared.define_source(dataset="cifar10")
flags.DEFINE_string(
    "eval_split",
    None,
    "Split or slice of images, such as test[:1000]. Defaults to train[45000:] of CIFAR-10, else "
    "to the evaluation images of the data set.",
)
shared.define_evaluation()
shared.define_crop_fraction()
flags.DEFINE_list(
    "steps", None, "Confidence steps, such as 0,13. Defaults to the narrowest and the widest width."
)
flags.DEFINE_list("shares", ["0.46", "0.5", "0.51"], "Limits of mean MAdds, of the widest path.")
flags.DEFINE_list("drops", ["0.005", "0.002"], "Limits of the drop of top-1, as fractions.")
flags.DEFINE_integer("splits", 20, "Number of random splits.", lower_bound=1)
shared.define_seed("Seed of the splits.")

# Widths of the network that comes with the package, and the images held out of its training.
_SHIPPED_WIDTHS = 14
_HELD_OUT = {"cifar10": "train[45000:]"}
# Confidence whose steps are chosen on the same half as its threshold.
PROPOSED = "confidence, proposed steps"
COLORS = {"gate": "#0072B2", "confidence": "#D55E00", "gate+confidence": "#009E73"}


def limits():
    """Returns the limits of the flags as pairs of the flag's name and a float."""
    return [
        (name, _limit(name, text)) for name in ("shares", "drops") for text in FLAGS[name].value
    ]


def _limit(name, text):
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 2:
        raise ValueError(f"--{name} must be numbers such as 0.5,0.002. Received: --{name}={text}")
    return value


def chosen_steps(num_widths):
    """Returns the confidence steps, by default the narrowest and the widest width."""
    if FLAGS.steps is None:
        return (0, num_widths - 1)
    steps = [int(step) if step.isdecimal() else num_widths for step in FLAGS.steps]
    if len(steps) < 2 or steps != sorted(set(steps)) or steps[-1] >= num_widths:
        raise ValueError(
            f"--steps must be two or more ascending widths from 0 to {num_widths - 1}. "
            f"Received: --steps={','.join(FLAGS.steps)}"
        )
    return tuple(steps)


def check_flags():
    """Raises an error for a mistake in the flags or in the files that they name."""
    limits()
    num_widths = _SHIPPED_WIDTHS
    if FLAGS.model is not None:
        num_widths = checks.check_model(checks.find_model(FLAGS.model)).num_widths
    chosen_steps(num_widths)
    checks.check_no_run(FLAGS.workdir)
    checks.check_workdir(FLAGS.workdir, folders=["tables", "plots"])
    checks.check_plots()
    checks.check_source({"dataset": FLAGS.dataset, "data_dir": FLAGS.data_dir})


def load_network():
    """Returns the network of --model, or the one that comes with the package."""
    import keras
    from keras_dsnet.applications import DSMobileNet

    if FLAGS.model is None:
        return DSMobileNet(weights="cifar10")
    return keras.models.load_model(checks.find_model(FLAGS.model), compile=False)


def load_images(network):
    """Returns the batches of the images, and the shape of one image."""
    from keras_dsnet_recipes.lib import data

    from keras_dsnet.data import load_source

    source = load_source(
        FLAGS.dataset,
        FLAGS.data_dir,
        "eval",
        eval_split=FLAGS.eval_split or _HELD_OUT.get(FLAGS.dataset),
        on_bad_image="raise" if FLAGS.strict_images else "skip",
    )
    data.check_names(network, source)
    data.print_source("cross-fitting on", source)
    size = image_size(network, source)
    folder = checks.find_model(FLAGS.model).parent if FLAGS.model else None
    crop = data.crop_of_network(network, folder)
    return data.evaluation_dataset(network, source, size, crop), (*size, 3)


def image_size(network, source):
    """Returns the height and width of the network's images, else those of the data set."""
    size = network.input_shape[1:3]
    if None not in size:
        return size
    if source.image_shape is None:
        raise ValueError(
            f"--model={FLAGS.model} takes images of any size, and those of {source.name} have no "
            "common one: give a network with a fixed `input_shape`, or other images"
        )
    return tuple(side or own for side, own in zip(size, source.image_shape))


def ask_gate(network, batches, shape):
    """Returns the `GateScores` of all images, or None without one trained gate."""
    import numpy as np
    import tensorflow as tf

    from keras_dsnet.training.cross_fit import GateScores

    if network.num_gates > 1 or not network.gates_trained:
        return None
    (gate,), scores = network.slimming_gates, []
    for images, _ in batches:
        images = tf.cast(images, network.compute_dtype)
        found = network.run_section(0, None, (0, 0), images)[1]
        scores.append(gate.route_scores(found, network.routes).numpy())
    madds = network.costs("slimmest", shape).slimming
    return GateScores(network.routes, np.concatenate(scores).astype("float64"), madds)


def choices(results, gate, steps, name, limit):
    """Yields the name of each routing and its choice under a limit."""
    from keras_dsnet.training import cross_fit as fit

    widest = results.trunk + results.madds[-1]
    limit = {"max_madds": limit * widest} if name == "shares" else {"max_drop": limit}
    if gate is not None:
        last = results.correct[:, -1]
        yield "gate", fit.choose_setting(*fit.gate_settings(results, gate), **limit, last=last)
    yield "confidence", fit.choose_thresholds(results, steps, **limit)
    yield PROPOSED, fit.choose_thresholds(results, **limit)
    if gate is not None and len(steps) == 2:
        settings = fit.mixed_settings(results, gate, steps[-1])
        yield "gate+confidence", fit.choose_setting(*settings, **limit, last=last)


def main(_):
    from keras_dsnet.runs import write_table
    from keras_dsnet.training.confidence import collect_steps
    from keras_dsnet.training.cross_fit import cross_fit
    from keras_dsnet.utils.atomic_file import atomic_file

    network, workdir = load_network(), pathlib.Path(FLAGS.workdir)
    batches, shape = load_images(network)
    steps = chosen_steps(network.num_widths)
    results = collect_steps(network, batches, range(network.num_widths), shape, one_trace=True)
    gate, static = ask_gate(network, batches, shape), results.trunk + results.madds
    table = [
        {"width": width, "madds": int(cost), "of_widest": cost / static[-1], "top1": float(top1)}
        for width, cost, top1 in zip(results.widths, static, results.correct.mean(0))
    ]
    print(write_table(table, workdir / "tables", "static"), flush=True)
    rows = []
    for name, limit in limits():
        for routing, choose in choices(results, gate, steps, name, limit):
            row = cross_fit(choose, results.correct.T, static, FLAGS.splits, FLAGS.seed)
            share = row["madds"] / static[-1]
            rows.append({"routing": routing, "limit": f"{name[:-1]} {limit:g}", **row})
            rows[-1]["of_widest"] = share
    print(write_table(rows, workdir / "tables", "cross_fit"))
    with atomic_file(workdir / "tables" / "cross_fit.md") as file:
        file.write(as_markdown(rows, steps))
    plot(results, gate, steps, rows, workdir / "plots" / "cross_fit.png")
    print(f"\nwritten: {workdir / 'tables'}, {workdir / 'plots' / 'cross_fit.png'}")


def as_markdown(rows, steps):
    """Returns the table for docs/results/confidence.md."""
    head = (
        ("choice", "routing", "MAdds of the widest", "top-1", "above the static line"),
        ("95 % interval", "lowest lower end of a split", "below the widest"),
    )
    lines = [f"Steps {steps}.\n", "| " + " | ".join(sum(head, ())) + " |", "|---" * 8 + "|"]
    for row in rows:
        cells = (
            row["limit"],
            row["routing"],
            f"{row['of_widest']:.1%}",
            f"{row['top1']:.2%} ± {row['top1_spread']:.2%}",
            f"{100 * row['gain']:.2f} ± {100 * row['gain_spread']:.2f}",
            f"{100 * row['gain_low']:.2f} to {100 * row['gain_high']:.2f}",
            f"{100 * row['lowest_low']:.2f}",
            f"{100 * row['drop']:.2f}",
        )
        lines.append("| " + " | ".join(cells).replace("%", " %") + " |")
    return "\n".join([*lines, "", f"Command: `python {shlex.join(sys.argv)}`", ""])


def plot(results, gate, steps, rows, path):
    """Plots the curves of all routings over the static widths, and the cross-fitted points."""
    from matplotlib.figure import Figure

    from keras_dsnet.training import cross_fit as fit
    from keras_dsnet.training.confidence import confidence_curve

    figure = Figure(figsize=(7, 4.8), layout="constrained")
    axes = figure.add_subplot(
        xlabel="Mean multiply-adds per image (M MAdds)", ylabel="Top-1 accuracy (%)"
    )
    static = (results.trunk + results.madds) / 1e6
    axes.plot(static, 100 * results.correct.mean(0), "o-", color="#555555", label="static widths")
    curves = {"confidence": confidence_curve(results.of(steps))}
    curves = {"confidence": [(row["madds"], row["top1"]) for row in curves["confidence"]]}
    if gate is not None:
        settings = {"gate": fit.gate_settings(results, gate)}
        if len(steps) == 2:
            settings["gate+confidence"] = fit.mixed_settings(results, gate, steps[-1])
        for name, (hits, madds) in settings.items():
            curves[name] = sorted(zip(madds.mean(1), hits.mean(1)))
    for name, points in curves.items():
        madds, top1 = zip(*points)
        color = COLORS[name]
        axes.plot([m / 1e6 for m in madds], [100 * t for t in top1], color=color, label=name)
        found = [row for row in rows if row["routing"] == name]
        costs, right = [row["madds"] / 1e6 for row in found], [100 * row["top1"] for row in found]
        axes.plot(costs, right, "D", color=color, markersize=5)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    start(main, check_flags)
