r"""Times routed TFLite files against files of single widths or of MobileNetV1.

    python recipes/benchmarks/benchmark_mobile.py --workdir=runs/benchmark_mobile
    python recipes/benchmarks/benchmark_mobile.py --workdir=runs/benchmark_resnet \
        --model=ds_resnet50
    python recipes/benchmarks/benchmark_mobile.py m.tflite --workdir=runs/benchmark_m \
        --model=runs/gate
    python recipes/benchmarks/benchmark_mobile.py --workdir=runs/benchmark_detector \
        --detector_head=light --image_size=300 --baseline=none

Without files on the command line the benchmark exports a network: DS-MobileNet, or the one that
--model names, at 224x224 with 1000 classes, every variable random, in both layouts, float32 and
int8. For a network with one gate it also makes the naive file, with a graph per route. With several
gates it times the paths with one width at every gate, and one path with a different width at each
gate. Files on the command line are compared with the widths of --model, or without --model only
with the baselines.

The compared interpreters take turns. As in an app, each runs in a separate process, and each is
started several times, because the placement of its memory makes a process a few percent slower or
faster for its whole life. A routed file runs every pair of widths before it is timed. A route is
timed by the signature serving_default with bounds that allow only this route, so gate and branch
run as usual.

--layout=staged adds a staged file and --layout=split the same in several files. An app calls the
signatures of these files in turn and hands the features over. In a comparison with such a file, and
with --runtime=compiled, every run of every file copies the image in and the outputs out.

The program writes mobile.json, mobile.csv, table.md, latency.png and, for
`keras_dsnet.export.best_path`, a latency table of each file. Making the files takes minutes;
--reuse takes them from an earlier run in the same --workdir. The results are in
docs/results/mobile.md.
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
# The networks with random variables, and the widths of their files.
ROUTES = {
    "ds_mobilenet": (0, 4, 8, 13),
    "ds_resnet50": (0, 1, 2, 3),
    # Widths from 7 on differ by even numbers: with 6, fewer blocks fit XNNPACK's wide tiles.
    "ds_efficientnet_b0": (0, 7, 13, 19),
}
shared.define_workdir("Folder that the benchmark writes everything into.")
shared.define_saved_model(
    required=False,
    help=f"Work directory of a stage, a .keras file, or a network with random variables: "
    f"{', '.join(ROUTES)}.",
)
shared.define_routes(
    "Widths of the files to make. Defaults to four widths for a network with random variables, "
    "else to the routes of the network."
)
shared.define_paths(
    "Paths to time, of the widths of the file: 0,13, or of several gates 0-0-0-0,0-1-2-3. Defaults "
    "to every width and, with several gates, one path of different widths."
)
flags.DEFINE_bool(
    "all_widths",
    False,
    "Also time static files of the widths of --model outside its routes, for the latency table of "
    "the static files.",
)
flags.DEFINE_enum(
    "detector_head",
    None,
    ["full", "light"],
    "Make a detector, FSSD with this head, of a network with random variables. Defaults to none.",
)
shared.define_quantize(several=True, other_layouts=("staged", "split"))
flags.DEFINE_enum(
    "runtime",
    "interpreter",
    ["interpreter", "compiled"],
    "LiteRT's Interpreter, or its CompiledModel on the CPU.",
)
flags.DEFINE_bool(
    "naive", True, "Also compare with the file that the converter makes of one graph per route."
)
flags.DEFINE_multi_enum(
    "baseline", list(BASELINES), ["none", *BASELINES], "Network to compare with. Can be repeated."
)
shared.define_image_size(
    "Side in pixels of the images of a network with random variables, or of one of any image size.",
    224,
    lower_bound=32,
)
shared.define_file_timing()
flags.DEFINE_string("device", platform.machine(), "Name of this device in the latency tables.")


def check_flags(arguments):
    """Raises an error for a missing or unsuitable file, and for a mistake in the flags."""
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
    elif FLAGS.detector_head:
        raise ValueError(
            f"--detector_head is for a network with random variables: {', '.join(ROUTES)}. "
            f"Received: --detector_head={FLAGS.detector_head} with --model={FLAGS.model}"
        )
    else:
        try:
            saved = checks.check_model(find_saved(FLAGS.model), detectors=True)
            saved.check_widths(FLAGS.routes, "routes")
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}, and none of {', '.join(ROUTES)}") from None
    if FLAGS.all_widths and arguments and not FLAGS.model:
        raise ValueError("--all_widths makes files of the widths of --model: give --model")
    if FLAGS.paths and arguments and not FLAGS.model:
        raise ValueError("--paths makes files of the paths of --model: give --model")
    if not FLAGS.device.strip():
        raise ValueError("--device must name this device. Received: --device=")
    checks.check_workdir(FLAGS.workdir, folders=["files"])
    checks.check_plots()


def check_routes(name):
    """Raises a ValueError for a width of --routes that a network does not have.

    Args:
        name: Str, name of the network.
    """
    most = MODELS[name].widths - 1
    if FLAGS.routes and FLAGS.routes[-1] > most:
        raise ValueError(
            f"--routes must be widths from 0 to {most} of --model={name}. "
            f"Received: --routes={','.join(map(str, FLAGS.routes))}"
        )


def check_paths(network):
    """Raises a ValueError for a path of --paths that a network or its routes do not have."""
    for path in FLAGS.paths or ():
        network.resolve_path(as_written(path))
        if not set(path) <= set(network.routes):
            raise ValueError(
                f"--paths must have widths of the routes {network.routes}. Received: "
                f"--paths={'-'.join(map(str, path))}"
            )
        if network.routing == "confidence" and len(set(path)) > 1:
            raise ValueError(
                f"--model={FLAGS.model} routes by confidence, by which all gates have one width. "
                f"Received: --paths={'-'.join(map(str, path))}"
            )


def find_saved(name):
    """Returns the path of the saved network or detector that --model names."""
    return checks.find_model(name, filenames=("model.keras", "supernet.keras", "detector.keras"))


def make_network():
    """Returns the network of --model; a network that is only named gets random variables."""
    import keras
    from keras_dsnet.applications import DSEfficientNetB0, DSMobileNet, DSResNet50
    from keras_dsnet_recipes.benchmarks.mobile_files import randomise

    # Keras finds this class in a saved detector only after the import.
    from keras_dsnet.detection import FSSD

    name = FLAGS.model or "ds_mobilenet"
    if name in ROUTES:
        make = dict(zip(ROUTES, (DSMobileNet, DSResNet50, DSEfficientNetB0)))[name]
        shape = (FLAGS.image_size, FLAGS.image_size, 3)
        network = make(input_shape=shape, include_top=not FLAGS.detector_head)
        if FLAGS.detector_head:
            network = FSSD(network, head=FLAGS.detector_head)
        network.routes = ROUTES[name]
        randomise(network)
    else:
        network = keras.models.load_model(find_saved(name), compile=False)
    if FLAGS.routes:
        network.routes = FLAGS.routes
    return network


def compared_files(network, paths, folder):
    """Yields the files to compare, grouped by quantisation.

    Args:
        network: Network of the static files, or None for no static files.
        paths: Paths of the routed files on the command line.
        folder: Folder in which files are made.

    Yields:
        Tuple `(quantize, routed, static, others)`. The last three are dicts of filenames: routed
        files by name, static files by path through the network, other files by name.
    """
    from keras_dsnet_recipes.benchmarks.mobile_files import MobileFiles

    baselines = [name for name in FLAGS.baseline if name != "none"]
    if not paths:
        for quantize in FLAGS.quantize:
            quantize = None if quantize == "none" else quantize
            shape = network.input_shape[1:]
            if None in shape:
                shape = (FLAGS.image_size, FLAGS.image_size, shape[-1])
            files = MobileFiles(network, network.routes, quantize, folder, FLAGS.reuse, shape)
            routed = {layout: files.routed(layout) for layout in FLAGS.layout}
            static = {path: files.static(path) for path in static_paths(network, files.paths)}
            is_detector = hasattr(network, "anchors")
            naive = FLAGS.naive and network.num_gates == 1 and not is_detector
            others = {"naive": files.naive()} if naive else {}
            yield quantize, routed, static, others | {b: files.mobilenet(b) for b in baselines}
        return
    for (quantize, shape), named in named_files(paths).items():
        like = network or network_of(next(iter(named.values())), shape)
        files = MobileFiles(like, None, quantize, folder, FLAGS.reuse, shape)
        single_paths = (
            [path for file in named.values() for path in paths_of(file)] if network else []
        )
        static = {path: files.static(path) for path in static_paths(network, single_paths)}
        yield quantize, named, static, {name: files.mobilenet(name) for name in baselines}


def named_files(paths):
    """Returns the files on the command line, by type and image shape, then by name.

    Raises:
        ValueError: If two files of one type take images of different shapes and --model is given.
            Their static files would have the same paths in one latency table.
    """
    from keras_dsnet.export.dynamic_interpreter import read_metadata

    groups, used_names = {}, {"static", "naive", *FLAGS["baseline"].default}
    for path in paths:
        metadata = read_metadata(path.read_bytes(), path)
        name, number = path.stem, 2
        while name in used_names:
            name, number = f"{path.stem}_{number}", number + 1
        used_names.add(name)
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
    """Returns the paths of a routed file that are compared with static files."""
    from keras_dsnet.export.dynamic_interpreter import read_metadata
    from keras_dsnet.export.export_routed import checked_paths

    metadata = read_metadata(filename.read_bytes())
    routes = [tuple(row["path"]) for row in metadata["routes"]]
    if metadata.get("routing") == "confidence":
        return routes  # Without gates there is no path of several widths.
    return checked_paths(tuple(route[0] for route in routes), len(routes[0]))


def network_of(filename, shape):
    """Returns the properties of a file's network that the baselines need, read from the file."""
    import types

    from ai_edge_litert.interpreter import Interpreter
    from keras_dsnet_recipes.benchmarks.mobile_files import staged_parts

    # The last signature of a staged file has the outputs.
    *_, (name, part) = {"": filename, **staged_parts(filename)}.items()
    signatures = Interpreter(str(part)).get_signature_list()
    name = "serving_default" if "serving_default" in signatures else list(signatures)[-1]
    outputs = Interpreter(str(part)).get_signature_runner(name).get_output_details()
    classes = int(outputs["scores" if "boxes" in outputs else "output"]["shape"][-1])
    return types.SimpleNamespace(classes=classes, input_shape=(None, *shape), num_gates=1)


