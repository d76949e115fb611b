"""What the recipes share: flags of data and machine, and how a run is set up from them."""

import contextlib
import pathlib
import sys
import unicodedata

import checks
import commands
from absl import flags
from flag_types import define_number, define_path

FLAGS = flags.FLAGS
SMALL_IMAGES = ("digits", "cifar10", "cifar100")


def define_data_flags():
    """Flags of the data set, its augmentation and the machine."""
    define_path(
        "dataset",
        "imagenet2012",
        "digits (inside scikit-learn), a TFDS name, or a folder of class folders.",
    )
    define_path("data_dir", None, "Folder of prepared TFDS data sets; none: TFDS's own.")
    flags.DEFINE_string("train_split", None, "TFDS slice to train on, such as train[:90%].")
    flags.DEFINE_string("eval_split", None, "TFDS slice to evaluate on.")
    flags.DEFINE_bool("strict_images", False, "An unreadable image ends the run.")
    flags.DEFINE_integer(
        "image_size",
        None,
        "Side of the images; none: that of --supernet, else 32 or 224, by data set.",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "classes", None, "Number of classes; none: those of the data set.", lower_bound=2
    )
    flags.DEFINE_enum(
        "augmentation",
        None,
        ["none", "cifar", "imagenet"],
        "none, cifar: pad and crop, flip; imagenet: inception crop, flip. None: by data set.",
    )
    flags.DEFINE_integer("randaugment", 0, "RandAugment operations per image.", lower_bound=0)
    define_number("randaugment_magnitude", 0.5, "Strength of RandAugment, 0 to 1.", low=0, high=1)
    flags.DEFINE_enum("auto_augment", None, ["imagenet", "cifar10"], "AutoAugment policy.")
    define_number(
        "color_jitter", 0.0, "Largest change of brightness, contrast, saturation.", low=0, high=1
    )
    define_number("random_erasing", 0.0, "Probability of erasing a rectangle.", low=0, high=1)
    flags.DEFINE_enum(
        "mixed_precision", "none", ["none", "bfloat16", "float16"], "Type to compute in."
    )
    flags.DEFINE_enum("strategy", "default", ["default", "mirrored"], "tf.distribute strategy.")
    flags.DEFINE_integer(
        "seed",
        0,
        "Of weights, order, augmentation and random widths.",
        lower_bound=0,
        upper_bound=2**31 - 1,
    )
    flags.DEFINE_integer("checkpoint_steps", 500, "Steps between checkpoints.", lower_bound=1)
    flags.DEFINE_integer("evaluate_epochs", 1, "Epochs between evaluations.", lower_bound=1)
    flags.DEFINE_integer("eval_batch_size", 250, "Images per batch of evaluation.", lower_bound=1)
    flags.DEFINE_bool("deterministic", False, "TensorFlow's op determinism: equal runs, slower.")


def check_flags():
    """Raises an error for what the flags name and is not there, or cannot be written."""
    checks.check_source({name: FLAGS[name].value for name in ("data_dir", "dataset")})
    checks.check_run_folder(FLAGS.workdir)


# Flags that do not change what is trained: they may differ at every start of a run.
EXEMPT = (
    "checkpoint_steps",
    "data_dir",
    "eval_batch_size",
    "eval_split",
    "evaluate_epochs",
    "recalibration_steps",
    "strict_images",
)
# Flags whose values may be paths: another spelling of the same one is no change.
PATHS = ("dataset", "supernet", "weights")


def open_workdir(check_only=False):
    """Returns the `WorkDir` of --workdir, tied to the flags of the run.

    Args:
        check_only: bool: raise the error that it would raise, and make nothing.
    """
    from keras_dsnet.runs import WorkDir

    modules = FLAGS.flags_by_module_dict()
    names = {flag.name for module in (__name__, sys.argv[0]) for flag in modules.get(module, [])}
    names -= {"workdir", "debug"}
    config = {name: _as_text(FLAGS[name].value) for name in sorted(names)}
    make = WorkDir.check if check_only else WorkDir
    return make(FLAGS.workdir, config, EXEMPT, growing=("epochs",), paths=PATHS)


