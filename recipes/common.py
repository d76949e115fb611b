"""What the recipes share: flags of data and machine, and how a run is set up from them."""

import contextlib
import pathlib
import sys

from absl import flags

FLAGS = flags.FLAGS
SMALL_IMAGES = ("digits", "cifar10", "cifar100")


def define_data_flags():
    """Flags of the data set, its augmentation and the machine."""
    flags.DEFINE_string(
        "dataset",
        "imagenet2012",
        "digits (inside scikit-learn), a TFDS name, or a folder of class folders.",
    )
    flags.DEFINE_string("data_dir", None, "Folder of prepared TFDS data sets; none: TFDS's own.")
    flags.DEFINE_string("train_split", None, "TFDS slice to train on, such as train[:90%].")
    flags.DEFINE_string("eval_split", None, "TFDS slice to evaluate on.")
    flags.DEFINE_bool("strict_images", False, "An unreadable image ends the run.")
    flags.DEFINE_integer(
        "image_size",
        None,
        "Side of the images; none: that of --supernet, else 32 or 224, by data set.",
        lower_bound=1,
    )
    flags.DEFINE_integer("classes", None, "Number of classes; none: those of the data set.")
    flags.DEFINE_enum(
        "augmentation",
        None,
        ["none", "cifar", "imagenet"],
        "none, cifar: pad and crop, flip; imagenet: inception crop, flip. None: by data set.",
    )
    flags.DEFINE_integer("randaugment", 0, "RandAugment operations per image.")
    flags.DEFINE_float("randaugment_magnitude", 0.5, "Strength of RandAugment, 0 to 1.")
    flags.DEFINE_enum("auto_augment", None, ["imagenet", "cifar10"], "AutoAugment policy.")
    flags.DEFINE_float("color_jitter", 0.0, "Largest change of brightness, contrast, saturation.")
    flags.DEFINE_float("random_erasing", 0.0, "Probability of erasing a rectangle.")
    flags.DEFINE_enum(
        "mixed_precision", "none", ["none", "bfloat16", "float16"], "Type to compute in."
    )
    flags.DEFINE_enum("strategy", "default", ["default", "mirrored"], "tf.distribute strategy.")
    flags.DEFINE_integer("seed", 0, "Of weights, order, augmentation and random widths.")
    flags.DEFINE_integer("checkpoint_steps", 500, "Steps between checkpoints.", lower_bound=1)
    flags.DEFINE_integer("evaluate_epochs", 1, "Epochs between evaluations.", lower_bound=1)
    flags.DEFINE_integer("eval_batch_size", 250, "Images per batch of evaluation.", lower_bound=1)
    flags.DEFINE_bool("deterministic", False, "TensorFlow's op determinism: equal runs, slower.")


def check_flags():
    """Raises an error for folders that the flags name and that are not there."""
    check_folders({name: FLAGS[name].value for name in ("data_dir", "dataset")})
    workdir = pathlib.Path(FLAGS.workdir)
    if workdir.exists() and not workdir.is_dir():
        raise NotADirectoryError(f"--workdir={FLAGS.workdir} is a file; name a folder")


def check_folders(values):
    """Raises an error where the values of --data_dir and --dataset name a folder that is missing.

    Args:
        values: dict by the names of the flags.
    """
    for name in ("data_dir", "dataset"):
        value = values[name]
        is_path = value and (name == "data_dir" or value.startswith((".", "/", "~")))
        if is_path and not pathlib.Path(value).expanduser().is_dir():
            raise FileNotFoundError(f"--{name}={value}: there is no such folder")


def config():
    """Returns the flags that make a run what it is, and the names of those that do not."""
    modules = FLAGS.flags_by_module_dict()
    names = {flag.name for module in (__name__, sys.argv[0]) for flag in modules.get(module, [])}
    names -= {"workdir", "debug"}
    exempt = ("checkpoint_steps", "evaluate_epochs", "eval_batch_size", "data_dir")
    return {name: FLAGS[name].value for name in sorted(names)}, exempt


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
    if FLAGS.batch_size > sources[0].num_examples:
        raise ValueError(
            f"--batch_size must be at most the {sources[0].num_examples} training images. "
            f"Received: --batch_size={FLAGS.batch_size}"
        )
    return sources


def training_dataset(source, start_step, image_size):
    """Returns the training batches from a step on, of images of `(height, width)`."""
    from keras_dsnet.applications.image_classes import preprocess_input

    from keras_dsnet.data import training_pipeline

    default = {"digits": "none", "cifar10": "cifar", "cifar100": "cifar"}
    return training_pipeline(
        source,
        image_size=image_size,
        batch_size=FLAGS.batch_size,
        seed=FLAGS.seed,
        preprocess=preprocess_input,
        start_step=start_step,
        augmentation=FLAGS.augmentation or default.get(FLAGS.dataset, "imagenet"),
        randaugment=FLAGS.randaugment,
        randaugment_magnitude=FLAGS.randaugment_magnitude,
        auto_augment=FLAGS.auto_augment,
        color_jitter=FLAGS.color_jitter,
        random_erasing=FLAGS.random_erasing,
    )


def evaluation_dataset(source, image_size):
    """Returns the evaluation batches, of images of `(height, width)`."""
    from keras_dsnet.applications.image_classes import preprocess_input

    from keras_dsnet.data import evaluation_pipeline

    return evaluation_pipeline(
        source,
        image_size=image_size,
        batch_size=FLAGS.eval_batch_size,
        preprocess=preprocess_input,
    )


def save_model(model, filename):
    """Saves a `.keras` file beside its name and renames it: the old file survives a failure."""
    from keras_dsnet.utils.atomic_file import atomic_path

    with atomic_path(filename) as beside:
        model.save(beside)


def report(model, rows, workdir):
    """Prints and writes the table, and draws the pictures, into the work directory."""
    from keras_dsnet.training import (
        plot_accuracy_against_madds,
        plot_training_curves,
        plot_width_shares,
        write_table,
    )

    print(write_table(rows, workdir.tables, "paths"), flush=True)
    plot_accuracy_against_madds(rows, workdir.plots / "accuracy_against_madds.png")
    plot_training_curves(workdir.log, workdir.plots / "training_curves.png")
    shares = [
        {model.spec.ratios[width]: share for width, share in gate.items()}
        for row in rows
        for gate in row.get("shares", [])
    ]
    if shares:
        plot_width_shares(shares, workdir.plots / "width_shares.png")
