"""A run of a program, from its work directory to the next command that it prints."""

import contextlib
import pathlib
import shlex
import signal
import sys

from absl import flags
from keras_dsnet_recipes.lib import checks, run_flags, start, supervisor
from keras_dsnet_recipes.lib.cluster import read_cluster

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
# True if the program was started as a sub-command of `keras-dsnet`.
started_as_command = False


def open_workdir(check_only=False):
    """Returns the `WorkDir` of --workdir, tied to the flags of the run.

    Args:
        check_only: Bool. If True, the flags are only checked and nothing is created.
    """
    from keras_dsnet.runs import ConfigMismatchError, WorkDir

    make = WorkDir.check if check_only else WorkDir
    if not is_chief():
        # The paths of another worker may differ from those of the chief, which the folder has.
        make = WorkDir.reader
    config = run_flags.configuration()
    try:
        return make(
            FLAGS.workdir, config, run_flags.exempt(), growing=("epochs",), paths=_paths(config)
        )
    except ConfigMismatchError as error:
        raise ValueError(error.describe("--{name}")) from None


def _paths(config):
    """Returns the names of the flags whose values are paths."""
    dataset = config.get("dataset")
    if dataset and checks.is_name(dataset, pathlib.Path(dataset).expanduser()):
        return [name for name in run_flags.PATHS if name != "dataset"]
    return run_flags.PATHS


def checks_network_first():
    """Returns whether to make the network once before a folder of images is read.

    The strategy of several machines must be made before TensorFlow is used for anything else.
    """
    return pathlib.Path(FLAGS.dataset).is_dir() and not supervisor.is_wanted()


def is_synchronized():
    """Returns whether the flags divide a batch among replicas, which need the norms of all."""
    return FLAGS.strategy != "default"


def is_chief():
    """Returns whether this process writes the results: one of several workers does."""
    return not supervisor.is_wanted() or read_cluster().index == 0


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
    multi_worker = FLAGS.strategy == supervisor.STRATEGY
    kind = tf.distribute.MultiWorkerMirroredStrategy if multi_worker else None
    strategy = (kind or tf.distribute.MirroredStrategy)()
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


def make_training(trainer, workdir, make_dataset, source, evaluate, **options):
    """Returns the `TrainingRun` that the flags describe.

    Args:
        trainer: Compiled trainer.
        workdir: `WorkDir`.
        make_dataset: Function of a start step and of the keyword arguments of a share.
        source: `ImageSource` of the training images.
        evaluate: Function without arguments that returns rows.
        **options: Further arguments of `TrainingRun`.
    """
    from keras_dsnet.runs import TrainingRun

    return TrainingRun(
        trainer,
        workdir,
        make_dataset,
        batch_size=FLAGS.batch_size,
        steps_per_epoch=source.steps_per_epoch(FLAGS.batch_size),
        epochs=FLAGS.epochs,
        checkpoint_steps=FLAGS.checkpoint_steps,
        evaluate=evaluate,
        evaluate_epochs=FLAGS.evaluate_epochs,
        class_names=source.class_names,
        num_images=source.num_examples,
        **options,
    )


def fit(training, save):
    """Trains to the last epoch and saves the network, even if the last evaluation failed.

    A network that a finished run has saved stays as it is where the run is refused.

    Args:
        training: A `TrainingRun`.
        save: Function without arguments that saves the network.

    Returns:
        Bool, whether this process goes on to write the results, as only one of several workers
        does.
    """
    try:
        with _checkpoint_at_end(training):
            training.fit()
    except Exception:
        if training.is_chief and training.holds_last_epoch():
            save()
        raise
    # The network is saved before any later step can fail.
    if training.is_chief:
        save()
    return training.is_chief


@contextlib.contextmanager
def _checkpoint_at_end(training):
    """Makes SIGTERM end a run on several machines after a step, with a checkpoint."""
    from keras_dsnet.runs import RunStoppedError

    if not supervisor.is_wanted():
        yield
        return
    number = signal.SIGTERM
    received = []

    def stop(*_):
        received.append(number)
        training.stop()

    before = signal.signal(number, stop)
    try:
        yield
        if received:
            # After the last step nothing reads the request.
            raise start.ended_by(number)
    except RunStoppedError:
        # On this worker or another one.
        raise start.ended_by(number) from None
    finally:
        signal.signal(number, before)


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
    names += ("hflip", "randaugment", "randaugment_magnitude", "auto_augment", "color_jitter")
    names += ("random_erasing", "crop_fraction", "strategy", "mixed_precision")
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
