"""The flags of the programs: a definition each, which checks the value as it is parsed.

A flag that two programs have is defined here, once; a flag of one program is defined there by the
kinds of flags at the end of this file. Nothing here imports TensorFlow.
"""

import math
import pathlib

from absl import flags

FLAGS = flags.FLAGS
QUANTIZE = ("none", "float16", "dynamic", "int8")
LAYOUTS = ("shared", "fast")
# As many as an export reads: `MOST_IMAGES` of `keras_dsnet.export`, which would import TensorFlow.
MOST_REPRESENTATIVE_IMAGES = 500


def define_workdir(help="Folder of the run: everything that it writes."):
    """Defines the required --workdir.

    Args:
        help: str.
    """
    define_path("workdir", None, help, required=True)


def define_saved_model(name="model", required=True, help=None):
    """Defines a flag that names a trained network.

    Args:
        name: str, of the flag.
        required: bool.
        help: str; None: a work directory or a file.
    """
    help = help or "Work directory of a finished stage, or a .keras file."
    define_path(name, None, help, required=required)


def define_network(names):
    """Defines --model as the name of one of the networks.

    Args:
        names: iterable of str; the first is the default.
    """
    names = list(names)
    flags.DEFINE_enum("model", names[0], names, "Name of the network.")


def define_channels(alpha, alpha_help, output_stride, output_stride_help):
    """Defines --alpha and --output_stride, which scale a network.

    Args:
        alpha: float or None, the default.
        alpha_help: str.
        output_stride: str or None, the default.
        output_stride_help: str.
    """
    define_number("alpha", alpha, alpha_help, above=0)
    strides = ["8", "16", "32"]
    flags.DEFINE_enum("output_stride", output_stride, strides, output_stride_help)


def define_source(dataset=None, unset=None):
    """Defines --dataset and --data_dir.

    Args:
        dataset: str or None, the default.
        unset: str or None, what leaving both out means.
    """
    images = "digits (inside scikit-learn), a TFDS name, or a folder of class folders."
    define_path("dataset", dataset, f"{images} None: {unset}." if unset else images)
    folder = "Folder of prepared TFDS data sets."
    define_path("data_dir", None, f"{folder} None: {unset or 'the default of TFDS'}.")


def define_train_split():
    """Defines --train_split."""
    flags.DEFINE_string("train_split", None, "TFDS slice of training images, such as train[:90%].")


def define_eval_split():
    """Defines --eval_split."""
    flags.DEFINE_string("eval_split", None, "TFDS slice of evaluation images, such as test[:1000].")


def define_evaluation():
    """Defines --eval_batch_size and --strict_images."""
    flags.DEFINE_integer("eval_batch_size", 250, "Images per batch of evaluation.", lower_bound=1)
    flags.DEFINE_bool("strict_images", False, "End the program at an image that cannot be read.")


def define_representative_images():
    """Defines the flags of the images that the ranges of an int8 file are measured on."""
    define_source(unset="that of the run in --model's folder")
    define_train_split()
    flags.DEFINE_integer(
        "representative_images",
        200,
        "For int8: number of training images to measure ranges of activations on.",
        lower_bound=1,
        upper_bound=MOST_REPRESENTATIVE_IMAGES,
    )


def define_image_size(help, default=None, lower_bound=1):
    """Defines --image_size, the side of the images in pixels.

    Args:
        help: str.
        default: int or None.
        lower_bound: int.
    """
    flags.DEFINE_integer("image_size", default, help, lower_bound=lower_bound)


def define_classes(default, help, lower_bound):
    """Defines --classes.

    Args:
        default: int or None.
        help: str.
        lower_bound: int.
    """
    flags.DEFINE_integer("classes", default, help, lower_bound=lower_bound)


def define_routes(help="Widths to choose from, such as 0,4,8,13. None: the network's routes."):
    """Defines --routes, ascending widths such as 0,4,8,13; the default is None.

    Args:
        help: str.
    """
    parser = _Items(_whole, "ascending widths such as 0,4,8,13", _ascends)
    _define(parser, "routes", None, help)


