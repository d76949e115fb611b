r"""Times batched dynamic inference against the same sub-networks called directly.

    python recipes/benchmark_routing.py --workdir=runs/benchmark_routing

Two questions, each answered by rounds that alternate the two sides in one process:
- Does routing cost anything where it changes nothing? A batch of 64 whose images all choose the
  slimmest width, against `model(x, path="slimmest")`.
- Is a mixed batch as fast as its parts? A batch of 256 at a fixed mix of four widths, against the
  four groups run directly one after the other.

The gate's choices are set, its layers run. Prints minimum and median, writes JSON.
"""

import json
import pathlib
import statistics
import time

from absl import flags
from start import start

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Folder for the figures.", required=True)
flags.DEFINE_integer("image_size", 224, "Side of the images.", lower_bound=32)
flags.DEFINE_integer("classes", 1000, "Number of classes.", lower_bound=1)
flags.DEFINE_integer("rounds", 7, "Rounds of each comparison.", lower_bound=1)
flags.DEFINE_list("widths", ["0", "4", "8", "13"], "The widths of the mix.")


def make_model(routes):
    """Builds a network whose choices the benchmark sets."""
    from keras_dsnet.applications import DSMobileNet

    size = FLAGS.image_size
    model = DSMobileNet(input_shape=(size, size, 3), classes=FLAGS.classes, routes=routes)
    model.gates_trained = True
    return model


def set_choices(model, choices):
    """Makes the gate choose given widths for a batch, whatever the images are."""
    import tensorflow as tf

    (gate,) = model.slimming_gates
    fixed = tf.constant(choices, tf.int32)
    gate.choose = lambda scores, routes: fixed


def alternate(first, second):
    """Runs two functions in turn and returns the seconds of each round."""
    times = ([], [])
    for function in (first, second):
        function()
    for _ in range(FLAGS.rounds):
        for function, seconds in zip((first, second), times):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
    return times


def summarize(name, routed, direct, images):
    """Prints and returns minimum and median of both sides, and the ratio of their times."""
    ratios = [a / b for a, b in zip(routed, direct)]
    row = {
        "what": name,
        "routed_ms": [1e3 * min(routed), 1e3 * statistics.median(routed)],
        "direct_ms": [1e3 * min(direct), 1e3 * statistics.median(direct)],
        "time_ratio": [min(routed) / min(direct), statistics.median(ratios)],
        "throughput_ratio": [min(direct) / min(routed), 1 / statistics.median(ratios)],
        "images_per_second": images / statistics.median(routed),
    }
    print(
        f"{name}: routed {row['routed_ms'][0]:.1f} / {row['routed_ms'][1]:.1f} ms, direct "
        f"{row['direct_ms'][0]:.1f} / {row['direct_ms'][1]:.1f} ms (min / median), time ratio "
        f"{row['time_ratio'][0]:.3f} / {row['time_ratio'][1]:.3f}",
        flush=True,
    )
    return row


def main(_):
    import numpy as np
    import tensorflow as tf

    workdir = pathlib.Path(FLAGS.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    widths = [int(width) for width in FLAGS.widths]
    model = make_model(tuple(sorted(widths)))
    generator = np.random.default_rng(0)
    shape = (256, FLAGS.image_size, FLAGS.image_size, 3)
    images = tf.constant(generator.normal(size=shape).astype("float32"))

    batch = images[:64]
    set_choices(model, [widths[0]] * 64)
    slimmest = alternate(lambda: model(batch).numpy(), lambda: model(batch, path=widths[0]).numpy())
    rows = [summarize(f"64 images, all at width {widths[0]}", *slimmest, 64)]

    choices = generator.permutation(np.repeat(widths, 256 // len(widths)))
    images = images[: len(choices)]
    groups = [(width, tf.gather(images, np.flatnonzero(choices == width))) for width in widths]
    set_choices(model, choices)
    mixed = alternate(
        lambda: model(images).numpy(),
        lambda: [model(group, path=width).numpy() for width, group in groups],
    )
    rows.append(summarize(f"{len(choices)} images, a mix of {widths}", *mixed, len(choices)))
    (workdir / "routing.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    start(main)
