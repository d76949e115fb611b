"""The data, the detector, the report of a program that trains a detector."""

import importlib.util
import json
import pathlib
import zipfile

from absl import flags
from keras_dsnet_recipes.lib import checks, data, training_flags
from keras_dsnet_recipes.lib import flags as shared
from keras_dsnet_recipes.lib.model_settings import MODELS, PRESETS

FLAGS = flags.FLAGS
FILES = ("checkpoint.npz", "config.json", "detector.keras", "labels.txt", "log.csv")
METRICS = ("voc07", "voc", "coco")
AUGMENTATIONS = ("none", "flip", "ssd")
# A gate that sends a larger share of the images to one width chooses nothing.
_ONE_WIDTH = 0.99
# Images of the sheet of detections.
_SHOWN = 16


def define_data():
    """Defines the flags of images with boxes."""
    shared.define_path(
        "dataset",
        "voc/2007+2012",
        "Images with boxes: a TFDS name such as voc/2007, two of its configurations as in "
        "voc/2007+2012, a folder in the form of PASCAL VOC or COCO, or a COCO json file.",
    )
    shared.define_path(
        "data_dir",
        None,
        "Folder of prepared TFDS data sets, or of the images of a COCO json file. Defaults to that "
        "of TFDS, or to the folder of the file.",
    )
    shared.define_path(
        "ranges", None, "File with the splits of a folder, as ranges of frames. Defaults to none."
    )
    shared.define_eval_split()
    shared.define_evaluation(16)


def define_training():
    """Defines the flags of a training on images with boxes and of its evaluations."""
    shared.define_train_split()
    flags.DEFINE_integer(
        "validation_images",
        500,
        "Largest number of images of an evaluation during training, which are taken at equal "
        "distances. The last one takes all.",
        lower_bound=1,
    )
    flags.DEFINE_enum("metric", "voc07", METRICS, "Average precision: 11 points, area, or COCO.")
    flags.DEFINE_enum(
        "box_augmentation", "ssd", AUGMENTATIONS, "Augmentation of images with boxes."
    )
    flags.DEFINE_bool("hflip", None, "Mirror images. Defaults to true with augmentation.")
    flags.DEFINE_bool("difficult", True, "Train on objects that are marked as difficult.")
    shared.define_paths(
        "Paths to evaluate at the end, such as 0,7,13. Defaults to the slimmest, the middle and "
        "the widest."
    )


def define_detector():
    """Defines the flags of the backbone and of the head."""
    shared.define_path(
        "backbone",
        None,
        "Work directory or .keras file of a trained network, or imagenet, cifar10 or tiny_imagenet "
        "for weights of --model that have a name. Defaults to random weights.",
    )
    shared.define_network(MODELS)
    shared.define_channels(
        None,
        "Multiplier of all channel counts. Defaults to that of --backbone, else 1.",
        None,
        "Total stride of the backbone. Defaults to 32.",
    )
    training_flags.define_front_and_strides("Defaults to those of an output stride of 32.")
    shared.define_image_size("Side of the images in pixels.", 300, 32)
    flags.DEFINE_enum("head", "full", ["full", "light"], "Head: light is depthwise separable.")
    flags.DEFINE_integer(
        "head_channels", 112, "Channels of each level before the fusion.", lower_bound=1
    )
    flags.DEFINE_integer("pyramid", 256, "Channels of the maps of the pyramid.", lower_bound=1)
    shared.define_ascending(
        "scales",
        "Sizes of the anchors of each pyramid level and one more, as fractions of the image. "
        "Defaults to 0.1,0.2,0.37,0.54,0.71,0.88,1.05 for six levels.",
    )
    flags.DEFINE_enum(
        "norm", None, ["batch", "group"], "Norm of the head. Defaults to batch with one gate."
    )


def check_data():
    """Raises an error for a data set, a file of ranges or a package that is missing."""
    if FLAGS.dataset.endswith(".json"):
        if not pathlib.Path(FLAGS.dataset).expanduser().is_file():
            raise FileNotFoundError(f"--dataset={FLAGS.dataset}: there is no such file")
        checks.check_source({"dataset": None, "data_dir": FLAGS.data_dir})
    else:
        checks.check_source({name: FLAGS[name].value for name in ("data_dir", "dataset")})
    if FLAGS.ranges is not None and not pathlib.Path(FLAGS.ranges).is_file():
        raise FileNotFoundError(f"--ranges={FLAGS.ranges}: there is no such file")
    if (
        "metric" in FLAGS
        and FLAGS.metric == "coco"
        and importlib.util.find_spec("pycocotools") is None
    ):
        raise ValueError(
            "--metric=coco needs pycocotools, which is not installed: pip install pycocotools"
        )


