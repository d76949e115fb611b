r"""Times routed TFLite files against a file of each width alone, and against MobileNetV1.

    python recipes/benchmarks/benchmark_mobile.py --workdir=runs/benchmark_mobile
    python recipes/benchmarks/benchmark_mobile.py --workdir=runs/benchmark_resnet \
        --model=ds_resnet50
    python recipes/benchmarks/benchmark_mobile.py m.tflite --workdir=runs/benchmark_m \
        --model=runs/gate

Without files it exports DS-MobileNet, or the network that --model names, at 224x224 with 1000
classes, every variable random, in both layouts, float32 and int8, and, for one gate, the naive file
of one graph per route. With several gates it times the paths of one width throughout, and one on
which every gate takes another width. Files that are named are compared with the widths of --model;
without --model with the baselines alone.

All interpreters that are compared take turns, each in a process of its own, as an app has them, and
started anew several times: where its memory happens to lie makes a process a few percent slower or
faster for all its life. A routed file has run every pair of widths before it is timed. A route is
timed by the signature serving_default with bounds that leave no other route: gate and branch run as
ever. Writes mobile.json and .csv, table.md, latency.png and, for `keras_dsnet.models.best_path`, a
latency table of each file. Making the files takes minutes; --reuse takes those of an earlier run in
the same --workdir.
"""

import pathlib
import platform
import tempfile

from absl import flags
from keras_dsnet_recipes.benchmarks.timing import (
    loading_cost,
    low_and_middle,
    ratios,
    time_in_turns,
)
from keras_dsnet_recipes.lib import checks
from keras_dsnet_recipes.lib import flags as shared
from keras_dsnet_recipes.lib.model_settings import MODELS
from keras_dsnet_recipes.lib.start import start

FLAGS = flags.FLAGS
FASTEST = "mobilenet_v1_1.0"
# The identifier that follows the first four bytes of a TFLite file.
_TFLITE = b"TFL3"
BASELINES = ("mobilenet_v1_0.5", "mobilenet_v1_0.75", FASTEST)
# The networks of random variables, and the widths of their files.
ROUTES = {
    "ds_mobilenet": (0, 4, 8, 13),
    "ds_resnet50": (0, 1, 2, 3),
    # From 7 on an even number apart: with 6, XNNPACK's wide tiles fit fewer blocks of channels.
    "ds_efficientnet_b0": (0, 7, 13, 19),
}
shared.define_workdir("Folder of the benchmark: everything that it writes.")
shared.define_saved_model(
    required=False,
    help=f"Work directory of a stage, a .keras file, or {', '.join(ROUTES)}: random variables.",
)
shared.define_routes(
    "Widths of the files that are made. None: four of a random network, else the network's routes."
)
flags.DEFINE_bool(
    "all_widths",
    False,
    "Time a static file of every width of --model, including those outside its routes, for the "
    "latency table of the static files.",
)
shared.define_quantize(several=True)
flags.DEFINE_bool(
    "naive", True, "Compare with one graph per route, as the converter makes it unaided."
)
flags.DEFINE_multi_enum(
    "baseline", list(BASELINES), ["none", *BASELINES], "Networks to compare with; repeatable."
)
shared.define_image_size("Side of the images of a random network.", 224, lower_bound=32)
flags.DEFINE_bool("reuse", False, "Reuse the files of an earlier run without checking them.")
shared.define_rounds(3, "Turns of each process.")
flags.DEFINE_integer("loads", 6, "Processes that each file is loaded in, in turn.", lower_bound=1)
flags.DEFINE_bool("huge_pages", False, "Load files into huge pages: Linux and the GNU C library.")
shared.define_threads("Threads of the interpreter.")
flags.DEFINE_string("device", platform.machine(), "Name of this device, for the latency tables.")


def check_flags(arguments):
    """Raises an error for what the command line names and is not there."""
    known = set()
    for path in arguments:
        if not pathlib.Path(path).is_file():
            raise FileNotFoundError(f"There is no file {path}")
        place = pathlib.Path(path).resolve()
        if place in known:
            raise ValueError(f"{path} is named twice: name each file once")
        known.add(place)
    for place in known:
        with place.open("rb") as file:
            if file.read(8)[4:] != _TFLITE:
                raise ValueError(f"{place} is not a TFLite file")
    if not FLAGS.model or FLAGS.model in ROUTES:
        check_routes(FLAGS.model or next(iter(ROUTES)))
    else:
        try:
            saved = checks.check_model(checks.find_model(FLAGS.model))
            saved.check_widths(FLAGS.routes, "routes")
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}, and none of {', '.join(ROUTES)}") from None
    if FLAGS.all_widths and arguments and not FLAGS.model:
        raise ValueError("--all_widths makes files of the widths of --model: name it")
    if not FLAGS.device.strip():
        raise ValueError("--device must name this device. Received: --device=")
    checks.check_workdir(FLAGS.workdir, folders=["files"])
    checks.check_plots()