def static_paths(network, paths):
    """Returns the paths that get a static file: those of --paths, else the given ones.

    --all_widths adds every width.
    """
    if FLAGS.paths and network is not None:
        paths = FLAGS.paths
    if FLAGS.all_widths and network is not None:
        paths = [*paths, *((width,) * network.num_gates for width in range(network.num_widths))]
    return list(dict.fromkeys(paths))


def as_written(path):
    """Returns a path in the form of `model(x, path=...)`, which is an int for one gate."""
    return path[0] if len(path) == 1 else path


def timed_files(network, routed, static, others, folder):
    """Returns the files to time, with a row and the options of each.

    Args:
        network: Network of the static files, or None if there are none.
        routed: Dict of filenames by name.
        static: Dict of filenames by path through the network.
        others: Dict of filenames by name.
        folder: Folder for the files that are forced onto one route.

    Returns:
        Three dicts by name and path: filenames, rows with "path" and "madds", and the options of
        `TimedProcess`.
    """
    from keras_dsnet.export.assembly import force_route
    from keras_dsnet.export.dynamic_interpreter import read_metadata, routes_of

    files, rows, options = {}, {}, {}
    shape = None
    for name, filename in routed.items():
        content = filename.read_bytes()
        metadata = read_metadata(content)
        madds = {tuple(row["path"]): row["madds"] for row in metadata["routes"]}
        routes = routes_of(metadata)
        for path in [p for p in static if set(p) <= set(routes)] or madds:
            if metadata.get("layout") == "staged":
                files[name, path], options[name, path] = filename, {"path": path}
            else:
                forced = pathlib.Path(folder) / f"{name}_{'_'.join(map(str, path))}.tflite"
                forced.write_bytes(force_route(content, path))
                files[name, path], options[name, path] = forced, {"widths": routes}
            rows[name, path] = {"path": as_written(path)}
            shape = metadata["input_shape"]
            rows[name, path]["madds"] = madds.get(path) or network.madds(path, shape)
    for path, filename in static.items():
        files["static", path] = filename
        # All files of a group take the same images.
        rows["static", path] = {"path": as_written(path), "madds": network.madds(path, shape)}
    for name, filename in others.items():
        files[name, None], rows[name, None] = filename, {}
    return files, rows, options