def check_detector():
    """Raises an error for flags of the detector that contradict each other.

    Returns:
        Int, the number of widths of a gate, or 0 if it is not known.
    """
    settings = MODELS[FLAGS.model]
    if FLAGS.strides is not None and FLAGS.output_stride is not None:
        raise ValueError(
            "--strides and --output_stride both set the strides: give only one. Received: "
            f"--strides={','.join(map(str, FLAGS.strides))}, --output_stride={FLAGS.output_stride}"
        )
    if FLAGS.backbone is not None and FLAGS.backbone not in PRESETS:
        saved = checks.check_model(find_backbone(), "backbone")
        for name in ("alpha", "front_alpha"):
            if FLAGS[name].value is not None:
                raise ValueError(
                    f"--{name} is that of --backbone={FLAGS.backbone}. "
                    f"Received: --{name}={FLAGS[name].value:g}"
                )
        saved.check_path((saved.num_widths - 1,), "paths")
        for path in FLAGS.paths or ():
            saved.check_path(path, "paths")
        return saved.num_widths
    if FLAGS.strides is not None and len(FLAGS.strides) != settings.strides:
        raise ValueError(
            f"--strides must be {settings.strides} numbers for --model={FLAGS.model}: of the stem "
            f"and of each stage. Received: --strides={','.join(map(str, FLAGS.strides))}"
        )
    for path in FLAGS.paths or ():
        if max(path) >= settings.widths or len(path) not in (1, settings.gates):
            gates = f", or {settings.gates} of them" if settings.gates > 1 else ""
            raise ValueError(
                f"--paths must be widths from 0 to {settings.widths - 1} of --model={FLAGS.model}"
                f"{gates}. Received: --paths={'-'.join(map(str, path))}"
            )
    return settings.widths


def find_backbone():
    """Returns the path of the saved network that --backbone names."""
    return checks.find_model(FLAGS.backbone, "backbone", ("supernet.keras", "model.keras"))


def find_detector():
    """Returns the path of the saved detector that --detector names."""
    path = pathlib.Path(FLAGS.detector)
    path = path / "detector.keras" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"--detector={FLAGS.detector} is no .keras file and no work directory with "
            "detector.keras"
        )
    return path


def check_saved_detector(widths="routes"):
    """Raises an error unless --detector has the widths of --paths and of another flag.

    Args:
        widths: Str, the name of that flag.

    Returns:
        `checks.SavedNetwork` of the backbone.
    """
    path = find_detector()
    try:
        with zipfile.ZipFile(path) as archive:
            content = json.loads(archive.read("config.json"))
        saved, backbone = content["class_name"], content["config"]["backbone"]["config"]
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError):
        raise ValueError(f"--detector: {path} holds no detector, or is damaged") from None
    if saved != "FSSD":
        raise ValueError(f"--detector: {path} holds a {saved}, not an FSSD")
    network = checks.SavedNetwork(backbone, "detector")
    network.check_widths(FLAGS[widths].value, widths)
    for each in (FLAGS.paths if "paths" in FLAGS else None) or ():
        network.check_path(each, "paths")
    return network


def check_other_folder():
    """Raises an error if --workdir is the folder of --detector."""
    if find_detector().parent.resolve() == pathlib.Path(FLAGS.workdir).resolve():
        raise ValueError(
            f"--workdir={FLAGS.workdir} is the folder of --detector, which keeps its own run: "
            "name another folder"
        )


def load_detector(source=None):
    """Returns the detector of --detector.

    Args:
        source: An `ImageSource` with boxes, whose classes the detector must have. Defaults to no
            check.
    """
    import keras

    from keras_dsnet.detection import FSSD
    from keras_dsnet.detection.backbone import detector_with_dtype

    detector = keras.models.load_model(find_detector(), custom_objects={"FSSD": FSSD})
    # A saved detector has the dtype policy that it was trained with.
    detector = detector_with_dtype(detector, keras.config.dtype_policy())
    if source is not None:
        check_classes(detector, source)
        if detector.class_names is None:
            detector.class_names = source.class_names
    return detector


def check_classes(detector, source):
    """Raises an error unless a data set has the classes of the detector of --detector."""
    names, given = detector.class_names, source.class_names
    if source.num_classes != detector.classes or (names and given and tuple(given) != names):
        raise ValueError(
            f"{source.name} has the classes {', '.join(given)}, and --detector={FLAGS.detector} "
            f"has {', '.join(names or [str(detector.classes)])}"
        )


