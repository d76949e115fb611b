r"""Measures a saved network on a data set: accuracy against multiply-adds.

    python recipes/evaluate.py --model=runs/gate --workdir=runs/gate_evaluated
    python recipes/evaluate.py --model=m.keras --dataset=flowers/ --workdir=runs/flowers_evaluated

Prints top-1 and top-5 accuracy of every width, or of --paths, and of the dynamic network where its
gates are trained; writes tables/paths.csv and .json, and plots/, into the work directory. Images
come from the data set that the network was trained on, or from --dataset.
"""

import pathlib

import checks
import commands
import common
import representative_data
from absl import flags
from flag_types import define_path, define_paths_through
from start import start
from trained_model import check_model, find_model

FLAGS = flags.FLAGS
_SOURCE = ("dataset", "data_dir", "eval_split")
define_path("model", None, "Work directory of a stage, or a .keras file.", required=True)
define_path("workdir", None, "Folder for tables and plots.", required=True)
define_path(
    "dataset",
    None,
    "digits, a TFDS name or a folder of class folders; none: what the run in --model's folder was "
    "trained on.",
)
define_path("data_dir", None, "Folder of prepared TFDS data sets; none: the run's.")
flags.DEFINE_string("eval_split", None, "TFDS slice to evaluate on; none: the run's.")
define_paths_through("paths", "Widths, or paths of several gates, as 0-1-2-3; none: every width.")
flags.DEFINE_integer("image_size", None, "Side of the images; none: the network's.", lower_bound=1)
flags.DEFINE_integer("eval_batch_size", 250, "Images per batch.", lower_bound=1)
flags.DEFINE_bool("strict_images", False, "An unreadable image ends the program.")


def check_flags():
    """Raises an error for what is wrong with the flags or the files that they name."""
    model_file = find_model(FLAGS.model)
    check_model(model_file)
    checks.check_workdir(FLAGS.workdir, folders=["tables", "plots"])
    checks.check_plots()
    checks.check_source(source_flags(model_file.parent))


def source_flags(folder):
    """Returns the values of --dataset, --data_dir and --eval_split: given, or those of the run."""
    return representative_data.source_flags(folder, _SOURCE, "accuracy is measured on images")


def choose_image_size(network):
    """Returns `(height, width)` of the images."""
    size = network.input_shape[1:3] if FLAGS.image_size is None else (FLAGS.image_size,) * 2
    if None in size:
        raise ValueError(
            f"--model={FLAGS.model} takes images of any size: choose one by --image_size"
        )
    common.check_image_size(network, size, "model")
    return size


def choose_paths(network):
    """Returns the paths of --paths, as a call of the network takes them, or None."""
    if FLAGS.paths is None:
        return None
    paths = [path if len(path) > 1 else path[0] for path in FLAGS.paths]
    for path in paths:
        network.resolve_path(path)
    return paths


def main(_):
    import keras

    from keras_dsnet.data import load_source
    from keras_dsnet.training import describe_gates, evaluate_paths

    model_file = find_model(FLAGS.model)
    network = keras.models.load_model(model_file, compile=False)
    size, paths = choose_image_size(network), choose_paths(network)
    values = source_flags(model_file.parent)
    source = load_source(
        values["dataset"],
        values["data_dir"],
        "eval",
        eval_split=values["eval_split"],
        on_bad_image="raise" if FLAGS.strict_images else "skip",
    )
    representative_data.check_names(network, source)
    common.print_source("evaluating on", source)
    common.check_apart(source, values["dataset"])
    workdir = pathlib.Path(FLAGS.workdir)
    for name in ("tables", "plots"):
        (workdir / name).mkdir(parents=True, exist_ok=True)
    batches = common.evaluation_dataset(network, source, size, FLAGS.eval_batch_size)
    rows = evaluate_paths(network, batches, paths, input_shape=(*size, 3), verbose=True)
    common.report(network, rows, workdir / "tables", workdir / "plots")
    if network.gates_trained:
        print(describe_gates(rows))
        how = "stage II with --routes that have it makes it a route"
        common.warn_of_better_widths(rows, network.routes, source.num_examples, how)
    following = commands.command(
        "export", f"--model={FLAGS.model}", f"--output={workdir / 'model.tflite'}"
    )
    written = [workdir / "tables" / "paths.csv", workdir / "plots"]
    commands.print_end(written, "write a TFLite file for a phone", following)


if __name__ == "__main__":
    start(main, check_flags)