def measure(network, quantize, routed, static, others):
    """Times the files in turn.

    Returns:
        Tuple of the rows, one for each path of each file and one for each other file, and the
        smallest share of a process's memory that was in huge pages.
    """
    from keras_dsnet_recipes.benchmarks.mobile_files import is_staged, size_of

    staged = {name for name, path in routed.items() if is_staged(path)}
    by_signature = staged or FLAGS.runtime == "compiled"
    common = {"threads": FLAGS.threads, "runtime": FLAGS.runtime if by_signature else None}
    with tempfile.TemporaryDirectory(dir=FLAGS.workdir) as folder:
        files, rows, options = timed_files(network, routed, static, others, folder)
        options = {key: {**common, **options.get(key, {})} for key in files}
        # The files of a path run next to each other, so that a slow machine slows all of them.
        times, huge_share = time_in_turns(
            files, options, FLAGS.loads, FLAGS.rounds, FLAGS.huge_pages, group=lambda key: key[1]
        )
    sources = routed | others | {f"static {path}": static[path] for path in static}
    costs = {
        name: loading_cost(path, **common) for name, path in sources.items() if name not in staged
    }
    for (name, path), row in rows.items():
        file_times = times[name, path]
        source = f"static {path}" if name == "static" else name
        row.update(quantize=quantize or "float32", file=name, mb=size_of(sources[source]) / 1e6)
        row["runtime"] = common["runtime"]
        row.update(costs.get(source) or loading_cost(sources[source], **options[name, path]))
        row["min_ms"], row["median_ms"] = low_and_middle(file_times)
        for other, key in (("static", ("static", path)), (FASTEST, (FASTEST, None))):
            if key in times and key != (name, path):
                low, middle = ratios(file_times, times[key])
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
    # Mistakes in the files are found before a network is loaded.
    named_files(paths)
    network = None if paths and not FLAGS.model else make_network()
    check_paths(network)
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