def load_evaluation_source(detector):
    """Returns the source of the evaluation images, with the classes of a detector."""
    from keras_dsnet.detection import load_detection_source

    is_file = pathlib.Path(FLAGS.dataset).expanduser().exists()
    return load_detection_source(
        FLAGS.dataset,
        FLAGS.data_dir,
        "eval",
        eval_split=FLAGS.eval_split,
        on_bad_image="raise" if FLAGS.strict_images else "skip",
        ranges=FLAGS.ranges,
        # The images may lack a class, whose index must stay that of the detector.
        class_names=detector.class_names if is_file else None,
    )


def load_sources():
    """Returns the sources of training and evaluation images, checked against the flags."""
    from keras_dsnet.detection import load_detection_source

    options = {
        "train_split": FLAGS.train_split,
        "eval_split": FLAGS.eval_split,
        "on_bad_image": "raise" if FLAGS.strict_images else "skip",
        "ranges": FLAGS.ranges,
    }
    train = load_detection_source(FLAGS.dataset, FLAGS.data_dir, "train", **options)
    # The evaluation images may lack a class, whose index must stay that of the training images.
    names = None if train.max_boxes is None else train.class_names
    evaluation = load_detection_source(
        FLAGS.dataset, FLAGS.data_dir, "eval", class_names=names, **options
    )
    data.print_source("training on", train)
    data.print_source("evaluating on", evaluation, known_notes=train.notes)
    for source in (train, evaluation):
        data.check_apart(source, FLAGS.dataset, in_classes=False)
    if FLAGS.batch_size > train.num_examples:
        raise ValueError(
            f"--batch_size must be at most the {train.num_examples} training images. "
            f"Received: --batch_size={FLAGS.batch_size}"
        )
    return train, evaluation


def make_backbone():
    """Returns the backbone that the flags describe, with the weights of --backbone."""
    import keras

    from keras_dsnet import applications
    from keras_dsnet.detection import as_backbone
    from keras_dsnet.models import with_dtype

    shape = (FLAGS.image_size, FLAGS.image_size, 3)
    output_stride = FLAGS.output_stride and int(FLAGS.output_stride)
    synchronized = FLAGS.strategy != "default"
    if FLAGS.backbone is not None and FLAGS.backbone not in PRESETS:
        network = keras.models.load_model(find_backbone())
        network = as_backbone(network, shape, FLAGS.strides, output_stride, synchronized)
        return with_dtype(network, keras.config.dtype_policy())
    return getattr(applications, MODELS[FLAGS.model].application)(
        weights=FLAGS.backbone,
        include_top=False,
        input_shape=shape,
        alpha=FLAGS.alpha,
        front_alpha=FLAGS.front_alpha,
        output_stride=output_stride if FLAGS.strides else output_stride or 32,
        strides=FLAGS.strides,
        synchronized=synchronized,
    )


def make_detector(source=None):
    """Returns the detector that the flags describe, for the classes of a data set.

    Args:
        source: An `ImageSource` with boxes. Defaults to one class, to check the flags.
    """
    from keras_dsnet.detection import FSSD

    return FSSD(
        make_backbone(),
        source.num_classes if source else 1,
        channels=FLAGS.head_channels,
        pyramid=FLAGS.pyramid,
        scales=FLAGS.scales,
        head=FLAGS.head,
        norm=FLAGS.norm,
        class_names=source.class_names if source else None,
    )


def print_detector(detector):
    """Prints the number of anchors, and the multiply-adds of the slimmest and widest path."""
    low, high = (detector.madds(path) / 1e6 for path in ("slimmest", "widest"))
    print(
        f"{len(detector.anchors)} anchors, {low:.0f}M to {high:.0f}M multiply-adds at "
        f"{detector.num_widths} widths",
        flush=True,
    )


