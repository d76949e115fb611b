r"""Chooses the thresholds with which a saved network routes images by confidence.

    python recipes/calibrate.py --model=runs/x --max_drop=0.002 --workdir=runs/x_calibrated \
        --dataset=cifar10 --eval_split="train[45000:]"

An image runs the first of --steps, and goes on to the next one where the network is unsure of it.
One pass over labelled images gives the whole curve of accuracy against multiply-adds. The program
chooses the cheapest point whose top-1 is at most --max_drop below the last step, or the most
accurate point whose mean MAdds are at most --max_madds. The network needs no training for this, and
no trained gate.

The images must not have trained the network: it is too sure of its training images, so that the
thresholds become too low. They should not be those of the final evaluation either, because the
choice fits them. Hold some out by --train_split of the training, and name them by --eval_split.

The program writes into the work directory model.keras, which routes by confidence with the chosen
steps and thresholds, tables/curve.csv, tables/curve.json, and the plots confidence_curve.png,
reliability.png and gallery.png.
"""

import json
import pathlib
import warnings

from absl import flags
from keras_dsnet_recipes.lib import checks, data, report, run
from keras_dsnet_recipes.lib import flags as shared
from keras_dsnet_recipes.lib.start import start

FLAGS = flags.FLAGS
shared.define_saved_model()
shared.define_workdir("Folder that the calibrated network, tables and plots are written into.")
shared.define_source(unset="that of the run in the folder of --model")
shared.define_eval_split()
shared.define_evaluation()
shared.define_crop_fraction()
shared.define_image_size("Side of the images in pixels. Defaults to that of the network.")
shared.define_number(
    "max_drop",
    None,
    "Maximum of the drop of top-1 under the last step, as a fraction: 0.002 is 0.2 points.",
    low=0,
    high=1,
)
shared.define_number("max_madds", None, "Maximum of the mean MAdds of an image.", above=0)
shared.define_steps("those of the network: the narrowest and the widest of its routes")
flags.DEFINE_integer(
    "propose_steps",
    None,
    "Instead of --steps, find the best steps of this number among the routes, on the same images.",
    lower_bound=2,
)


def check_flags():
    """Raises an error for a mistake in the flags or in the files that they name."""
    model_file = checks.find_model(FLAGS.model)
    saved = checks.check_model(model_file)
    saved.check_image_size(FLAGS.image_size)
    saved.check_widths(FLAGS.steps, "steps")
    if FLAGS.steps and FLAGS.propose_steps:
        raise ValueError("--steps and --propose_steps exclude each other: give one of them")
    if pathlib.Path(FLAGS.workdir).resolve() == model_file.parent.resolve():
        raise ValueError(
            f"--workdir={FLAGS.workdir} is the folder of --model, which keeps its own network: "
            "name another folder"
        )
    checks.check_no_run(FLAGS.workdir)
    if FLAGS.propose_steps is None and FLAGS.steps is None and len(saved.steps) == 1:
        raise ValueError(
            f"--model={FLAGS.model} has one confidence step, {saved.steps[0]}, and no threshold to "
            "choose: give --steps or --propose_steps"
        )
    checks.check_workdir(FLAGS.workdir, folders=["tables", "plots"], files=["model.keras"])
    if (FLAGS.max_drop is None) == (FLAGS.max_madds is None):
        raise ValueError(
            "exactly one of --max_drop and --max_madds must be given. "
            f"Received: --max_drop={FLAGS.max_drop}, --max_madds={FLAGS.max_madds}"
        )
    checks.check_plots()
    checks.check_source(source_flags(model_file.parent))


def source_flags(folder):
    """Returns --dataset, --data_dir and --eval_split; the run of the network completes them."""
    why = "thresholds are chosen on labelled images"
    return checks.source_flags(folder, data.EVALUATION_SOURCE, why)


def warn_of_training_images(values, folder, source):
    """Prints a warning if the images have trained the network, as far as its run tells.

    Stage II trains only gates. What its images chose does not make the widths too sure, but those
    of the supernet, which is the run that counts if its folder is known.

    Args:
        values: Dict of `source_flags`.
        folder: Path of the folder of the network's file.
        source: The `ImageSource` of the images.
    """
    try:
        trained = _training_of_the_widths(folder)
        known, split = trained["dataset"], trained["train_split"] or "train"
        place = trained.get("places", {}).get("dataset")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # The network is of no run.
        return
    # A folder can be spelled in several ways.
    given = values["dataset"]
    is_same = known == given or place == str(pathlib.Path(given).expanduser().resolve())
    if is_same and data.may_share_images(split, source.split, source.split_size, given):
        print(
            f"warning: --model={FLAGS.model} was trained on {split} of {known}, which may have "
            f"images of --eval_split={source.split}: the thresholds become too low",
            flush=True,
        )