def define_paths(help):
    """Defines --paths, paths through a network such as 0,4,8,13 or 0-0-0-0,0-1-2-3.

    Args:
        help: str.
    """
    parser = _Items(
        lambda item: tuple(map(_whole, item.split("-"))),
        "paths such as 0,4,8,13, or of several gates 0-0-0-0,0-1-2-3",
        lambda items: len({len(item) for item in items}) == 1,
    )
    _define(parser, "paths", None, help)


def define_quantize(several=False):
    """Defines --quantize and --layout of an exported file.

    Args:
        several: bool: both can be repeated, for one file of each combination.
    """
    if several:
        flags.DEFINE_multi_enum(
            "quantize", ["none", "int8"], QUANTIZE, "Type of the files that are made; repeatable."
        )
        flags.DEFINE_multi_enum(
            "layout", LAYOUTS, LAYOUTS, "Layout of the files that are made; repeatable."
        )
        return
    flags.DEFINE_enum(
        "quantize",
        "none",
        QUANTIZE,
        "float16 and dynamic (int8) store the weights so; int8 also computes the activations so.",
    )
    flags.DEFINE_enum(
        "layout",
        "shared",
        LAYOUTS,
        "shared: one copy of the weights. fast: a copy of the kernels for each route.",
    )


def define_batch_size(default, help):
    """Defines --batch_size.

    Args:
        default: int or None.
        help: str.
    """
    flags.DEFINE_integer("batch_size", default, help, lower_bound=1)


def define_schedule(epochs, learning_rate, unset=""):
    """Defines --batch_size, --epochs and --learning_rate of a stage.

    Args:
        epochs: int.
        learning_rate: float or None.
        unset: str, the meaning of a learning rate of None.
    """
    define_batch_size(512, "Images per step, over all replicas.")
    flags.DEFINE_integer("epochs", epochs, "Number of epochs.", lower_bound=1)
    help = f"Learning rate at batch 512; it is multiplied by --batch_size / 512.{unset}"
    define_number("learning_rate", learning_rate, help, low=0)


def define_gate_design(unset):
    """Defines --slimming_head and --share_encoder (Table 7).

    Args:
        unset: str, the meaning of None for --slimming_head and for --share_encoder.
    """
    head, encoder = unset
    flags.DEFINE_enum(
        "slimming_head",
        None,
        ["one_hot", "scalar"],
        f"Design of the slimming head (Table 7). None: {head}.",
    )
    flags.DEFINE_bool(
        "share_encoder", None, f"Both heads of a gate share W1 (Table 7). None: {encoder}."
    )


def define_variant(help):
    """Defines --variant, one of the paper's configurations.

    Args:
        help: str.
    """
    flags.DEFINE_enum("variant", None, ["S", "M", "L"], help)


def define_temperature(help):
    """Defines --temperature.

    Args:
        help: str.
    """
    define_number("temperature", 1.0, help, above=0)


def define_rounds(default, help):
    """Defines --rounds of a benchmark.

    Args:
        default: int.
        help: str.
    """
    flags.DEFINE_integer("rounds", default, help, lower_bound=1)


def define_threads(help):
    """Defines --threads of an engine.

    Args:
        help: str.
    """
    flags.DEFINE_integer("threads", 1, help, lower_bound=1)


def define_training():
    """Defines the flags of data set, augmentation and machine, which both stages have."""
    define_source("imagenet2012")
    define_train_split()
    define_eval_split()
    define_evaluation()
    define_image_size("Side of the images. None: that of --supernet, else 32 or 224 by data set.")
    define_classes(None, "Number of classes. None: that of the data set.", 2)
    flags.DEFINE_enum(
        "augmentation",
        None,
        ["none", "cifar", "imagenet"],
        "cifar: pad, crop and flip. imagenet: Inception crop and flip. None: by data set.",
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
        "Seed of weights, order, augmentation and random widths.",
        lower_bound=0,
        upper_bound=2**31 - 1,
    )
    flags.DEFINE_integer("checkpoint_steps", 500, "Steps between checkpoints.", lower_bound=1)
    flags.DEFINE_integer("evaluate_epochs", 1, "Epochs between evaluations.", lower_bound=1)
    flags.DEFINE_bool("deterministic", False, "TensorFlow's op determinism: equal runs, slower.")


