"""The images on which a program trains, evaluates or measures ranges of activations."""

import functools
import json
import pathlib
import re

from absl import flags
from keras_dsnet_recipes.lib import checks

FLAGS = flags.FLAGS
SMALL_IMAGES = (*checks.DIGITS, "cifar10", "cifar100")
PHOTOGRAPH = 224  # side of the images of a folder, in pixels
# Augmentation of data sets that are not photographs of any size.
AUGMENTATIONS = {"cifar10": "cifar", "cifar100": "cifar"} | dict.fromkeys(checks.DIGITS, "none")
TRAINING_SOURCE = ("dataset", "data_dir", "train_split")
EVALUATION_SOURCE = ("dataset", "data_dir", "eval_split")
# The default of `evaluation_pipeline`, for networks that were trained on parts of photographs.
_CROP_FRACTION = 0.875
_WHY_INT8 = "--quantize=int8 measures ranges on training images"


def image_size(default=PHOTOGRAPH):
    """Returns the side of the images in pixels, from --image_size or the data set.

    Args:
        default: Int, for data sets of photographs, or None.
    """
    return FLAGS.image_size or (32 if _without_version(FLAGS.dataset) in SMALL_IMAGES else default)


def default_augmentation(dataset):
    """Returns the augmentation that a data set has by default.

    Args:
        dataset: Str, the value of --dataset.
    """
    return AUGMENTATIONS.get(_without_version(dataset), "imagenet")


def _without_version(dataset):
    """Returns "cifar10" of "cifar10:3.0.2", which is the same data set in TFDS."""
    return (dataset or "").partition(":")[0]


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
    trained, evaluated = (source.split for source in sources)
    if may_share_images(trained, evaluated, sources[0].split_size, FLAGS.dataset):
        print(
            f"warning: the evaluation on '{evaluated}' has images of '{trained}', which is trained "
            "on: its accuracies are too high. --train_split and --eval_split choose both",
            flush=True,
        )
    if FLAGS.batch_size > sources[0].num_examples:
        raise ValueError(
            f"--batch_size must be at most the {sources[0].num_examples} training images. "
            f"Received: --batch_size={FLAGS.batch_size}"
        )
    return sources


def may_share_images(first, second, size, dataset):
    """Returns whether two splits of a data set have images in common, as far as this is known.

    Args:
        first: Str, a split in TFDS syntax, such as "train[:90%]".
        second: Str, another one.
        size: Int, the number of images of the whole split that both may be slices of.
        dataset: Str, name or folder of the data set. The splits of a folder have several names.
    """
    from keras_dsnet.data.image_source import resolve_split

    try:
        splits = [_as_in_tfds(split, dataset) for split in (first, second)]
        lengths = {split.split("[")[0]: size for split in splits}
        (name, one), (other, two) = (resolve_split(x, lengths, dataset) for x in splits)
    except (ValueError, TypeError, AttributeError, OSError):
        # The split is of no name, or of several.
        return False
    return name == other and max(one.start, two.start) < min(one.stop, two.stop)


def _as_in_tfds(split, dataset):
    """Returns a split of a folder with one name of its folder, as TFDS can read it."""
    from keras_dsnet.data.folder_layout import find_layout
    from keras_dsnet.data.load_source import existing_folder

    folder = None if dataset in checks.DIGITS else existing_folder(dataset)
    if folder is None:
        return split
    name = re.match(r"[^\[+]*", split).group()
    return re.sub(r"\W", "_", find_layout(folder).key_of(name.strip())) + split[len(name) :]


def load_evaluation_source(network, values, purpose):
    """Returns the evaluation images of a saved network, checked against it and --workdir.

    Args:
        network: A `DynamicSlimmableNetwork`.
        values: Dict of `checks.source_flags`.
        purpose: Str, see `print_source`.
    """
    from keras_dsnet.data import load_source

    source = load_source(
        values["dataset"],
        values["data_dir"],
        "eval",
        eval_split=values["eval_split"],
        on_bad_image="raise" if FLAGS.strict_images else "skip",
    )
    check_names(network, source)
    print_source(purpose, source)
    check_apart(source, values["dataset"])
    return source


