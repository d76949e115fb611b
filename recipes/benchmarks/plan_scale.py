r"""Predicts the time of training on many GPUs by a model. Nothing is measured here.

    python recipes/benchmarks/plan_scale.py --workdir=runs/plan_scale
    python recipes/benchmarks/plan_scale.py --workdir=runs/plan_scale \
        --model=ds_resnet50 --batch_size=32 --network_gbit=100

The program counts the multiply-adds, the outputs of layers and the bytes of the all-reduces of a
stage-I step from the network. The flags hold the constants of the machines. A GPU computes at a
share of its peak, or waits for its memory, whichever takes longer; the all-reduce is a ring that
starts after the backward pass; and the processors decode the images meanwhile. The program prints a
table with one row per number of GPUs, and writes CSV, JSON and Markdown. docs/scaling.md explains
the constants. `measure_all_reduce.py` measures the bytes between two workers.
"""

import math
import pathlib
import shlex
import sys

from absl import flags
from keras_dsnet_recipes.lib import checks
from keras_dsnet_recipes.lib import flags as shared
from keras_dsnet_recipes.lib.model_settings import MODELS
from keras_dsnet_recipes.lib.parsers import ItemsParser, ascends, whole
from keras_dsnet_recipes.lib.start import start

FLAGS = flags.FLAGS
GIB = 2.0**30
IMAGENET_IMAGES = 1_281_167
# A trained pass costs its forward pass and about twice as much backward.
TRAINED, TAUGHT = 3, 1
# An output of a layer is written and read once forward. Backward it is read twice, and its gradient
# is written and read.
TRAINED_ACCESSES, TAUGHT_ACCESSES = 6, 2
# Weights, their momentum and their gradients.
COPIES_OF_WEIGHTS = 3

shared.define_workdir("Folder that the table is written into.")
shared.define_network(MODELS)
shared.define_image_size("Side of the images in pixels.", 224, lower_bound=32)
shared.define_batch_size(64, "Images per step on each GPU.")
flags.DEFINE(
    ItemsParser(whole, "ascending numbers such as 1,8,64", lambda x: x[0] > 0 and ascends(x)),
    "gpus",
    [1, 2, 4, 8, 16, 32, 64, 128, 256],
    "Numbers of GPUs.",
)
flags.DEFINE_integer("gpus_per_machine", 8, "GPUs of one machine.", lower_bound=1)
flags.DEFINE_bool("sync_norm", True, "Whether batch norm is synchronized over all GPUs.")
shared.define_number("passes", 150, "Epochs of the training.", above=0)
flags.DEFINE_integer("train_images", IMAGENET_IMAGES, "Images of an epoch.", lower_bound=1)
shared.define_number("peak_tflops", 156.0, "Peak of a GPU: A100, TF32, data sheet.", above=0)
shared.define_number(
    "utilization", 0.25, "Share of the peak that convolutions reach. An assumption.", above=0
)
shared.define_number("memory_gbyte", 1555.0, "GB/s of the memory of a GPU: A100 40 GB.", above=0)
shared.define_number(
    "link_gbyte", 300.0, "GB/s between GPUs of a machine, one way: NVLink 3.", above=0
)
shared.define_number(
    "network_gbit", 400.0, "Gbit/s of a machine's network: 8 x A100 in a cloud.", above=0
)
shared.define_number(
    "link_latency_us", 3.0, "Microseconds of a message inside a machine. An assumption.", low=0
)
shared.define_number(
    "network_latency_us", 20.0, "Microseconds between machines. An assumption.", low=0
)
flags.DEFINE_integer("cores_per_gpu", 12, "Processor cores for each GPU.", lower_bound=1)
shared.define_number(
    "images_per_core", 531.0, "Images/s that a core prepares, of the page on input.", above=0
)


def check_flags():
    """Raises an error if the folder cannot be written or a share is above 1."""
    checks.check_workdir(FLAGS.workdir)
    if FLAGS.utilization > 1:
        raise ValueError(
            f"--utilization must be at most 1. Received: --utilization={FLAGS.utilization:g}"
        )


