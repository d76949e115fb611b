"""The flags of the programs; each definition checks its value while the flag is parsed.

A flag that two programs share is defined once, here or in training_flags.py. A program defines its
other flags itself, by the kinds of flags at the end of this file. Nothing here imports TensorFlow.
"""

import math

from absl import flags
from keras_dsnet_recipes.lib.parsers import (
    ItemsParser,
    NetworkPathParser,
    NumberParser,
    PathParser,
    ascends,
    whole,
)

FLAGS = flags.FLAGS
QUANTIZE = ("none", "float16", "dynamic", "int8")
LAYOUTS = ("shared", "fast")
# The number of images that an export reads, `MOST_IMAGES` of `keras_dsnet.export`. An import would
# load TensorFlow.
MOST_REPRESENTATIVE_IMAGES = 500


def define_workdir(help="Folder that the run writes everything into."):
    """Defines the required --workdir.

    Args:
        help: Str.
    """
    define_path("workdir", None, help, required=True)


def define_saved_model(name="model", required=True, help=None):
    """Defines a flag that names a trained network.

    Args:
        name: Str, name of the flag.
        required: Bool.
        help: Str. Defaults to a text that names a work directory or a file.
    """
    help = help or "Work directory of a finished stage, or a .keras file."
    define_path(name, None, help, required=required)


def define_network(names):
    """Defines --model as the name of one of the networks.

    Args:
        names: Iterable of str, of which the first is the default.
    """
    names = list(names)
    flags.DEFINE_enum("model", names[0], names, "Name of the network.")


def define_channels(alpha, alpha_help, output_stride, output_stride_help):
    """Defines --alpha and --output_stride, which scale a network.

    Args:
        alpha: Float or None, the default.
        alpha_help: Str.
        output_stride: Str or None, the default.
        output_stride_help: Str.
    """
    define_number("alpha", alpha, alpha_help, above=0)
    strides = ["8", "16", "32"]
    flags.DEFINE_enum("output_stride", output_stride, strides, output_stride_help)


def define_source(dataset=None, unset=None):
    """Defines --dataset and --data_dir.

    Args:
        dataset: Str or None, the default.
        unset: Str or None, description of the default values for the help.
    """
    images = (
        "Images: digits or distorted_digits, a TFDS name, or a folder with one folder per class."
    )
    define_path("dataset", dataset, f"{images} Defaults to {unset}." if unset else images)
    folder = "Folder of prepared TFDS data sets."
    define_path("data_dir", None, f"{folder} Defaults to {unset or 'that of TFDS'}.")


def define_train_split():
    """Defines --train_split."""
    flags.DEFINE_string(
        "train_split", None, "Split or slice of training images, such as train[:90%]."
    )


def define_eval_split():
    """Defines --eval_split."""
    flags.DEFINE_string("eval_split", None, "Split or slice of evaluation images, such as test.")


def define_evaluation(batch_size=250):
    """Defines --eval_batch_size and --strict_images.

    Args:
        batch_size: Int, the default.
    """
    flags.DEFINE_integer(
        "eval_batch_size", batch_size, "Images per batch in evaluations.", lower_bound=1
    )
    flags.DEFINE_bool("strict_images", False, "End the program at an image that cannot be read.")


def define_crop_fraction():
    """Defines --crop_fraction, for programs that evaluate classifiers."""
    define_number(
        "crop_fraction",
        None,
        "Fraction of each side that an evaluation keeps of an image that it resizes. Defaults to "
        "1 for networks that were trained on whole images (--augmentation of none or cifar), else "
        "to 0.875.",
        above=0,
        high=1,
    )


def define_representative_images():
    """Defines the flags of the images that an int8 export measures ranges on."""
    define_source(unset="that of the run in the folder of --model")
    define_train_split()
    flags.DEFINE_integer(
        "representative_images",
        200,
        "Number of training images on which the ranges of activations are measured for int8.",
        lower_bound=1,
        upper_bound=MOST_REPRESENTATIVE_IMAGES,
    )


