r"""Times batched dynamic inference against direct calls of the same sub-networks.

    python recipes/benchmarks/benchmark_routing.py --workdir=runs/benchmark_routing
    python recipes/benchmarks/benchmark_routing.py --workdir=runs/benchmark_routing \
        --model=ds_resnet50

The benchmark makes three comparisons, each in rounds that alternate both sides in one process:
- The cost of routing where it changes nothing: a batch of 64 images that all choose the first path
  of the mix, against a direct call of this path.
- The speed of a mixed batch against its parts: a batch of 256 images with a fixed mix of paths,
  against direct calls of the groups with equal paths, one after another.
- The cost of routing by confidence: the same batch, half of which goes on from the narrowest to the
  widest width of the mix. The other side runs the layers before the first gate once, and then both
  groups of images.

The benchmark sets the choices of the gates, whose layers still run. It prints minimum and median
and writes JSON. docs/results/routing.md has the results.
"""

import itertools
import json
import pathlib

from absl import flags
from keras_dsnet_recipes.benchmarks.timing import low_and_middle, ratios, take_turns
from keras_dsnet_recipes.lib import checks
from keras_dsnet_recipes.lib import flags as shared
from keras_dsnet_recipes.lib.model_settings import MODELS
from keras_dsnet_recipes.lib.start import start

FLAGS = flags.FLAGS
shared.define_workdir("Folder that the figures are written into.")
shared.define_image_size("Side of the images in pixels.", 224, lower_bound=32)
shared.define_classes(1000, "Number of classes.", lower_bound=1)
shared.define_rounds(7, "Number of rounds of each comparison.")
shared.define_batch_size(256, "Number of images in the mixed batch.")
shared.define_network(MODELS)
shared.define_channels(
    1.0, "Multiplier of all channel counts.", "32", "Total stride; 8 or 16 for small images."
)
shared.define_paths(
    "Paths of the mix, such as 0,4,8,13 or, for four gates, 0-0-0-0,0-1-2-3. Defaults to a mix "
    "that depends on the network."
)

MIXES = {
    "ds_mobilenet": "0,4,8,13",
    "ds_resnet50": "0-0-0-0,0-0-1-1,0-1-2-3,1-0-1-2,1-1-1-1,2-2-2-2,3-0-3-0,3-3-3-3",
    "ds_efficientnet_b0": "0,4,9,19",
}


def check_flags():
    """Raises an error for a path that the network does not have or an unsuitable folder."""
    checks.check_workdir(FLAGS.workdir)
    paths, most = mixed_paths(), MODELS[FLAGS.model].widths - 1
    gates = MIXES[FLAGS.model].split(",")[0].count("-") + 1
    for path in paths:
        if len(path) != gates or max(path) > most:
            raise ValueError(
                f"--paths must be {gates} widths each, from 0 to {most}, for "
                f"--model={FLAGS.model}. Received: {'-'.join(map(str, path))}"
            )


def mixed_paths():
    """Returns the paths of the mix as tuples of widths."""
    default = [tuple(map(int, path.split("-"))) for path in MIXES[FLAGS.model].split(",")]
    paths = FLAGS.paths or default
    if len(paths) > FLAGS.batch_size:
        raise ValueError(
            f"--batch_size must be at least the {len(paths)} paths of the mix. "
            f"Received: --batch_size={FLAGS.batch_size}"
        )
    return paths


def make_model(paths):
    """Returns a network whose routes are the widths of the given paths."""
    from keras_dsnet import applications

    size = FLAGS.image_size
    model = getattr(applications, MODELS[FLAGS.model].application)(
        input_shape=(size, size, 3),
        classes=FLAGS.classes,
        alpha=FLAGS.alpha,
        output_stride=int(FLAGS.output_stride),
        routes=sorted({width for path in paths for width in path}),
    )
    for path in paths:
        model.resolve_path(path)
    model.gates_trained = True
    return model