def _as_text(value):
    # Lists are kept as absl's own lists are, whose items are strings.
    return [str(item) for item in value] if isinstance(value, list) else value


def prepare_machine():
    """Seeds, precision and determinism; returns a context for building model and optimizer."""
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


def image_size():
    """Returns the side of the images that flags and data set ask for."""
    return FLAGS.image_size or (32 if FLAGS.dataset in SMALL_IMAGES else 224)


def check_image_size(network, size, flag):
    """Raises a ValueError unless a saved network takes images of a size.

    Args:
        network: a `DynamicSlimmableNetwork`.
        size: `(height, width)`.
        flag: name of the flag that names the network, for the message.
    """
    if any(own not in (None, side) for own, side in zip(network.input_shape[1:3], size)):
        raise ValueError(
            f"--image_size must fit --{flag}={FLAGS[flag].value}, which takes images of "
            f"{network.input_shape[1:]}. Received: --image_size={FLAGS.image_size}"
        )


def load_sources():
    """Returns the sources of training and evaluation images, checked against the flags."""
    from keras_dsnet.data import load_source

    options = {
        "train_split": FLAGS.train_split,
        "eval_split": FLAGS.eval_split,
        "classes": FLAGS.classes,
        "on_bad_image": "raise" if FLAGS.strict_images else "skip",
    }
    sources = [load_source(FLAGS.dataset, FLAGS.data_dir, s, **options) for s in ("train", "eval")]
    print_source("training on", sources[0])
    print_source("evaluating on", sources[1], known_notes=sources[0].notes)
    for source in sources:
        check_apart(source, FLAGS.dataset)
    if FLAGS.batch_size > sources[0].num_examples:
        raise ValueError(
            f"--batch_size must be at most the {sources[0].num_examples} training images. "
            f"Received: --batch_size={FLAGS.batch_size}"
        )
    return sources


def check_apart(source, dataset):
    """Raises a ValueError where --workdir would be taken for class folders or images next time.

    Args:
        source: an `ImageSource`.
        dataset: the name or folder that it was loaded from.
    """
    folder = pathlib.Path(dataset).expanduser()
    workdir = pathlib.Path(FLAGS.workdir).resolve()
    paths = [pathlib.Path(path) for path in getattr(source, "paths", ())]
    tops = {path.relative_to(folder).parts[:1] for path in paths if path.is_relative_to(folder)}
    if not tops or not workdir.is_relative_to(folder.resolve()):
        return
    top = workdir.relative_to(folder.resolve()).parts[:1]
    # Hidden folders are left out, and beside split folders so are others.
    is_class = {unicodedata.normalize("NFC", part) for (part,) in tops} <= set(source.class_names)
    if not top or top in tops or (is_class and not top[0].startswith(".")):
        raise ValueError(
            f"--workdir={FLAGS.workdir} lies among the images of --dataset={dataset}, and would be "
            "taken for one of them: name a folder outside"
        )


def print_source(purpose, source, known_notes=()):
    """Prints what a data set has, and what its loader found worth a note.

    Args:
        purpose: str: what it is for.
        source: an `ImageSource`.
        known_notes: notes that were printed already.
    """
    print(f"{purpose} {source.description}", flush=True)
    for note in source.notes:
        if note not in known_notes:
            print(f"note: {note}", flush=True)


def print_learning_rate(base, scaled):
    """Prints how the learning rate of the run follows from that of the flags or the paper."""
    print(
        f"learning rate {scaled:.4g}: {base:.4g} at batch 512, scaled to "
        f"--batch_size={FLAGS.batch_size}",
        flush=True,
    )