def _training_of_the_widths(folder):
    """Returns the flags of the run that trained the widths of a network, with its places."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    supernet = pathlib.Path(config.get("places", {}).get("supernet", ""))
    # The place is that of the folder, or of the network in it.
    for place in (supernet, supernet.parent):
        if config.get("supernet") and (place / "config.json").is_file():
            return json.loads((place / "config.json").read_text("utf-8"))
    return config


def choose_steps(network, batches, shape):
    """Sets the confidence steps that --steps or --propose_steps ask for."""
    from keras_dsnet.training import propose_steps

    if FLAGS.propose_steps:
        options = {"max_madds": FLAGS.max_madds, "input_shape": shape}
        steps = propose_steps(network, batches, count=FLAGS.propose_steps, **options)
        print(f"the best {FLAGS.propose_steps} steps of the routes: {steps}", flush=True)
        network.confidence_steps = steps
    elif FLAGS.steps:
        network.confidence_steps = FLAGS.steps


def describe(row, network, images):
    """Returns in words what the chosen thresholds give."""
    shares = ", ".join(f"{share:.1%} end at width {w}" for w, share in row["shares"].items())
    numbers = ", ".join(f"{threshold:.4f}" for threshold in row["thresholds"])
    line, random = (f"{100 * (row['top1'] - row[name]):+.2f}" for name in ("line", "random"))
    return (
        f"steps {network.confidence_steps}, thresholds ({numbers}): {row['top1']:.2%} top-1 at "
        f"{row['madds'] / 1e6:.2f}M MAdds\n{line} points against the line between the static "
        f"steps, {random} against a random choice of the step, at equal MAdds\n{shares}, of the "
        f"{images:,} images that chose the thresholds; other images show what these are worth"
    )


def purpose_of_evaluation(split):
    """Returns what the next command is for; its images are those of the default split."""
    purpose = "measure it on other images"
    if (split or "").startswith("train"):
        return purpose
    return (
        f"{purpose} (name them by --dataset or --eval_split: by default the command may read the "
        "images that chose the thresholds)"
    )


def main(_):
    import keras

    from keras_dsnet.runs import write_table
    from keras_dsnet.training import calibrate_confidence

    model_file = checks.find_model(FLAGS.model)
    network = keras.models.load_model(model_file, compile=False)
    size = network.input_shape[1:3] if FLAGS.image_size is None else (FLAGS.image_size,) * 2
    values = source_flags(model_file.parent)
    source = data.load_evaluation_source(network, values, "calibrating on")
    warn_of_training_images(values, model_file.parent, source)
    crop = network.crop_fraction = data.crop_of_network(network, model_file.parent)
    batches = data.evaluation_dataset(network, source, size, crop)
    choose_steps(network, batches, (*size, 3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        curve = calibrate_confidence(
            network, batches, FLAGS.max_madds, FLAGS.max_drop, input_shape=(*size, 3)
        )
    for warning in caught:
        print(f"warning: {warning.message}", flush=True)
    network.routing = "confidence"
    workdir = pathlib.Path(FLAGS.workdir)
    plots = workdir / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    # The network comes first: an older one would not belong to the new curve.
    run.save_model(network, workdir / "model.keras")
    run.write_labels(network, workdir)
    write_table(curve, workdir / "tables", "curve")
    report.draw_routing(network, source, size, plots, crop, curve=curve)
    chosen = next(row for row in curve if row["chosen"])
    print(describe(chosen, network, source.num_examples))
    following = run.command(
        "evaluate",
        f"--model={FLAGS.workdir}",
        f"--workdir={workdir}_evaluated",
        run.flag("dataset", values["dataset"]),
        run.flag("data_dir", values["data_dir"]),
        run.flag("image_size", FLAGS.image_size),
    )
    written = [workdir / "model.keras", workdir / "tables" / "curve.csv", plots]
    run.print_end(written, purpose_of_evaluation(values["eval_split"]), following)


if __name__ == "__main__":
    start(main, check_flags)
