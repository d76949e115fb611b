"""The images that the ranges of an int8 file are measured on, by flags."""

import json
import pathlib

import common
from absl import flags

FLAGS = flags.FLAGS
_SOURCE = ("dataset", "data_dir", "train_split")


def define_flags():
    """Flags of where the images come from."""
    flags.DEFINE_string(
        "dataset",
        None,
        "For int8: digits, a TFDS name or a folder of class folders, whose training images the "
        "ranges are measured on; none: what the run in --model's folder was trained on.",
    )
    flags.DEFINE_string("data_dir", None, "Folder of prepared TFDS data sets; none: the run's.")
    flags.DEFINE_string("train_split", None, "TFDS slice of --dataset; none: the run's.")
    flags.DEFINE_integer("representative_images", 200, "For int8: how many images.", lower_bound=1)


def check_flags(workdir, needed):
    """Raises an error where images are needed and not to be found, or named and not needed.

    Args:
        workdir: folder of the network's file.
        needed: whether the file is int8.
    """
    if needed:
        common.check_folders(source_flags(workdir))
        return
    for name in (*_SOURCE, "representative_images"):
        value = FLAGS[name].value
        if value != FLAGS[name].default:
            raise ValueError(
                f"Only --quantize=int8 is measured on images. Received: --{name}={value}, "
                f"--quantize={FLAGS.quantize}"
            )


def source_flags(workdir):
    """Returns the values of --dataset, --data_dir and --train_split: given, or those of the run.

    Args:
        workdir: folder of the network's file.

    Raises:
        ValueError: --dataset is not given, and the folder does not say what to take.
    """
    given = {name: FLAGS[name].value for name in _SOURCE}
    if given["dataset"]:
        return given
    # Not by `read_config`: the package loads TensorFlow, and this is told before.
    try:
        trained_on = json.loads((pathlib.Path(workdir) / "config.json").read_text("utf-8"))
        run = {name: trained_on[name] for name in _SOURCE}
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            "--quantize=int8 measures ranges on training images: name their data set by --dataset. "
            f"{workdir} is not the folder of a training run, which would say it"
        ) from None
    return {name: given[name] or run[name] for name in _SOURCE}


def representative_data(workdir, image_size, input_type):
    """Yields training images, prepared as for evaluation: arrays `[1, height, width, 3]`.

    Args:
        workdir: folder of the network's file.
        image_size: `(height, width)`.
        input_type: "float32": preprocessed; "uint8": raw pixels.
    """
    import tensorflow as tf
    from keras_dsnet.applications.ds_mobilenet import preprocess_input

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
        preprocess=tf.round if raw else preprocess_input,
    )
    for image, _ in images.take(count):
        yield image.numpy().astype(input_type)
