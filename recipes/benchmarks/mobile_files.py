"""The TFLite files that `benchmark_mobile.py` compares, from their export to their report."""

import pathlib
import shlex
import sys

import numpy as np
from absl import flags
from keras_dsnet_recipes.benchmarks.timing import loading_cost

FLAGS = flags.FLAGS
COLORS = {
    "static": "#555555",
    "shared": "#0072B2",
    "fast": "#D55E00",
    "staged": "#E69F00",
    "split": "#56B4E9",
    "naive": "#CC79A7",
}
BASELINE_COLOR = "#009E73"

MOBILENETS = {f"mobilenet_v1_{alpha}": alpha for alpha in (0.5, 0.75, 1.0)}
REPRESENTATIVE_IMAGES = 8
_HEADS = ("w1", "w2", "w3", "w1_slimming")


def randomise(network, seed=0):
    """Gives every variable random values, and every width different statistics.

    A new network would hide costs: with equal statistics its widths could share tensors that
    trained widths cannot share.
    """
    generator = np.random.default_rng(seed)
    for variable in network.variables:
        if "variance" in variable.name:
            variable.assign(generator.uniform(0.5, 2.0, variable.shape))
        elif "kernel" not in variable.name:
            # Otherwise the scores of heads with many hidden units would differ only by rounding.
            scale = 0.1 if variable.name not in _HEADS else 0.5 * variable.shape[0] ** -0.5
            variable.assign_add(generator.normal(scale=scale, size=variable.shape))
    network.gates_trained = True


class MobileFiles:
    """Makes the files of one network and one quantisation in a folder, each on its first use.

    Args:
        network: A `DynamicSlimmableNetwork`.
        routes: Tuple of widths, or None if no routed file is needed.
        quantize: As in `model.export`.
        folder: Folder of the files.
        reuse: Bool, whether to keep existing files of an earlier run. Defaults to False.
        shape: Shape of an image. Defaults to that of the network.
    """

    def __init__(self, network, routes, quantize, folder, reuse=False, shape=None):
        from keras_dsnet.export.export_routed import checked_paths

        self.network = network
        self.routes = routes
        self.quantize = quantize
        self.reuse = reuse
        self.shape = shape or network.input_shape[1:]
        self.paths = checked_paths(routes, network.num_gates) if routes else []
        if routes and network.routing == "confidence":
            # Without gates there is no path of several widths.
            self.paths = [path for path in self.paths if len(set(path)) == 1]
        self._folder = pathlib.Path(folder) / (quantize or "float32")
        self._folder.mkdir(parents=True, exist_ok=True)

    def routed(self, layout):
        """Returns the path of the routed file of a layout.

        Args:
            layout: As for `model.export`, or "split" for a staged file in several files, of which
                the path is that of the trunk.
        """
        kind = {"layout": "staged", "split": True} if layout == "split" else {"layout": layout}

        def make(path):
            options = {"routes": self.routes, **kind, **self._options}
            self.network.export(path, format="litert", **options)

        return self._file(f"{layout}_{'_'.join(map(str, self.routes))}", make)

    def static(self, path):
        """Returns the path of the static file of one path through the network."""
        from keras_dsnet.export import export_subnetwork

        return self._file(
            f"static_{'_'.join(map(str, path))}",
            lambda filename: export_subnetwork(self.network, path, filename, **self._options),
        )

    def trunk(self):
        """Returns the path of a file of the layers before the first gate, without the gate."""
        from keras_dsnet.export.block_executor import BlockExecutor

        def run(image):
            executor = BlockExecutor(self.network.resolve_path(0))
            features = executor.run(self.network.sections[0], (image,))
            return {f"features_{number}": each for number, each in enumerate(features)}

        return self._converted(run, "trunk")

    def naive(self):
        """Returns the path of the naive file, in which each branch is the whole network of a route.

        It holds the weights once per width and runs the front twice.
        """
        import tensorflow as tf

        from keras_dsnet.export.graphs import RoutedParts

        parts = RoutedParts(self.network, self.routes)
        models = [self.network.subnetwork(route, fold_batch_norm=True) for route in self.routes]

        def run(image):
            scores = parts.front(image)["scores"]
            position = parts.choose(0, scores, [True] * len(models))["position"]

            def branch(index):
                if index == len(models) - 1:
                    return models[index](image)
                here = position[0] <= index
                return tf.cond(here, lambda: models[index](image), lambda: branch(index + 1))

            return {"output": branch(0), "path": tf.gather(self.routes, position)}

        return self._converted(run, f"naive_{'_'.join(map(str, self.routes))}")

    def mobilenet(self, name):
        """Returns the path of a MobileNetV1, such as "mobilenet_v1_0.5"."""
        import keras

        model = keras.applications.MobileNet(
            self.shape, MOBILENETS[name], weights=None, classes=self.network.classes
        )
        return self._converted(lambda image: {"output": model(image)}, name)

    def _converted(self, function, name):
        import tensorflow as tf

        from keras_dsnet.export.conversion import convert

        images = self._images()
        samples = (lambda: ({"image": image[None]} for image in images)) if self._is_int8 else None
        inputs = {"image": tf.TensorSpec((1, *self.shape))}
        return self._file(
            name,
            lambda path: path.write_bytes(convert(function, inputs, self.quantize, samples)),
        )

    def _file(self, name, make):
        path = self._folder / f"{name}.tflite"
        if not (self.reuse and path.exists()):
            make(path)
        return path

    @property
    def _is_int8(self):
        return self.quantize == "int8"

    @property
    def _options(self):
        images = self._images() if self._is_int8 else None
        options = {"quantize": self.quantize, "input_shape": tuple(self.shape)}
        return options | {"representative_data": images}

    def _images(self):
        # Random images suffice, because the ranges of activations do not change the latency.
        generator = np.random.default_rng(0)
        shape = (REPRESENTATIVE_IMAGES, *self.shape)
        return generator.normal(size=shape).astype("float32")