class _Path(flags.ArgumentParser):
    syntactic_help = "a path; ~ is the home folder"

    def parse(self, argument):
        # Shells leave the ~ of --name=~/folder as it is.
        if not argument.startswith("~"):
            return argument
        try:
            return str(pathlib.Path(argument).expanduser())
        except RuntimeError:
            raise ValueError("must be a path; there is no such home folder") from None


class _Number(flags.FloatParser):
    """A finite number between bounds, each of which may be excluded."""

    def __init__(self, low, high, above, below):
        super().__init__()
        self._bounds = ((low, ">="), (high, "<="), (above, ">"), (below, "<"))
        bounds = [f"{sign} {bound:g}" for bound, sign in self._bounds if bound is not None]
        self.syntactic_help = f"a finite number {' and '.join(bounds)}".rstrip()

    def convert(self, argument):
        value = super().convert(argument)
        low, high, above, below = (bound for bound, _ in self._bounds)
        fits = (
            math.isfinite(value)
            and (low is None or value >= low)
            and (high is None or value <= high)
            and (above is None or value > above)
            and (below is None or value < below)
        )
        if not fits:
            raise ValueError(f"must be {self.syntactic_help}")
        return value


class _Items(flags.ArgumentParser):
    """A list separated by commas, of items that `convert` takes."""

    def __init__(self, convert, what, check):
        self.syntactic_help = what
        self._convert, self._check = convert, check

    def parse(self, argument):
        if isinstance(argument, (list, tuple)):
            return list(argument)
        try:
            items = [self._convert(item.strip()) for item in argument.split(",")]
        except ValueError:
            items = []
        if not items or not self._check(items):
            raise ValueError(f"must be {self.syntactic_help}")
        return items

    def flag_type(self):
        return "comma separated list"


def define_path(name, default, help, required=False):
    """Defines a flag that names a file or a folder; `~` becomes the home folder.

    Args:
        name: str.
        default: str or None.
        help: str.
        required: bool.
    """
    _define(_Path(), name, default, help, required)


def define_number(name, default, help, low=None, high=None, above=None, below=None):
    """Defines a flag that holds a finite number.

    Args:
        name: str.
        default: float or None.
        help: str.
        low: smallest value, or None.
        high: largest value, or None.
        above: a bound below all values, or None.
        below: a bound above all values, or None.
    """
    _define(_Number(low, high, above, below), name, default, help)


def define_strides(name, help):
    """Defines a list of strides, 1 or 2 each; the default is None.

    Args:
        name: str.
        help: str.
    """
    parser = _Items(_whole, "strides of 1 or 2 such as 1,1,2,1,2,2", lambda x: set(x) <= {1, 2})
    _define(parser, name, None, help)


def define_numbers(name, count, help):
    """Defines a list of finite numbers, 0 or more; the default is None.

    Args:
        name: str.
        count: int, how many numbers.
        help: str.
    """
    example = ",".join((["1", "0.5"] * count)[:count])
    parser = _Items(
        float,
        f"{count} finite numbers, 0 or more, such as {example}",
        lambda items: len(items) == count and all(0 <= item < math.inf for item in items),
    )
    _define(parser, name, None, help)


class _OnePath(flags.ArgumentParser):
    NAMES = ("slimmest", "widest", "largest")
    syntactic_help = "slimmest, widest, largest, a width, or one width per gate such as 0,2,1"

    def parse(self, argument):
        if argument in self.NAMES or not isinstance(argument, str):
            return argument
        try:
            widths = tuple(_whole(width.strip()) for width in argument.split(","))
        except ValueError:
            raise ValueError(f"must be {self.syntactic_help}") from None
        return widths if len(widths) > 1 else widths[0]


def define_path_through(name, help):
    """Defines a path through a network as a call of the network takes it; the default is None.

    Args:
        name: str.
        help: str.
    """
    _define(_OnePath(), name, None, help)


def _define(parser, name, default, help, required=False):
    flags.DEFINE(parser, name, default, help, required=required)


def _whole(text):
    if not text.isdecimal():
        raise ValueError(text)
    return int(text)


def _ascends(items):
    return all(a < b for a, b in zip(items, items[1:]))