def check_apart(source, dataset, in_classes=True):
    """Raises a ValueError if the next load of the data set would read --workdir as images.

    Args:
        source: An `ImageSource`.
        dataset: Str, the name or folder that it was loaded from.
        in_classes: Bool, whether any folder beside those of classes is read as another class.
    """
    from keras_dsnet.data.folder_layout import split_kind

    folder = pathlib.Path(dataset).expanduser()
    workdir = pathlib.Path(FLAGS.workdir).resolve()
    paths = [pathlib.Path(path) for path in getattr(source, "paths", ())]
    tops = {path.relative_to(folder).parts[:1] for path in paths if path.is_relative_to(folder)}
    if not tops or not workdir.is_relative_to(folder.resolve()):
        return
    top = workdir.relative_to(folder.resolve()).parts[:1]
    # The loader skips hidden folders, and any other folder next to split folders.
    is_class = in_classes and any(split_kind(part) is None for (part,) in tops)
    if not top or top in tops or (is_class and not top[0].startswith(".")):
        raise ValueError(
            f"--workdir={FLAGS.workdir} lies among the images of --dataset={dataset}, and the "
            "next run would read it as images: name a folder outside"
        )


def print_source(purpose, source, known_notes=()):
    """Prints the description of a data set and the notes of its loader.

    Args:
        purpose: Str, the use of the data set, such as "training on".
        source: An `ImageSource`.
        known_notes: Notes that have been printed before.
    """
    print(f"{purpose} {source.description}", flush=True)
    for note in source.notes:
        if note not in known_notes:
            print(f"note: {note}", flush=True)


def training_dataset(model, source, start_step, image_size, **shard):
    """Returns the training batches of a network.

    Args:
        model: `DynamicSlimmableNetwork`, whose preprocessing is applied.
        source: An `ImageSource`.
        start_step: Int, step of the first batch.
        image_size: Tuple `(height, width)` in pixels.
        **shard: `shard_index` and `num_shards` of one of several workers.
    """
    from keras_dsnet.data import training_pipeline

    return training_pipeline(
        source,
        image_size=image_size,
        batch_size=FLAGS.batch_size,
        seed=FLAGS.seed,
        preprocess=model.normalization,
        start_step=start_step,
        augmentation=FLAGS.augmentation or default_augmentation(FLAGS.dataset),
        hflip=FLAGS.hflip,
        randaugment=FLAGS.randaugment,
        randaugment_magnitude=FLAGS.randaugment_magnitude,
        auto_augment=FLAGS.auto_augment,
        color_jitter=FLAGS.color_jitter,
        random_erasing=FLAGS.random_erasing,
        **shard,
    )


def evaluation_dataset(model, source, image_size, crop_fraction=None):
    """Returns the evaluation batches of a network.

    Args:
        model: `DynamicSlimmableNetwork`, whose preprocessing is applied.
        source: An `ImageSource`.
        image_size: Tuple `(height, width)` in pixels.
        crop_fraction: Float, see `crop_of_network`. Defaults to that of `crop_of_flags`.
    """
    from keras_dsnet.data import evaluation_pipeline

    return evaluation_pipeline(
        source,
        image_size=image_size,
        batch_size=FLAGS.eval_batch_size,
        preprocess=model.normalization,
        crop_fraction=crop_fraction or crop_of_flags(),
    )


def crop_of_flags():
    """Returns the fraction of an image that the evaluations of a training program keep."""
    names = ("crop_fraction", "augmentation", "dataset")
    return crop_of_config({name: FLAGS[name].value for name in names})


def crop_of_network(network, folder):
    """Returns the fraction of an image that the evaluation of a saved network keeps.

    It is --crop_fraction, or else what the network or, in files of older versions, its run says.

    Args:
        network: `DynamicSlimmableNetwork`.
        folder: Folder of the network's file, or None for weights that have a name.
    """
    given = getattr(FLAGS, "crop_fraction", None) or network.crop_fraction
    if given or folder is None:
        return given or _CROP_FRACTION
    try:
        return crop_of_config(json.loads((pathlib.Path(folder) / "config.json").read_text("utf-8")))
    except (OSError, ValueError, AttributeError):
        return _CROP_FRACTION