def size_of(path):
    """Returns the bytes of a file, together with the other files if it is split."""
    parts = staged_parts(path)
    return sum(each.stat().st_size for each in (path, *parts.values()))


def staged_parts(path):
    """Returns the files of a split file's segments by signature: none for other files."""
    from keras_dsnet.export.dynamic_interpreter import read_metadata

    try:
        files = read_metadata(path.read_bytes()).get("staged", {}).get("files", {})
    except ValueError:  # It has no routes.
        return {}
    return {name: path.with_name(file["name"]) for name, file in files.items()}


def is_staged(path):
    """Returns whether a routed file has the layout "staged"."""
    from keras_dsnet.export.dynamic_interpreter import read_metadata

    return read_metadata(path.read_bytes(), path).get("layout") == "staged"


def describe_sizes(routed, static):
    """Yields a line for each routed file with its size and the memory of its signatures.

    The table has the memory of staged files, whose signatures are other ones.

    Args:
        routed: Dict of filenames by name.
        static: Dict of filenames by path through the network. It can be empty.
    """
    widest = static[max(static)].stat().st_size if static else None
    for name, path in routed.items():
        size = size_of(path)
        line = f"{name}: {size / 1e6:.2f} MB"
        if widest:
            line += f", {size / widest:.3f} of the widest width alone"
        if is_staged(path):
            parts = len(staged_parts(path))
            yield f"{line}; {parts + 1} files" if parts else line
            continue
        one, both = (
            loading_cost(path, threads=FLAGS.threads, signatures=signatures)["rss_mib"]
            for signatures in (["serving_default"], ["serving_default", "bounded"])
        )
        yield f"{line}; one signature takes {one:.1f} MiB, both {both:.1f} MiB"