def check_routes(name):
    """Raises a ValueError for a width of --routes that a network does not have.

    Args:
        name: str, of the network.
    """
    most = MODELS[name].widths - 1
    if FLAGS.routes and FLAGS.routes[-1] > most:
        raise ValueError(
            f"--routes must be widths from 0 to {most} of --model={name}. "
            f"Received: --routes={','.join(map(str, FLAGS.routes))}"
        )


def make_network():
    """Returns the network of --model, with random variables where that is a name."""
    import keras
    from keras_dsnet.applications import DSEfficientNetB0, DSMobileNet, DSResNet50
    from keras_dsnet_recipes.benchmarks.mobile_files import randomise

    name = FLAGS.model or "ds_mobilenet"
    if name in ROUTES:
        make = dict(zip(ROUTES, (DSMobileNet, DSResNet50, DSEfficientNetB0)))[name]
        network = make(input_shape=(FLAGS.image_size, FLAGS.image_size, 3))
        network.routes = ROUTES[name]
        randomise(network)
    else:
        network = keras.models.load_model(checks.find_model(name), compile=False)
    if FLAGS.routes:
        network.routes = FLAGS.routes
    return network


def compared_files(network, paths, folder):
    """Yields the files to compare, those of one quantisation together.

    Args:
        network: what static files are made of; None: none are.
        paths: the routed files that the command line names.
        folder: where files are made.

    Yields:
        `(quantize, routed, static, others)`: dicts of filenames, of routed files by name, of
        static files by path through the network, of others by name.
    """
    from keras_dsnet_recipes.benchmarks.mobile_files import MobileFiles

    baselines = [name for name in FLAGS.baseline if name != "none"]
    if not paths:
        for quantize in FLAGS.quantize:
            quantize = None if quantize == "none" else quantize
            files = MobileFiles(network, network.routes, quantize, folder, FLAGS.reuse)
            routed = {layout: files.routed(layout) for layout in FLAGS.layout}
            static = {path: files.static(path) for path in static_paths(network, files.paths)}
            naive = FLAGS.naive and network.num_gates == 1
            others = {"naive": files.naive()} if naive else {}
            yield quantize, routed, static, others | {b: files.mobilenet(b) for b in baselines}
        return
    for (quantize, shape), named in named_files(paths).items():
        like = network or network_of(next(iter(named.values())), shape)
        files = MobileFiles(like, None, quantize, folder, FLAGS.reuse, shape)
        alone = [path for file in named.values() for path in paths_of(file)] if network else []
        static = {path: files.static(path) for path in static_paths(network, alone)}
        yield quantize, named, static, {name: files.mobilenet(name) for name in baselines}


def named_files(paths):
    """Returns the files that the command line names, by type and image shape, then by name.

    Raises:
        ValueError: with --model, two files of one type take images of different shapes: the files
            of each width would be of the same paths in one latency table.
    """
    from keras_dsnet.export.dynamic_interpreter import read_metadata

    groups, taken = {}, {"static", "naive", *FLAGS["baseline"].default}
    for path in paths:
        metadata = read_metadata(path.read_bytes(), path)
        name, number = path.stem, 2
        while name in taken:
            name, number = f"{path.stem}_{number}", number + 1
        taken.add(name)
        key = metadata["quantize"], tuple(metadata["input_shape"])
        for other in groups:
            if FLAGS.model and other[0] == key[0] and other != key:
                first = next(iter(groups[other].values()))
                raise ValueError(
                    f"Files of one type must take images of one shape: {first} takes {other[1]}, "
                    f"{path} {key[1]}. Compare them in two runs, each with a --workdir"
                )
        groups.setdefault(key, {})[name] = path
    return groups


def paths_of(filename):
    """Returns the paths of a routed file that are compared with a file of each alone."""
    from keras_dsnet.export.dynamic_interpreter import read_metadata
    from keras_dsnet.export.export_routed import checked_paths

    metadata = read_metadata(filename.read_bytes())
    routes = [tuple(row["path"]) for row in metadata["routes"]]
    if metadata.get("routing") == "confidence":
        return routes  # Without gates there is no path of several widths.
    return checked_paths(tuple(route[0] for route in routes), len(routes[0]))


def network_of(filename, shape):
    """Returns what the baselines of a file need to know of its network, which is not at hand."""
    import types

    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(filename)).get_signature_runner("serving_default")
    classes = int(runner.get_output_details()["output"]["shape"][-1])
    return types.SimpleNamespace(classes=classes, input_shape=(None, *shape), num_gates=1)