def training_dataset(model, source, start_step, image_size):
    """Returns the training batches of a network from a step on, of images of `(height, width)`."""
    from keras_dsnet.data import training_pipeline

    default = {"digits": "none", "cifar10": "cifar", "cifar100": "cifar"}
    return training_pipeline(
        source,
        image_size=image_size,
        batch_size=FLAGS.batch_size,
        seed=FLAGS.seed,
        preprocess=model.normalization,
        start_step=start_step,
        augmentation=FLAGS.augmentation or default.get(FLAGS.dataset, "imagenet"),
        randaugment=FLAGS.randaugment,
        randaugment_magnitude=FLAGS.randaugment_magnitude,
        auto_augment=FLAGS.auto_augment,
        color_jitter=FLAGS.color_jitter,
        random_erasing=FLAGS.random_erasing,
    )


def evaluation_dataset(model, source, image_size, batch_size=None):
    """Returns the evaluation batches of a network, of images of `(height, width)`."""
    from keras_dsnet.data import evaluation_pipeline

    return evaluation_pipeline(
        source,
        image_size=image_size,
        batch_size=batch_size or FLAGS.eval_batch_size,
        preprocess=model.normalization,
    )


def fit(training, save):
    """Trains to the last epoch and saves the network, also where only the last evaluation failed.

    Args:
        training: a `TrainingRun`.
        save: a function without arguments.
    """
    try:
        training.fit()
    except Exception:
        if training.is_complete():
            save()
        raise
    # Before all that may yet fail.
    save()


def save_model(model, filename):
    """Saves a `.keras` file beside its name and renames it: the old file survives a failure."""
    from keras_dsnet.utils.atomic_file import atomic_path

    with atomic_path(filename) as beside:
        model.save(beside)


def write_labels(model, folder):
    """Writes the names of a network's classes, one a line in the order of the outputs."""
    if model.class_names is None:
        return
    from keras_dsnet.utils.atomic_file import atomic_file

    with atomic_file(folder / "labels.txt") as file:
        file.writelines(" ".join(name.split()) + "\n" for name in model.class_names)


def report(model, rows, tables, plots, log=None):
    """Prints and writes the table of `evaluate_paths`, and draws the pictures.

    Args:
        model: the network.
        rows: of `evaluate_paths`.
        tables: folder of the tables.
        plots: folder of the pictures.
        log: the CSV log of a training run, or None.
    """
    from keras_dsnet.runs import (
        plot_accuracy_against_madds,
        plot_training_curves,
        plot_width_shares,
        write_table,
    )

    print(write_table(rows, tables, "paths"), flush=True)
    plot_accuracy_against_madds(rows, plots / "accuracy_against_madds.png")
    if log is not None:
        plot_training_curves(log, plots / "training_curves.png")
    shares = [
        {model.spec.ratios[width]: share for width, share in gate.items()}
        for row in rows
        for gate in row.get("shares", [])
    ]
    if shares:
        plot_width_shares(shares, plots / "width_shares.png")


def warn_of_better_widths(rows, routes, images, how):
    """Prints a line where a width that the routes leave out is clearly better than they are.

    Args:
        rows: of `evaluate_paths`, of every width.
        routes: the candidate widths of the gates.
        images: int or None: how many images were measured.
        how: str: what can be done about it.
    """
    from keras_dsnet.training import better_excluded_widths

    better = better_excluded_widths(rows, routes, images)
    if better:
        best, routed = better[0]
        names = ",".join(map(str, routes))
        print(
            f"warning: width {best['path']}, which is not among the routes {names}, has "
            f"{best['top1']:.1%} top-1 at {best['madds'] / 1e6:.2f}M MAdds; width "
            f"{routed['path']}, which is, has {routed['top1']:.1%} at "
            f"{routed['madds'] / 1e6:.2f}M: {how}",
            flush=True,
        )


def data_flags():
    """Returns the flags of data set, augmentation and machine as the next stage takes them."""
    names = ("dataset", "data_dir", "train_split", "eval_split", "strict_images", "augmentation")
    names += ("randaugment", "randaugment_magnitude", "auto_augment", "color_jitter")
    names += ("random_erasing", "strategy", "mixed_precision")
    given = [name for name in names if FLAGS[name].value != FLAGS[name].default]
    return [commands.flag(name, FLAGS[name].value) for name in given]