def write_markdown(rows, sizes, huge_share, path):
    """Writes the command, its setting and the table as Markdown for the documentation.

    Args:
        rows: Rows of figures.
        sizes: Lines of `describe_sizes`.
        huge_share: Float, smallest share of a process's memory in huge pages.
        path: Path of the file to write.
    """
    from keras_dsnet.utils.atomic_file import atomic_file

    command = shlex.join(["python", "recipes/benchmarks/benchmark_mobile.py", *sys.argv[1:]])
    others = [key[3:-4] for row in rows for key in row if key.startswith("to_") and "_min" in key]
    others = list(dict.fromkeys(others))
    titles = ["type", "file", "path", "M MAdds", "MB", "init ms", "RSS MiB", "ms, min / median"]
    titles += [f"to {other}, min / median" for other in others]
    pages = f"; in huge pages: {huge_share:.0%} or more of each" if FLAGS.huge_pages else ""
    copies = any(row["runtime"] for row in rows)
    calls = "; every run copies the image in and the outputs out" if copies else ""
    lines = [
        f"```\n{command}\n```\n",
        f"{_engine()}; threads: {FLAGS.threads}; turns: {FLAGS.rounds} of each of {FLAGS.loads} "
        f"processes{pages}{calls}.\n",
    ]
    lines += [f"- {line}" for line in sizes]
    lines += ["", f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for row in rows:
        cells = [row["quantize"], row["file"], str(row.get("path", ""))]
        cells += [f"{row['madds'] / 1e6:.1f}" if "madds" in row else ""]
        cells += [f"{row['mb']:.2f}", f"{row['init_ms']:.0f}", f"{row['rss_mib']:.0f}"]
        cells += [_pair(row, "min_ms", "median_ms")]
        cells += [_pair(row, f"to_{other}_min", f"to_{other}_median") for other in others]
        lines.append(f"| {' | '.join(cells)} |")
    with atomic_file(path) as file:
        file.write("\n".join(lines) + "\n")


def _pair(row, low, middle):
    return f"{row[low]:.3f} / {row[middle]:.3f}" if low in row else ""


def save_latency_tables(rows, metadata, folder):
    """Writes `latency_<type>_<file>.json` for each routed file and for the static files.

    Args:
        rows: Rows of figures.
        metadata: Dict of the metadata of routed files by type and name.
        folder: Folder of the tables.
    """
    from keras_dsnet.export import LatencyTable

    for quantize, name in sorted({(row["quantize"], row["file"]) for row in rows if "path" in row}):
        selected = [
            r for r in rows if (r["quantize"], r["file"]) == (quantize, name) and "path" in r
        ]
        routed = metadata.get((quantize, name))
        about = routed or next(value for key, value in metadata.items() if key[0] == quantize)
        LatencyTable(
            device=FLAGS.device,
            engine=_engine(),
            threads=FLAGS.threads,
            network=about["network"],
            input_shape=tuple(about["input_shape"]),
            num_widths=about["num_widths"],
            quantize=None if quantize == "float32" else quantize,
            layout=routed and routed["layout"],
            rows=[
                {
                    "path": [row["path"]] if isinstance(row["path"], int) else list(row["path"]),
                    **{key: row[key] for key in ("madds", "min_ms", "median_ms")},
                }
                for row in selected
            ],
        ).save(folder / f"latency_{quantize}_{name}.json")


def _engine():
    from keras_dsnet.export.latency_table import engine_of

    return f"{engine_of(FLAGS.runtime)}, XNNPACK"


def plot_latency(rows, path):
    """Draws median latency against MAdds, with a panel for each type and a line for each file."""
    from matplotlib.figure import Figure

    from keras_dsnet.utils.atomic_file import atomic_file

    types = list(dict.fromkeys(row["quantize"] for row in rows))
    figure = Figure(figsize=(5.2 * len(types), 4.4), layout="constrained")
    for axes, quantize in zip(figure.subplots(1, len(types), squeeze=False)[0], types):
        panel = [row for row in rows if row["quantize"] == quantize]
        for name in dict.fromkeys(row["file"] for row in panel):
            line = [row for row in panel if row["file"] == name]
            line.sort(key=lambda row: row.get("madds", 0))
            color = COLORS.get(name, BASELINE_COLOR)
            if "path" in line[0]:
                madds = [row["madds"] / 1e6 for row in line]
                times = [row["median_ms"] for row in line]
                axes.plot(madds, times, marker="o", color=color, label=name)
            else:
                axes.axhline(line[0]["median_ms"], color=color, linestyle=":", linewidth=1)
                axes.text(
                    0.99,
                    line[0]["median_ms"],
                    name,
                    ha="right",
                    va="bottom",
                    fontsize=7,
                    transform=axes.get_yaxis_transform(),
                )
        axes.set(title=quantize, xlabel="Multiply-adds per image (M)", ylabel="Median latency (ms)")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_file(path, "wb") as file:
        figure.savefig(file, format="png", dpi=160)
