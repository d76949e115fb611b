r"""Measures the accuracy of a saved network against its multiply-adds.

    python recipes/evaluate.py --model=runs/gate --workdir=runs/gate_evaluated
    python recipes/evaluate.py --model=m.keras --dataset=flowers/ --workdir=runs/flowers_evaluated

The program prints the top-1 and top-5 accuracy of every width, or of the paths in --paths. Below
them stand routing by confidence and, if the gates are trained, routing by the gates and by both.
These rows have the gain over the line between the static widths at the same MAdds, with a 95 %
interval, and the 95th percentile and the maximum of the MAdds of an image. The row "dynamic" is the
network by its own routing. Without --thresholds and --steps, the thresholds are those of the
network, which are 0.7 until they are calibrated (calibrate.py). They belong to their steps, and are
0.7 for other --steps.

It writes tables/paths.csv, tables/paths.json and plots/ into the work directory, among them
gallery.png, which shows easy and hard images. The images come from --dataset, which defaults to the
data set that the network was trained on.
"""

import pathlib

from absl import flags
from keras_dsnet_recipes.lib import checks, data, report, run
from keras_dsnet_recipes.lib import flags as shared
from keras_dsnet_recipes.lib.start import start

FLAGS = flags.FLAGS
shared.define_saved_model()
shared.define_workdir("Folder that the tables and plots are written into.")
shared.define_source(unset="that of the run in the folder of --model")
shared.define_eval_split()
shared.define_evaluation()
shared.define_crop_fraction()
shared.define_paths("Widths, or for several gates paths such as 0-1-2-3. Defaults to every width.")
shared.define_confidence()
shared.define_image_size("Side of the images in pixels. Defaults to that of the network.")


def check_flags():
    """Raises an error for a mistake in the flags or in the files that they name."""
    model_file = checks.find_model(FLAGS.model)
    saved = checks.check_model(model_file)
    saved.check_image_size(FLAGS.image_size)
    for path in FLAGS.paths or ():
        saved.check_path(path, "paths")
    saved.check_confidence(FLAGS.steps, FLAGS.thresholds)
    if pathlib.Path(FLAGS.workdir).resolve() == model_file.parent.resolve():
        raise ValueError(
            f"--workdir={FLAGS.workdir} is the folder of --model, which keeps its own tables and "
            "plots: name another folder"
        )
    checks.check_no_run(FLAGS.workdir)
    checks.check_workdir(FLAGS.workdir, folders=["tables", "plots"])
    checks.check_plots()
    checks.check_source(source_flags(model_file.parent))


def source_flags(folder):
    """Returns --dataset, --data_dir and --eval_split; the run of the network completes them."""
    why = "accuracy is measured on images"
    return checks.source_flags(folder, data.EVALUATION_SOURCE, why)


def choose_image_size(network):
    """Returns `(height, width)` of the images."""
    return network.input_shape[1:3] if FLAGS.image_size is None else (FLAGS.image_size,) * 2


def choose_paths():
    """Returns the paths of --paths in the form that a call of the network takes, or None."""
    if FLAGS.paths is None:
        return None
    return [path if len(path) > 1 else path[0] for path in FLAGS.paths]


def main(_):
    import keras

    from keras_dsnet.training import describe_gates, evaluate_paths

    model_file = checks.find_model(FLAGS.model)
    network = keras.models.load_model(model_file, compile=False)
    size, paths = choose_image_size(network), choose_paths()
    values = source_flags(model_file.parent)
    source = data.load_evaluation_source(network, values, "evaluating on")
    workdir = pathlib.Path(FLAGS.workdir)
    for name in ("tables", "plots"):
        (workdir / name).mkdir(parents=True, exist_ok=True)
    crop = data.crop_of_network(network, model_file.parent)
    batches = data.evaluation_dataset(network, source, size, crop)
    if FLAGS.steps:
        network.confidence_steps = FLAGS.steps
    if FLAGS.thresholds:
        network.thresholds = FLAGS.thresholds
    rows = evaluate_paths(
        network,
        batches,
        paths,
        input_shape=(*size, 3),
        verbose=True,
        steps=network.confidence_steps,
    )
    report.write_report(network, rows, source, size, workdir, crop)
    if network.gates_trained:
        print(describe_gates(rows))
        how = "stage II with --routes that include it makes it a route"
        report.warn_of_better_widths(rows, network.routes, source.num_examples, how)
    following = run.command(
        "export",
        f"--model={FLAGS.model}",
        run.flag("crop_fraction", FLAGS.crop_fraction),
        f"--output={workdir / 'model.tflite'}",
    )
    written = [workdir / "tables" / "paths.csv", workdir / "plots"]
    hint = run.routes_hint(network)
    run.print_end(written, f"write a TFLite file for a phone{hint}", following)


if __name__ == "__main__":
    start(main, check_flags)