def define_image_size(help, default=None, lower_bound=1):
    """Defines --image_size, the side of the images in pixels.

    Args:
        help: Str.
        default: Int or None.
        lower_bound: Int.
    """
    flags.DEFINE_integer("image_size", default, help, lower_bound=lower_bound)


def define_classes(default, help, lower_bound):
    """Defines --classes.

    Args:
        default: Int or None.
        help: Str.
        lower_bound: Int.
    """
    flags.DEFINE_integer("classes", default, help, lower_bound=lower_bound)


def define_routes(
    help="Candidate widths, such as 0,4,8,13. Defaults to the routes of the network.",
):
    """Defines --routes, ascending widths such as 0,4,8,13, with the default None.

    Args:
        help: Str.
    """
    parser = ItemsParser(whole, "ascending widths such as 0,4,8,13", ascends)
    _define(parser, "routes", None, help)


def define_routing():
    """Defines --routing, with the default None."""
    flags.DEFINE_enum(
        "routing",
        None,
        ["gate", "confidence", "gate+confidence"],
        "How an image gets its path. Defaults to the routing of the network.",
    )


def define_confidence(defaults="those of the network"):
    """Defines --steps and --thresholds of routing by confidence; both default to None.

    Args:
        defaults: Str, the meaning of None for --steps.
    """
    define_steps(defaults)
    parser = ItemsParser(
        float,
        "numbers from 0 to 1 such as 0.7, one for each step except the last",
        lambda items: all(0 <= item <= 1 for item in items),
    )
    help = "Thresholds of confidence, one for each step except the last."
    _define(parser, "thresholds", None, f"{help} Defaults to those of the network for its steps.")


def define_steps(defaults="those of the network"):
    """Defines --steps, the ascending widths that routing by confidence tries in turn.

    Args:
        defaults: Str, the meaning of None.
    """
    parser = ItemsParser(
        whole, "two or more ascending widths such as 0,13", lambda x: len(x) > 1 and ascends(x)
    )
    help = "Widths that routing by confidence tries in turn, such as 0,13."
    _define(parser, "steps", None, f"{help} Defaults to {defaults}.")


def define_paths(help):
    """Defines --paths, paths through a network such as 0,4,8,13 or 0-0-0-0,0-1-2-3.

    Args:
        help: Str.
    """
    parser = ItemsParser(
        lambda item: tuple(map(whole, item.split("-"))),
        "paths such as 0,4,8,13, or of several gates 0-0-0-0,0-1-2-3",
        lambda items: len({len(item) for item in items}) == 1,
    )
    _define(parser, "paths", None, help)


def define_quantize(several=False, other_layouts=()):
    """Defines --quantize and --layout of an exported file.

    Args:
        several: Bool, whether both flags can be repeated for one file of each combination.
        other_layouts: Layouts that can be named besides the defaults of a repeated flag.
    """
    if several:
        flags.DEFINE_multi_enum(
            "quantize", ["none", "int8"], QUANTIZE, "Type of the files to make. Can be repeated."
        )
        help = "Layout of the files to make. Can be repeated."
        flags.DEFINE_multi_enum("layout", LAYOUTS, [*LAYOUTS, *other_layouts], help)
        return
    flags.DEFINE_enum(
        "quantize",
        "none",
        QUANTIZE,
        "Type of the file. float16 and dynamic (int8) store only the weights in that type; int8 "
        "also computes the activations in int8.",
    )
    flags.DEFINE_enum(
        "layout",
        "shared",
        [*LAYOUTS, "staged"],
        "Layout of the file. shared has one copy of the weights; fast has a copy of the kernels "
        "for each route; staged has those of fast, in static signatures that the caller runs.",
    )


def define_batch_size(default, help):
    """Defines --batch_size.

    Args:
        default: Int or None.
        help: Str.
    """
    flags.DEFINE_integer("batch_size", default, help, lower_bound=1)


