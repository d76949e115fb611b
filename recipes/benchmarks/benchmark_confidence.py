r"""Times TFLite files that route by confidence against static files.

    python recipes/benchmarks/benchmark_confidence.py --workdir=runs/benchmark_confidence

The network is DS-MobileNet at 224x224 with 1000 classes and random variables. Its files have four
widths, or those of --routes. The narrowest and the widest are the confidence steps. Two kinds of
images are timed. One stops at the first step, and is compared with the static file of that width.
The other goes on to the last step, and is compared with both static files less one run of the
layers that both have in common, which are timed as a file of their own.

The files take turns and each runs in several processes, as in benchmark_mobile.py. The program
writes confidence.json, confidence.csv and table.md. The results are in docs/results/mobile.md.
"""

import pathlib
import shlex
import sys
import tempfile

from absl import flags
from keras_dsnet_recipes.benchmarks.timing import low_and_middle, ratios, time_in_turns
from keras_dsnet_recipes.lib import checks
from keras_dsnet_recipes.lib import flags as shared
from keras_dsnet_recipes.lib.start import start

FLAGS = flags.FLAGS
_WIDEST = 13
shared.define_workdir("Folder that the benchmark writes everything into.")
shared.define_routes("Widths of the files. The steps are the first and the last of them.")
FLAGS.set_default("routes", "0,4,8,13")
shared.define_quantize(several=True)
shared.define_image_size("Side of the images in pixels.", 224, lower_bound=32)
shared.define_file_timing()


def check_flags():
    """Raises an error if the work directory cannot be written."""
    checks.check_workdir(FLAGS.workdir, folders=["files"])
    if len(FLAGS.routes) < 2 or FLAGS.routes[-1] > _WIDEST:
        raise ValueError(
            f"--routes must be two or more widths from 0 to {_WIDEST}. "
            f"Received: --routes={','.join(map(str, FLAGS.routes))}"
        )


def steps():
    """Returns the confidence steps, the first and the last width of the files."""
    return FLAGS.routes[0], FLAGS.routes[-1]


def make_network():
    """Returns a network with random variables that lets every image go on."""
    from keras_dsnet.applications import DSMobileNet
    from keras_dsnet_recipes.benchmarks.mobile_files import randomise

    network = DSMobileNet(input_shape=(FLAGS.image_size, FLAGS.image_size, 3))
    randomise(network)
    network.gates_trained = False
    network.routes = FLAGS.routes
    network.routing, network.confidence_steps, network.thresholds = "confidence", steps(), (1.0,)
    return network


def measure(files, folder):
    """Returns a row for each layout and each kind of images.

    Args:
        files: `MobileFiles` of one quantisation.
        folder: Folder for the files in which no image goes on.
    """
    from keras_dsnet.export.assembly import force_route

    timed = {"trunk": files.trunk()} | {step: files.static((step,)) for step in steps()}
    options, routed = {name: {"threads": FLAGS.threads} for name in timed}, {}
    for layout in FLAGS.layout:
        routed[layout] = files.routed(layout)
        stopping = pathlib.Path(folder) / f"{layout}_stops.tflite"
        stopping.write_bytes(force_route(routed[layout].read_bytes(), steps()[0]))
        timed |= {(layout, "stops"): stopping, (layout, "goes on"): routed[layout]}
        all_widths = {"threads": FLAGS.threads, "widths": FLAGS.routes}
        options |= dict.fromkeys([(layout, "stops"), (layout, "goes on")], all_widths)
    times, _ = time_in_turns(timed, options, FLAGS.loads, FLAGS.rounds, FLAGS.huge_pages)
    first, last, trunk = (times[name] for name in (*steps(), "trunk"))
    static = {"stops": first, "goes on": [a + b - c for a, b, c in zip(first, last, trunk)]}
    rows = []
    for layout, filename in routed.items():
        for image, expected in static.items():
            found = times[layout, image]
            row = {"quantize": files.quantize or "float32", "file": layout, "image": image}
            row["mb"] = filename.stat().st_size / 1e6
            row["min_ms"], row["median_ms"] = low_and_middle(found)
            row["static_min_ms"], row["static_median_ms"] = low_and_middle(expected)
            row["to_static_min"], row["to_static_median"] = ratios(found, expected)
            rows.append(row)
    return rows


def as_markdown(rows):
    """Returns the command and the table for the documentation."""
    command = shlex.join(["python", "recipes/benchmarks/benchmark_confidence.py", *sys.argv[1:]])
    titles = ["type", "file", "an image", "ms, min / median", "static files", "ratio"]
    lines = [f"```\n{command}\n```\n", f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for row in rows:
        pairs = [("min_ms", "median_ms"), ("static_min_ms", "static_median_ms")]
        pairs.append(("to_static_min", "to_static_median"))
        cells = [row["quantize"], row["file"], row["image"]]
        cells += [f"{row[low]:.3f} / {row[middle]:.3f}" for low, middle in pairs]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(_):
    from keras_dsnet_recipes.benchmarks.mobile_files import MobileFiles

    from keras_dsnet.runs import write_table
    from keras_dsnet.utils.atomic_file import atomic_file

    workdir = pathlib.Path(FLAGS.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    network, rows = make_network(), []
    for name in FLAGS.quantize:
        quantize = None if name == "none" else name
        files = MobileFiles(network, tuple(FLAGS.routes), quantize, workdir / "files", FLAGS.reuse)
        with tempfile.TemporaryDirectory(dir=workdir) as folder:
            rows += measure(files, folder)
    print(write_table(rows, workdir, "confidence"))
    with atomic_file(workdir / "table.md") as file:
        file.write(as_markdown(rows))
    print(f"\nwritten: {workdir / 'table.md'}, {workdir / 'confidence.csv'}")


if __name__ == "__main__":
    start(main, check_flags)