def set_choices(model, paths):
    """Makes the gates choose a given path for each image of a batch, independently of the images.

    A gate receives the images in groups, one group after another for each width before the gate.
    """
    import numpy as np
    import tensorflow as tf

    groups = [np.arange(len(paths))]
    for gate, widths in zip(model.slimming_gates, np.transpose(paths)):
        calls = itertools.cycle([tf.constant(widths[group], tf.int32) for group in groups])
        gate.choose = lambda scores, routes, calls=calls: next(calls)
        ways = [np.concatenate([g[widths[g] == width] for g in groups]) for width in model.routes]
        groups = [group for group in ways if group.size]


def compare(name, routed, direct, images):
    """Times both sides; prints and returns minimum, median and the ratio of the times.

    Args:
        name: Str, description of the comparison.
        routed: Function without arguments that runs the routed side.
        direct: Function without arguments that runs the direct side.
        images: Int, number of images in a call of either side.
    """
    times = take_turns({"routed": routed, "direct": direct}, FLAGS.rounds)
    time_ratio = ratios(times["routed"], times["direct"])
    row = {
        "what": name,
        "routed_ms": low_and_middle(times["routed"]),
        "direct_ms": low_and_middle(times["direct"]),
        "time_ratio": time_ratio,
        "throughput_ratio": [1 / ratio for ratio in time_ratio],
    }
    row["images_per_second"] = 1e3 * images / row["routed_ms"][1]
    print(
        f"{name}: routed {row['routed_ms'][0]:.1f} / {row['routed_ms'][1]:.1f} ms, direct "
        f"{row['direct_ms'][0]:.1f} / {row['direct_ms'][1]:.1f} ms (min / median), time ratio "
        f"{row['time_ratio'][0]:.3f} / {row['time_ratio'][1]:.3f}",
        flush=True,
    )
    return row


def compare_confidence(model, images):
    """Compares routing by confidence with the groups of images that its two steps run."""
    import numpy as np
    import tensorflow as tf

    # Images of equal noise have almost equal confidences.
    contrasts = np.geomspace(0.05, 20, len(images)).reshape(-1, 1, 1, 1).astype("float32")
    images = tf.random.experimental.stateless_shuffle(images * contrasts, [0, 0])
    model.routing = "confidence"
    first, last = model.confidence_steps = model.routes[0], model.routes[-1]
    order = np.sort(tf.reduce_max(model(images, path=first), 1))
    model.thresholds = float(order[len(order) // 2 - 1 : len(order) // 2 + 1].mean())
    more = np.flatnonzero(model.route(images).numpy()[:, 0] == last)

    def run_groups():
        features, _ = model.run_section(0, None, (0, 0), images, with_scores=False)
        model.run_rest(first, features).numpy()
        model.run_rest(last, tf.gather(features, more)).numpy()

    return compare(
        f"{len(images)} images by confidence, {len(more)} of which go on from {first} to {last}",
        lambda: model(images).numpy(),
        run_groups,
        len(images),
    )


def main(_):
    import numpy as np
    import tensorflow as tf

    workdir = pathlib.Path(FLAGS.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    paths = mixed_paths()
    model = make_model(paths)
    generator = np.random.default_rng(0)
    shape = (FLAGS.batch_size, FLAGS.image_size, FLAGS.image_size, 3)
    images = tf.constant(generator.normal(size=shape).astype("float32"))

    batch, first = images[:64], paths[0]
    set_choices(model, [first] * len(batch))
    rows = [
        compare(
            f"{len(batch)} images, all on path {first}",
            lambda: model(batch).numpy(),
            lambda: model(batch, path=first).numpy(),
            len(batch),
        )
    ]

    chosen = generator.permutation(np.repeat(np.arange(len(paths)), len(images) // len(paths)))
    images = images[: len(chosen)]
    set_choices(model, [paths[index] for index in chosen])
    groups = [
        (path, tf.gather(images, np.flatnonzero(chosen == index)))
        for index, path in enumerate(paths)
    ]
    mixed = compare(
        f"{len(chosen)} images, a mix of {paths}",
        lambda: model(images).numpy(),
        lambda: [model(group, path=path).numpy() for path, group in groups],
        len(chosen),
    )
    rows.append(mixed)
    rows.append(compare_confidence(model, images))
    (workdir / "routing.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    start(main, check_flags)
