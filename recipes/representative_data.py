"""The images that the ranges of an int8 file are measured on, by flags."""

import json
import pathlib

import checks
from absl import flags
from flag_types import define_path

FLAGS = flags.FLAGS
_SOURCE = ("dataset", "data_dir", "train_split")
# As many as an export reads: `keras_dsnet.export.representative_images.MOST_IMAGES`, which the
# package would load TensorFlow for.
_MOST_IMAGES = 500


def define_flags():
    """Flags of where the images come from."""
    define_path(
        "dataset",
        None,
        "For int8: digits, a TFDS name or a folder of class folders, whose training images the "
        "ranges are measured on; none: what the run in --model's folder was trained on.",
    )
    define_path("data_dir", None, "Folder of prepared TFDS data sets; none: the run's.")
    flags.DEFINE_string("train_split", None, "TFDS slice of --dataset; none: the run's.")
    flags.DEFINE_integer(
        "representative_images",
        200,
        "For int8: how many images.",
        lower_bound=1,
        upper_bound=_MOST_IMAGES,
    )


def check_flags(workdir, needed):
    """Raises an error where images are needed and not to be found, or named and not needed.

    Args:
        workdir: folder of the network's file.
        needed: whether the file is int8.
    """
    if needed:
        checks.check_source(source_flags(workdir))
        return
    for name in (*_SOURCE, "representative_images"):
        value = FLAGS[name].value
        if value != FLAGS[name].default:
            raise ValueError(
                f"Only --quantize=int8 is measured on images. Received: --{name}={value}, "
                f"--quantize={FLAGS.quantize}"
            )


def source_flags(workdir, names=_SOURCE, why="--quantize=int8 measures ranges on training images"):
    """Returns the values of --dataset, --data_dir and a split: given, or those of the run.

    Args:
        workdir: folder of the network's file.
        names: of these flags.
        why: str: what needs the images, for the message.

    Raises:
        ValueError: --dataset is not given, and the folder does not say what to take.
    """
    given = {name: FLAGS[name].value for name in names}
    if given["dataset"]:
        return given
    # Not by `read_config`: the package loads TensorFlow, and this is told before.
    try:
        trained_on = json.loads((pathlib.Path(workdir) / "config.json").read_text("utf-8"))
        run = {name: trained_on.get(name) for name in names} | {"dataset": trained_on["dataset"]}
        place = trained_on.get("places", {}).get("dataset")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{why}: name their data set by --dataset. "
            f"{workdir} is not the folder of a training run, which would say it"
        ) from None
    if place is not None:
        if not pathlib.Path(place).exists():
            raise FileNotFoundError(
                f"{place}, which {workdir} was trained on, does not exist any more: name the data "
                "set by --dataset"
            )
        run["dataset"] = place
    return {name: given[name] or run[name] for name in names}


def check_names(network, source):
    """Raises a ValueError where a data set has other classes than a network.

    Args:
        network: a `DynamicSlimmableNetwork`.
        source: an `ImageSource`.
    """
    names, given = network.class_names, source.class_names
    if source.num_classes > network.classes:
        raise ValueError(
            f"{source.name} has {source.num_classes} classes, the network {network.classes}"
        )
    if None not in (names, given) and names != given:
        different = [pair for pair in zip(given, names) if pair[0] != pair[1]]
        what = f"{different[0][0]!r} for {different[0][1]!r}" if different else "another number"
        raise ValueError(f"{source.name} has other classes than the network: {what}")


def representative_data(network, workdir, image_size, input_type):
    """Yields training images, prepared as for evaluation: arrays `[1, height, width, 3]`.

    Args:
        network: a `DynamicSlimmableNetwork`, which says how images are normalised.
        workdir: folder of the network's file.
        image_size: `(height, width)`.
        input_type: "float32": preprocessed; "uint8": raw pixels.
    """
    import tensorflow as tf

    from keras_dsnet.data import evaluation_pipeline, load_source

    values = source_flags(workdir)
    source = load_source(
        values["dataset"], values["data_dir"], "train", train_split=values["train_split"]
    )
    count = min(FLAGS.representative_images, source.num_examples)
    print(f"ranges of int8 are measured on {count} training images of {source.name}", flush=True)
    raw = input_type == "uint8"
    images = evaluation_pipeline(
        source,
        image_size=image_size,
        batch_size=1,
        preprocess=tf.round if raw else network.normalization,
    )
    for image, _ in images.take(count):
        yield image.numpy().astype(input_type)
