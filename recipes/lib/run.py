"""A run of a program, from its work directory to the next command that it prints."""

import contextlib
import pathlib
import shlex
import sys

from absl import flags
from keras_dsnet_recipes.lib import start

FLAGS = flags.FLAGS
COMMAND = "keras-dsnet"
PROGRAMS = {
    "stage1": ("imagenet_stage1.py", "train a supernet"),
    "stage2": ("imagenet_stage2.py", "train the gates of a supernet"),
    "calibrate": ("calibrate.py", "choose the thresholds of routing by confidence"),
    "evaluate": ("evaluate.py", "measure a saved network on a data set"),
    "export": ("export_mobile.py", "write a saved network as a TFLite file"),
    "evaluate-int8": ("evaluate_int8.py", "measure what int8 costs a saved network"),
    "benchmark": ("benchmarks/benchmark_mobile.py", "time TFLite files, write latency tables"),
    "demo": ("demo.py", "run all steps on handwritten digits, in minutes"),
}
# These flags do not change the training, so they can differ at every start of a run.
EXEMPT = (
    "checkpoint_steps",
    "data_dir",
    "eval_batch_size",
    "eval_split",
    "evaluate_epochs",
    "paths",
    "recalibration_steps",
    "strict_images",
    "validation_images",
)
# The values of these flags can be paths; another spelling of the same path is not a change.
PATHS = (
    "backbone",
    "dataset",
    "detector",
    "gates_from",
    "ranges",
    "supernet",
    "weights",
)
# True if the program was started as a sub-command of `keras-dsnet`.
started_as_command = False


def open_workdir(check_only=False):
    """Returns the `WorkDir` of --workdir, tied to the flags of the run.

    Args:
        check_only: Bool. If True, the flags are only checked and nothing is created.
    """
    from keras_dsnet.runs import ConfigMismatchError, WorkDir

    modules = FLAGS.flags_by_module_dict()
    own = [name for name in start.own_modules() if name != start.__name__]
    names = {flag.name for module in own for flag in modules[module]} - {"workdir"}
    config = {name: _as_text(FLAGS[name].value) for name in sorted(names)}
    make = WorkDir.check if check_only else WorkDir
    try:
        return make(FLAGS.workdir, config, EXEMPT, growing=("epochs",), paths=PATHS)
    except ConfigMismatchError as error:
        raise ValueError(error.describe("--{name}")) from None


def _as_text(value):
    # Lists are stored like the lists of absl, whose items are strings.
    return [str(item) for item in value] if isinstance(value, list) else value


def prepare_machine():
    """Sets seed, precision and determinism.

    Returns:
        Context manager in which the model and the optimizer are created.
    """
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(FLAGS.seed)
    if FLAGS.deterministic:
        tf.config.experimental.enable_op_determinism()
    if FLAGS.mixed_precision != "none":
        keras.config.set_dtype_policy(f"mixed_{FLAGS.mixed_precision}")
    if FLAGS.strategy == "default":
        return contextlib.nullcontext()
    strategy = tf.distribute.MirroredStrategy()
    replicas = strategy.num_replicas_in_sync
    if FLAGS.batch_size % replicas:
        raise ValueError(
            f"--batch_size must be a multiple of the {replicas} replicas. "
            f"Received: --batch_size={FLAGS.batch_size}"
        )
    return strategy.scope()


def print_learning_rate(base, scaled, base_batch=512):
    """Prints the learning rate of the run and the rate that it was scaled from.

    Args:
        base: Float, the rate at `base_batch`.
        scaled: Float, the rate of the run.
        base_batch: Int.
    """
    print(
        f"learning rate {scaled:.4g}: {base:.4g} at batch {base_batch}, scaled to "
        f"--batch_size={FLAGS.batch_size}",
        flush=True,
    )


def fit(training, save):
    """Trains to the last epoch and saves the network, even if the last evaluation failed.

    Args:
        training: A `TrainingRun`.
        save: Function without arguments that saves the network.
    """
    try:
        training.fit()
    except Exception:
        if training.is_complete():
            save()
        raise
    # The network is saved before any later step can fail.
    save()


def save_model(model, filename):
    """Saves a `.keras` file under another name and renames it, so that a failure keeps the old."""
    from keras_dsnet.utils.atomic_file import atomic_path

    with atomic_path(filename) as beside:
        model.save(beside)


def write_labels(model, folder):
    """Writes the names of a network's classes, one per line, in the order of the outputs."""
    if model.class_names is None:
        return
    from keras_dsnet.utils.atomic_file import atomic_file

    with atomic_file(folder / "labels.txt") as file:
        file.writelines(" ".join(name.split()) + "\n" for name in model.class_names)


def data_flags():
    """Returns the given flags of data set, augmentation and machine, for the next command."""
    names = ("dataset", "data_dir", "train_split", "eval_split", "strict_images", "augmentation")
    names += ("randaugment", "randaugment_magnitude", "auto_augment", "color_jitter")
    names += ("random_erasing", "strategy", "mixed_precision")
    given = [name for name in names if FLAGS[name].value != FLAGS[name].default]
    return [flag(name, FLAGS[name].value) for name in given]


def command(name, *arguments):
    """Returns the command line of a program, in the form in which the user started this one.

    Args:
        name: Str, name of the sub-command.
        *arguments: Arguments of the program, of which None is left out.
    """
    if started_as_command:
        words = [COMMAND, name]
    else:
        words = ["python", str(pathlib.Path(sys.argv[0]).parent / PROGRAMS[name][0])]
    return shlex.join([*words, *(str(word) for word in arguments if word is not None)])


def flag(name, value):
    """Returns `--name=value`, or None if the value is None.

    Args:
        name: Str.
        value: Str, number, list or None.
    """
    if isinstance(value, (list, tuple)):
        value = ",".join(map(str, value))
    return None if value is None else f"--{name}={value}"


def routes_hint(network):
    """Returns a hint at --routes if every width of a network is a route, otherwise "".

    Args:
        network: A `DynamicSlimmableNetwork`.
    """
    if len(network.routes) < network.num_widths:
        return ""
    return f" (with all {network.num_widths} widths; --routes, such as 0,1, chooses fewer)"


def print_end(written, next_step, following):
    """Prints the files and folders that a program has written, and the next command.

    Args:
        written: Paths of files and folders.
        next_step: Str, the purpose of the command.
        following: Str, the command.
    """
    names = [str(path) for path in written if pathlib.Path(path).exists()]
    print(f"\nwritten: {', '.join(names)}\nnext, to {next_step}:\n    {following}", flush=True)