def define_quick():
    """Defines --quick."""
    help = "Train for seconds on digits only, to see that every step works."
    flags.DEFINE_bool("quick", False, help)


def define_seed(help):
    """Defines --seed, with the default 0.

    Args:
        help: Str.
    """
    flags.DEFINE_integer("seed", 0, help, lower_bound=0, upper_bound=2**31 - 1)


def define_file_timing():
    """Defines --reuse, --rounds, --loads, --huge_pages and --threads of a benchmark of files."""
    flags.DEFINE_bool("reuse", False, "Reuse the files of an earlier run without checking them.")
    define_rounds(3, "Number of turns of each process.")
    help = "Number of processes that each file is loaded in, one after another."
    flags.DEFINE_integer("loads", 6, help, lower_bound=1)
    help = "Load files into huge pages. Needs Linux and the GNU C library."
    flags.DEFINE_bool("huge_pages", False, help)
    define_threads("Number of threads of the interpreter.")


def define_rounds(default, help):
    """Defines --rounds of a benchmark.

    Args:
        default: Int.
        help: Str.
    """
    flags.DEFINE_integer("rounds", default, help, lower_bound=1)


def define_threads(help):
    """Defines --threads of an engine.

    Args:
        help: Str.
    """
    flags.DEFINE_integer("threads", 1, help, lower_bound=1)


def define_path(name, default, help, required=False):
    """Defines a flag that names a file or a folder; `~` becomes the home folder.

    Args:
        name: Str.
        default: Str or None.
        help: Str.
        required: Bool.
    """
    _define(PathParser(), name, default, help, required)


def define_number(name, default, help, low=None, high=None, above=None, below=None):
    """Defines a flag that holds a finite number.

    Args:
        name: Str.
        default: Float or None.
        help: Str.
        low: Float or None, the smallest allowed value.
        high: Float or None, the largest allowed value.
        above: Float or None, an exclusive lower bound.
        below: Float or None, an exclusive upper bound.
    """
    _define(NumberParser(low, high, above, below), name, default, help)


def define_strides(name, help):
    """Defines a list of strides, each 1 or 2, with the default None.

    Args:
        name: Str.
        help: Str.
    """
    parser = ItemsParser(whole, "strides of 1 or 2 such as 1,1,2,1,2,2", lambda x: set(x) <= {1, 2})
    _define(parser, name, None, help)


def define_blocks(name, default, help):
    """Defines a list of ascending numbers of blocks.

    Args:
        name: Str.
        default: Tuple of ints.
        help: Str.
    """
    parser = ItemsParser(whole, "ascending blocks such as 5,9", lambda x: x[0] > 0 and ascends(x))
    _define(parser, name, list(default), help)


def define_numbers(name, count, help):
    """Defines a list of finite numbers that are not negative, with the default None.

    Args:
        name: Str.
        count: Int, the number of items.
        help: Str.
    """
    example = ",".join((["1", "0.5"] * count)[:count])
    parser = ItemsParser(
        float,
        f"{count} finite numbers, 0 or more, such as {example}",
        lambda items: len(items) == count and all(0 <= item < math.inf for item in items),
    )
    _define(parser, name, None, help)


def define_ascending(name, help):
    """Defines a list of positive numbers in ascending order, with the default None.

    Args:
        name: Str.
        help: Str.
    """
    parser = ItemsParser(
        float,
        "positive numbers in ascending order, such as 0.1,0.5",
        lambda items: all(0 < item < math.inf for item in items) and sorted(set(items)) == items,
    )
    _define(parser, name, None, help)


def define_path_through(name, help):
    """Defines a path in the form that a call of the network takes, with the default None.

    Args:
        name: Str.
        help: Str.
    """
    _define(NetworkPathParser(), name, None, help)


def _define(parser, name, default, help, required=False):
    flags.DEFINE(parser, name, default, help, required=required)