def static_paths(network, paths):
    """Returns the paths that a file is made of each: those given, with --all_widths every width."""
    if FLAGS.all_widths and network is not None:
        paths = [*paths, *((width,) * network.num_gates for width in range(network.num_widths))]
    return list(dict.fromkeys(paths))


def as_written(path):
    """Returns a path as `model(x, path=...)` takes it: with one gate an int."""
    return path[0] if len(path) == 1 else path


def timed_files(network, routed, static, others, folder):
    """Returns what is timed, a row for the figures of each, and the widths of those with routes.

    Args:
        network: of the static files; None: there are none.
        routed: dict of filenames by name.
        static: dict of filenames by path through the network.
        others: dict of filenames by name.
        folder: where files go that take one route.

    Returns:
        Three dicts by name and path: of filenames, of dicts of "path" and "madds", of widths.
    """
    from keras_dsnet.export.assembly import force_route
    from keras_dsnet.export.dynamic_interpreter import read_metadata, routes_of

    files, rows, widths = {}, {}, {}
    for name, filename in routed.items():
        content = filename.read_bytes()
        metadata = read_metadata(content)
        madds = {tuple(row["path"]): row["madds"] for row in metadata["routes"]}
        routes = routes_of(metadata)
        for path in [p for p in static if set(p) <= set(routes)] or madds:
            forced = pathlib.Path(folder) / f"{name}_{'_'.join(map(str, path))}.tflite"
            forced.write_bytes(force_route(content, path))
            files[name, path] = forced
            widths[name, path] = routes
            rows[name, path] = {"path": as_written(path)}
            rows[name, path]["madds"] = madds.get(path) or network.madds(path)
    for path, filename in static.items():
        files["static", path] = filename
        rows["static", path] = {"path": as_written(path), "madds": network.madds(path)}
    for name, filename in others.items():
        files[name, None], rows[name, None] = filename, {}
    return files, rows, widths


def measure(network, quantize, routed, static, others):
    """Times the files in turn.

    Returns:
        A row of figures for each path of each file, and for each of the others; and the least share
        of a process's memory that was in huge pages.
    """
    options = FLAGS.loads, FLAGS.rounds, FLAGS.threads, FLAGS.huge_pages
    with tempfile.TemporaryDirectory(dir=FLAGS.workdir) as folder:
        files, rows, widths = timed_files(network, routed, static, others, folder)
        # The files of a path next to each other: what slows the machine slows all of them.
        times, huge_share = time_in_turns(files, widths, *options, group=lambda key: key[1])
    sources = routed | others | {f"static {path}": static[path] for path in static}
    costs = {name: loading_cost(path, FLAGS.threads) for name, path in sources.items()}
    for (name, path), row in rows.items():
        own = times[name, path]
        source = f"static {path}" if name == "static" else name
        row.update(
            quantize=quantize or "float32", file=name, mb=sources[source].stat().st_size / 1e6
        )
        row.update(costs[source])
        row["min_ms"], row["median_ms"] = low_and_middle(own)
        for other, key in (("static", ("static", path)), (FASTEST, (FASTEST, None))):
            if key in times and key != (name, path):
                low, middle = ratios(own, times[key])
                row[f"to_{other}_min"], row[f"to_{other}_median"] = low, middle
    return list(rows.values()), huge_share


def main(argv):
    from keras_dsnet_recipes.benchmarks.mobile_files import (
        describe_sizes,
        plot_latency,
        save_latency_tables,
        write_markdown,
    )

    from keras_dsnet.export.dynamic_interpreter import read_metadata
    from keras_dsnet.runs import write_table

    workdir = pathlib.Path(FLAGS.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    paths = [pathlib.Path(path) for path in argv[1:]]
    # What is wrong with the files shows before a network is loaded.
    named_files(paths)
    network = None if paths and not FLAGS.model else make_network()
    rows, sizes, shares, metadata = [], [], [], {}
    for quantize, routed, static, others in compared_files(network, paths, workdir / "files"):
        for name, filename in routed.items():
            metadata[quantize or "float32", name] = read_metadata(filename.read_bytes())
        print(f"\ntiming {len(routed) + len(static) + len(others)} files", flush=True)
        measured, share = measure(network, quantize, routed, static, others)
        rows += measured
        shares.append(share)
        for line in describe_sizes(routed, static):
            print(line, flush=True)
            sizes.append(f"{quantize or 'float32'}, {line}")
    text = write_table(rows, workdir, "mobile")
    write_markdown(rows, sizes, min(shares), workdir / "table.md")
    save_latency_tables(rows, metadata, workdir)
    plot_latency(rows, workdir / "latency.png")
    print(f"{text}\nTables, latency tables and the plot are in {workdir}")


if __name__ == "__main__":
    start(main, check_flags, arguments=True)