def main(_):
    from keras_dsnet_recipes.benchmarks.step_costs import stage_one_costs

    from keras_dsnet import applications
    from keras_dsnet.runs import write_table
    from keras_dsnet.training import SupernetTrainer
    from keras_dsnet.utils.atomic_file import atomic_file

    shape = (FLAGS.image_size, FLAGS.image_size, 3)
    network = getattr(applications, MODELS[FLAGS.model].application)(
        input_shape=shape, classifier_activation=None, synchronized=FLAGS.sync_norm
    )
    costs = stage_one_costs(SupernetTrainer(network))
    print(describe(costs))
    rows = [plan(costs, gpus) for gpus in FLAGS.gpus]
    workdir = pathlib.Path(FLAGS.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    print(write_table(rows, workdir, "scale"))
    with atomic_file(workdir / "table.md") as file:
        file.write(format_markdown(costs, rows))


def describe(costs):
    """Returns the counted costs as text."""
    one, two = memory_bytes(costs)
    return (
        f"forward passes: {costs.student_madds / 1e6:.0f}M multiply-adds of an image that are "
        f"trained, {costs.teacher_madds / 1e6:.0f}M of the teacher\n"
        f"all-reduced in a step: {costs.reduced_bytes / 1e6:.2f} MB "
        f"(gradients {4e-6 * costs.gradients:.2f}, moving statistics "
        f"{4e-6 * costs.statistics:.2f}, batch statistics {4e-6 * costs.synchronization:.2f}), "
        f"in {costs.collectives:.0f} collectives\n"
        f"memory: {one / GIB:.2f} GiB of variables and gradients, and about "
        f"{two * FLAGS.batch_size / GIB:.2f} GiB of outputs of layers at batch {FLAGS.batch_size}"
    )


def memory_bytes(costs):
    """Returns the bytes of variables and gradients, and those of the outputs for each image.

    The outputs of all trained passes are counted. Temporary buffers are not.
    """
    teacher = costs.variables
    fixed = COPIES_OF_WEIGHTS * costs.weights + (costs.variables - costs.weights) + teacher
    return 4.0 * fixed, 4.0 * costs.student_elements


def plan(costs, gpus):
    """Returns the row of the table for a number of GPUs."""
    batch = FLAGS.batch_size
    madds = TRAINED * costs.student_madds + TAUGHT * costs.teacher_madds
    arithmetic = 2 * batch * madds / (1e12 * FLAGS.peak_tflops * FLAGS.utilization)
    accesses = TRAINED_ACCESSES * costs.student_elements + TAUGHT_ACCESSES * costs.teacher_elements
    compute = max(arithmetic, 4 * batch * accesses / (1e9 * FLAGS.memory_gbyte))
    reduce = reduce_seconds(costs, gpus)
    read = batch / (FLAGS.cores_per_gpu * FLAGS.images_per_core)
    step = max(compute + reduce, read)
    images = gpus * batch / step
    hours = FLAGS.passes * FLAGS.train_images / images / 3600
    return {
        "gpus": gpus,
        "compute_ms": 1e3 * compute,
        "reduce_ms": 1e3 * reduce,
        "input_ms": 1e3 * read,
        "step_ms": 1e3 * step,
        "images_per_second": images,
        "efficiency": max(compute, read) / step,
        "hours": hours,
    }


def reduce_seconds(costs, gpus):
    """Returns the time of the all-reduces of a step, each of which is a ring or a tree.

    In a ring each of n GPUs sends 2 (n - 1) / n times the bytes. The slowest connection of the ring
    decides. The latency is that of a tree inside the machines and of one between them.
    """
    if gpus == 1:
        return 0.0
    machines = math.ceil(gpus / FLAGS.gpus_per_machine)
    rate = 1e9 * FLAGS.link_gbyte
    if machines > 1:
        rate = min(rate, 1e9 * FLAGS.network_gbit / 8)
    sent = 2 * (gpus - 1) / gpus * costs.reduced_bytes
    inside = math.ceil(math.log2(min(gpus, FLAGS.gpus_per_machine)))
    latency_us = FLAGS.link_latency_us * inside
    latency_us += FLAGS.network_latency_us * math.ceil(math.log2(machines))
    return sent / rate + 2e-6 * latency_us * costs.collectives


def format_markdown(costs, rows):
    """Returns the command, the counted costs and the table as Markdown."""
    command = shlex.join(["python", "recipes/benchmarks/plan_scale.py", *sys.argv[1:]])
    lines = [f"```\n{command}\n```\n", f"```\n{describe(costs)}\n```\n"]
    lines.append("| GPUs | compute | all-reduce | step | images/s | efficiency | training |")
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        cells = (
            row["gpus"],
            f"{row['compute_ms']:.1f} ms",
            f"{row['reduce_ms']:.1f} ms",
            f"{row['step_ms']:.1f} ms",
            f"{row['images_per_second']:,.0f}",
            f"{row['efficiency']:.2f}",
            f"{row['hours']:.1f} h",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    start(main, check_flags)