def chosen_paths(detector):
    """Returns the paths that the last evaluation measures."""
    if FLAGS.paths is None:
        last = detector.num_widths - 1
        return sorted({0, last // 2 + last % 2, last})
    return [path[0] if len(path) == 1 else path for path in FLAGS.paths]


def training_dataset(detector, source, start_step, **shard):
    """Returns the training batches from a step on.

    Args:
        detector: `FSSD`, whose preprocessing is applied.
        source: An `ImageSource` with boxes.
        start_step: Int, step of the first batch.
        **shard: `shard_index` and `num_shards` of one of several workers.
    """
    from keras_dsnet.detection import detection_training_pipeline

    return detection_training_pipeline(
        source,
        image_size=detector.input_shape[1:3],
        batch_size=FLAGS.batch_size,
        seed=FLAGS.seed,
        preprocess=detector.backbone.normalization,
        start_step=start_step,
        augmentation=FLAGS.box_augmentation,
        hflip=FLAGS.hflip,
        difficult=FLAGS.difficult,
        **shard,
    )


def evaluation_dataset(detector, source, normalized=True, every=1):
    """Returns the evaluation batches.

    Args:
        detector: `FSSD`, whose preprocessing is applied.
        source: An `ImageSource` with boxes.
        normalized: Bool, False for pixels from 0 to 255.
        every: Int, 10 for every tenth image.
    """
    import tensorflow as tf

    from keras_dsnet.detection import detection_evaluation_pipeline

    return detection_evaluation_pipeline(
        source,
        image_size=detector.input_shape[1:3],
        batch_size=FLAGS.eval_batch_size,
        preprocess=detector.backbone.normalization if normalized else tf.identity,
        every=every,
    )


def quick_evaluation(detector, source, paths):
    """Returns a function that measures some paths on at most --validation_images images.

    Args:
        detector: `FSSD`.
        source: The `ImageSource` of the evaluation images, which are taken at equal distances.
        paths: List of paths.
    """
    from keras_dsnet.detection import evaluate_detection

    every = -(-source.num_examples // FLAGS.validation_images)
    return lambda: evaluate_detection(
        detector, evaluation_dataset(detector, source, every=every), paths, FLAGS.metric
    )


def report(detector, source, paths, folder, log):
    """Measures the average precision, prints and writes its tables, and draws the plots.

    Args:
        detector: `FSSD`.
        source: The `ImageSource` of the evaluation images.
        paths: List of paths.
        folder: Path whose folders `tables` and `plots` are written into.
        log: Path of the CSV log of the run.
    """
    from keras_dsnet.detection import class_table, evaluate_detection, plot_precision_recall
    from keras_dsnet.runs import plot_accuracy_against_madds, plot_training_curves, write_table

    paths = [*paths, *(["dynamic"] if detector.gates_trained and "dynamic" not in paths else [])]
    metrics = {}
    rows = evaluate_detection(
        detector, evaluation_dataset(detector, source), paths, FLAGS.metric, metrics=metrics
    )
    short = [{key: value for key, value in row.items() if key != "ap"} for row in rows]
    print(write_table(short, folder / "tables", "paths"), flush=True)
    print(write_table(class_table(rows[-1]), folder / "tables", "classes"), flush=True)
    _warn_of_one_width(rows)
    plots = folder / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    plot_training_curves(log, plots / "training_curves.png")
    if all(row["map"] is not None for row in rows):
        plot_accuracy_against_madds(rows, plots / "precision_against_madds.png", metric="map")
        curves = metrics[paths[-1]].curves()
        plot_precision_recall(curves, plots / "precision_recall.png", f"path {paths[-1]}")
    _draw_sheet(detector, source, paths[-1], plots / "detections.png")


def _warn_of_one_width(rows):
    for shares in rows[-1].get("shares", ()):
        width, share = max(shares.items(), key=lambda pair: pair[1])
        if share > _ONE_WIDTH:
            print(
                f"warning: the gate sends {share:.1%} of the images to width {width}: a static "
                "detector of that width does the same",
                flush=True,
            )


def _draw_sheet(detector, source, path, filename):
    import numpy as np

    from keras_dsnet.detection import plot_detections

    every = max(1, source.num_examples // _SHOWN)
    shown, targets = [], []
    batches = evaluation_dataset(detector, source, normalized=False, every=every).unbatch()
    for image, target in batches.take(_SHOWN):
        shown.append(np.clip(np.round(image), 0, 255))
        targets.append({key: np.asarray(target[key]) for key in ("boxes", "classes")})
    found = detector.detect(
        detector.preprocess_input(np.stack(shown).astype("float32")),
        path=None if path == "dynamic" else path,
    )
    plot_detections(np.stack(shown), found, detector.class_names, filename, targets)


def print_written(folder):
    """Prints the files and folders that a run has written.

    Args:
        folder: Path of the work directory.
    """
    names = ["detector.keras", "labels.txt", "log.csv", "tables", "plots"]
    written = [str(folder / name) for name in names if (folder / name).exists()]
    print(f"\nwritten: {', '.join(written)}", flush=True)