def crop_of_config(config):
    """Returns the fraction of an image that the evaluations of a run keep.

    A network that was trained on whole images is evaluated on whole images.

    Args:
        config: Dict of the flags of the run.
    """
    if config.get("crop_fraction"):
        return config["crop_fraction"]
    default = default_augmentation(config.get("dataset"))
    whole = (config.get("augmentation") or default) in ("none", "cifar")
    return 1.0 if whole else _CROP_FRACTION


def training_source(workdir):
    """Returns --dataset, --data_dir and --train_split; the run of the network completes them.

    Args:
        workdir: Folder of the network's file.
    """
    return checks.source_flags(workdir, TRAINING_SOURCE, _WHY_INT8)


def check_representative_flags(workdir, needed, with_boxes=False):
    """Raises an error if needed images are missing, or if flags name images without need.

    Args:
        workdir: Folder of the network's file.
        needed: Bool, whether the file is int8.
        with_boxes: Bool, whether the data set is a detector's, which can be a json file.
    """
    if needed:
        values = training_source(workdir)
        is_json = with_boxes and pathlib.Path(values["dataset"]).expanduser().is_file()
        checks.check_source(values | ({"dataset": None} if is_json else {}))
        return
    for name in (*TRAINING_SOURCE, "representative_images"):
        value = FLAGS[name].value
        if value != FLAGS[name].default:
            raise ValueError(
                f"Only --quantize=int8 is measured on images. Received: --{name}={value}, "
                f"--quantize={FLAGS.quantize}"
            )


def check_names(network, source):
    """Raises a ValueError if a data set has other classes than a network.

    Args:
        network: A `DynamicSlimmableNetwork`.
        source: An `ImageSource`.
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


def representative_data(network, workdir, image_size, input_type, crop_fraction=None):
    """Yields training images, resized and cropped as for evaluation.

    Args:
        network: `DynamicSlimmableNetwork` or `FSSD`, whose normalization is applied.
        workdir: Folder of the network's file.
        image_size: Tuple `(height, width)` in pixels.
        input_type: Str, "float32" for preprocessed images or "uint8" for raw pixels.
        crop_fraction: Float, see `crop_of_network`, which it defaults to. Detectors see whole
            images.

    Yields:
        Array `[1, height, width, 3]` of type `input_type`.
    """
    import tensorflow as tf

    open_source, evaluation_pipeline = _opened_as(network, workdir)
    values = training_source(workdir)
    source = open_source(
        values["dataset"], values["data_dir"], "train", train_split=values["train_split"]
    )
    count = min(FLAGS.representative_images, source.num_examples)
    print(f"ranges of int8 are measured on {count} training images of {source.name}", flush=True)
    raw = input_type == "uint8"
    is_detector = hasattr(network, "anchors")
    crop = (
        {} if is_detector else {"crop_fraction": crop_fraction or crop_of_network(network, workdir)}
    )
    images = evaluation_pipeline(
        source,
        image_size=image_size,
        batch_size=1,
        preprocess=tf.round if raw else network.normalization,
        **crop,
    )
    for image, _ in images.take(count):
        yield image.numpy().astype(input_type)


def _opened_as(network, workdir):
    """Returns the functions that open and read the data set of a classifier or a detector."""
    from keras_dsnet import data, detection

    if not isinstance(network, detection.FSSD):
        return data.load_source, data.evaluation_pipeline
    ranges = _ranges_of_run(workdir)
    open_source = functools.partial(detection.load_detection_source, ranges=ranges)
    return open_source, detection.detection_evaluation_pipeline


def _ranges_of_run(workdir):
    """Returns the --ranges of a detector's run, or None if another data set is named."""
    config = pathlib.Path(workdir) / "config.json"
    if not config.is_file():
        return None
    trained_on = json.loads(config.read_text("utf-8"))
    places = trained_on.get("places", {})
    if FLAGS.dataset and str(pathlib.Path(FLAGS.dataset).expanduser().resolve()) != places.get(
        "dataset"
    ):
        return None
    return places.get("ranges") or trained_on.get("ranges")
