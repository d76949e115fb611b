r"""Times Table 1 of the paper: ways to run a quarter of the channels of ResNet-50's convolutions.

    python recipes/benchmarks/benchmark_slicing.py --workdir=runs/benchmark_slicing

On TensorFlow and on LiteRT with XNNPACK, one image, random weights:
- full: all channels;
- masking: all channels, multiplied by a mask that keeps the first quarter;
- indexing: kernels gathered by the indices of the channels to keep;
- slicing: the first channels of the full kernels, by `SlicedConv2D`; LiteRT's converter folds the
  slices, TensorFlow takes them of its variables in every call;
- slicing at run time: slices that the converter cannot fold (LiteRT alone);
- individual: a network that was built with a quarter of the channels.

What is chosen at run time is an input, so no engine can know it beforehand; XNNPACK leaves
convolutions whose kernels are made at run time to slower code. All but the full network are checked
to give equal features before anything is timed. The ways to run alternate in one process, each for
half a second a round. Prints a table and writes it as CSV, JSON and Markdown, with a plot.
"""

import importlib.metadata
import pathlib
import shlex
import sys
from typing import NamedTuple

import numpy as np
from absl import flags
from keras_dsnet_recipes.benchmarks.timing import low_and_middle, ratios, take_turns
from keras_dsnet_recipes.lib import checks
from keras_dsnet_recipes.lib import flags as shared
from keras_dsnet_recipes.lib.start import start

ENGINES = {
    "LiteRT": ("full", "masking", "indexing", "slicing", "slicing_at_run_time", "individual"),
    "TensorFlow": ("full", "masking", "indexing", "slicing", "individual"),
}
ALL_CHANNELS = ("full", "masking")
# Milliseconds of Table 1, on a GeForce RTX 2080 Ti.
PAPER_MS = {"full": 12.2, "masking": 12.4, "indexing": 16.6, "slicing": 7.9, "individual": 7.2}
SECONDS_PER_ROUND = 0.5
COLORS = {"slicing": "#0072B2", "individual": "#555555"}
OTHER_COLOR = "#D55E00"
# Number of bottlenecks, channels of their 3x3 convolutions, stride of the first.
RESNET_50 = ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2))
EXPANSION = 4
# One channel in four is kept, in every layer.
SHARE = 4
TOLERANCE = 1e-4

FLAGS = flags.FLAGS
shared.define_workdir("Folder for the figures.")
shared.define_image_size("Side of the image.", 224, lower_bound=32)
shared.define_rounds(9, "Rounds of the comparison.")
shared.define_threads("Threads of either engine.")
flags.DEFINE_multi_enum(
    "engine", list(ENGINES), list(ENGINES), "Which to run; repeatable.", case_sensitive=False
)


def check_flags():
    """Raises an error for a folder that cannot be written, or a package that is missing."""
    checks.check_workdir(FLAGS.workdir)
    checks.check_plots()


def main(_):
    import keras
    import tensorflow as tf

    from keras_dsnet.runs import write_table
    from keras_dsnet.utils.atomic_file import atomic_file

    tf.config.threading.set_intra_op_parallelism_threads(FLAGS.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(0)
    shape = (1, FLAGS.image_size, FLAGS.image_size, 3)
    image = np.random.default_rng(0).normal(size=shape).astype("float32")
    stack, rows = ResNetStack(), []
    for engine in dict.fromkeys(FLAGS.engine):
        print(f"{engine}: preparing {', '.join(ENGINES[engine])}", flush=True)
        runs = prepare_runs(engine, stack, image, ENGINES[engine], FLAGS.threads)
        print(f"{engine}: equal features; timing {FLAGS.rounds} rounds", flush=True)
        times = take_turns(runs, FLAGS.rounds, SECONDS_PER_ROUND)
        rows += make_rows(engine, stack, times)
    workdir = pathlib.Path(FLAGS.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    print(write_table(rows, workdir, "slicing"))
    with atomic_file(workdir / "table.md") as file:
        file.write(format_markdown(rows))
    plot_latencies(rows, workdir / "slicing.png")


def make_rows(engine, stack, times):
    """Returns the rows of an engine's part of the table."""
    rows, ideal = [], times["individual"]
    for method, values in times.items():
        low, middle = low_and_middle(values)
        low_ratio, middle_ratio = ratios(values, ideal)
        rows.append(
            {
                "engine": engine,
                "method": method.replace("_", " "),
                "madds": stack.madds(FLAGS.image_size, 1 if method in ALL_CHANNELS else SHARE),
                "min_ms": low,
                "median_ms": middle,
                "min_ratio": low_ratio,
                "median_ratio": middle_ratio,
                "paper_ms": PAPER_MS.get(method),
            }
        )
    return rows


def format_markdown(rows):
    """Returns the command, what it ran on, and the table, for a page of the documentation."""
    command = shlex.join(["python", "recipes/benchmarks/benchmark_slicing.py", *sys.argv[1:]])
    versions = " and ".join(
        f"{name} {importlib.metadata.version(distribution)}"
        for name, distribution in (("LiteRT", "ai-edge-litert"), ("TensorFlow", "tensorflow"))
    )
    lines = [
        f"```\n{command}\n```\n",
        f"One image of {FLAGS.image_size}x{FLAGS.image_size}; threads: {FLAGS.threads}; rounds: "
        f"{FLAGS.rounds}; {versions}.\n",
        "| engine | method | MAdds | time, min / median | ratio to individual, min / median "
        "| paper's ratio (GPU) |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        paper = f"{row['paper_ms'] / PAPER_MS['individual']:.2f}" if row["paper_ms"] else ""
        cells = (
            row["engine"],
            row["method"],
            f"{row['madds'] / 1e6:.0f}M",
            f"{row['min_ms']:.2f} / {row['median_ms']:.2f} ms",
            f"{row['min_ratio']:.2f} / {row['median_ratio']:.2f}",
            paper,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot_latencies(rows, path):
    """Draws the median times, a panel for each engine."""
    from matplotlib.figure import Figure

    from keras_dsnet.utils.atomic_file import atomic_file

    engines = list(dict.fromkeys(row["engine"] for row in rows))
    figure = Figure(figsize=(7.2, 0.8 + 2.4 * len(engines)), layout="constrained")
    panels = figure.subplots(len(engines), 1, squeeze=False)[:, 0]
    for axes, engine in zip(panels, engines):
        own = [row for row in rows if row["engine"] == engine]
        names = [row["method"] for row in own]
        colors = [COLORS.get(name, OTHER_COLOR) for name in names]
        bars = axes.barh(names, [row["median_ms"] for row in own], color=colors, height=0.7)
        texts = [f"{row['median_ms']:.1f} ms ({row['median_ratio']:.2f}x)" for row in own]
        axes.bar_label(bars, texts, padding=4, fontsize=9)
        # As in the table, from above; and room for the longest bar's text.
        axes.invert_yaxis()
        axes.margins(x=0.3)
        axes.set_title(engine)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("Median time per image (ms), and its ratio to the individual network's")
    with atomic_file(path, "wb") as file:
        figure.savefig(file, format="png", dpi=160)


class Convolution(NamedTuple):
    """A convolution at full width."""

    name: str
    inputs: int
    filters: int
    kernel_size: int
    strides: int = 1
    relu: bool = True

    def channels(self, share):
        """Returns inputs and filters with one channel in `share`; an image keeps its channels."""
        return self.inputs if self.takes_image else self.inputs // share, self.filters // share

    def madds(self, share):
        """Returns the multiply-adds for one place of the output."""
        inputs, filters = self.channels(share)
        return self.kernel_size**2 * inputs * filters

    @property
    def takes_image(self):
        """Whether the inputs are the colours, which are all kept."""
        return self.name == "stem"


class Bottleneck(NamedTuple):
    """A residual block; `shortcut` is None where the block adds its input itself."""

    reduce: Convolution
    spatial: Convolution
    expand: Convolution
    shortcut: Convolution | None


def make_convolutions(stages):
    """Returns the stem and the bottlenecks."""
    stem = Convolution("stem", 3, stages[0][1], 7, 2)
    blocks, inputs = [], stem.filters
    for count, filters, stride in stages:
        for index in range(count):
            name = f"block_{len(blocks) + 1}"
            strides, outputs = (1 if index else stride), filters * EXPANSION
            shortcut = Convolution(f"{name}_shortcut", inputs, outputs, 1, strides, relu=False)
            blocks.append(
                Bottleneck(
                    Convolution(f"{name}_reduce", inputs, filters, 1),
                    Convolution(f"{name}_spatial", filters, filters, 3, strides),
                    Convolution(f"{name}_expand", filters, outputs, 1, relu=False),
                    None if index else shortcut,
                )
            )
            inputs = outputs
    return stem, blocks


class ResNetStack:
    """The weights of the full stack, and those of the individual network, which are a copy.

    Every way to run it takes an image `[1, height, width, 3]` and returns pooled features
    `[1, channels]`; those that choose channels at run time take the choice as further inputs.

    Args:
        stages: see `RESNET_50`; channels must be multiples of `SHARE`.
    """

    def __init__(self, stages=RESNET_50):
        import tensorflow as tf

        self.stem, self.blocks = make_convolutions(stages)
        self.convolutions = [self.stem, *(conv for block in self.blocks for conv in block if conv)]
        self.layers = {conv.name: _sliced_layer(conv) for conv in self.convolutions}
        self.narrow = {
            conv.name: tuple(map(tf.Variable, self._first(conv))) for conv in self.convolutions
        }

    def full(self, image):
        return self._run(image, lambda conv, x: _convolve(conv, x, *self._weights(conv)))

    def masking(self, image, **masks):
        """Computes everything, and multiplies what is not kept by zero."""

        def convolve(conv, x):
            return _convolve(conv, x, *self._weights(conv)) * masks[f"mask_{conv.filters}"]

        return self._run(image, convolve)

    def indexing(self, image, **indices):
        """Gathers the kernels of the channels that are kept."""
        import tensorflow as tf

        def convolve(conv, x):
            kernel, bias = self._weights(conv)
            if not conv.takes_image:
                kernel = tf.gather(kernel, indices[f"index_{conv.inputs}"], axis=2)
            filters = indices[f"index_{conv.filters}"]
            return _convolve(conv, x, tf.gather(kernel, filters, axis=3), tf.gather(bias, filters))

        return self._run(image, convolve)

    def slicing(self, image):
        """Takes the first channels, as many as Python says: the layers of this package."""
        import tensorflow as tf

        def convolve(conv, x):
            outputs = self.layers[conv.name](x, width=0)
            return tf.nn.relu(outputs) if conv.relu else outputs

        return self._run(image, convolve)

    def slicing_at_run_time(self, image, start):
        """Takes slices that a converter cannot fold: where they start is known at run time.

        TFLite's convolutions need static channel counts, so how many is not left open.
        """
        import tensorflow as tf

        def convolve(conv, x):
            kernel, bias = self._weights(conv)
            filters = conv.filters // SHARE
            first_input = 0 if conv.takes_image else start
            sizes = [conv.kernel_size, conv.kernel_size, x.shape[-1], filters]
            kernel = tf.slice(kernel, [0, 0, first_input, start], sizes)
            return _convolve(conv, x, kernel, tf.slice(bias, [start], [filters]))

        return self._run(image, convolve)

    def individual(self, image):
        """Runs a network that was built with a quarter of the channels."""
        return self._run(image, lambda conv, x: _convolve(conv, x, *self.narrow[conv.name]))

    def choices(self, method):
        """Returns the arrays that a way to run takes beside the image: the first quarter is kept.

        Args:
            method: the name of the way to run.
        """
        counts = sorted({conv.filters for conv in self.convolutions})
        if method == "masking":
            return {f"mask_{c}": (np.arange(c) < c // SHARE).astype("float32") for c in counts}
        if method == "indexing":
            return {f"index_{c}": np.arange(c // SHARE, dtype="int32") for c in counts}
        return {"start": np.int32(0)} if method == "slicing_at_run_time" else {}

    def madds(self, image_size, share=1):
        """Returns the multiply-adds of an image with one channel in `share`.

        Args:
            image_size: of a square image.
            share: int.
        """
        size = -(-image_size // self.stem.strides)
        total = size**2 * self.stem.madds(share)
        size = -(-size // 2)
        for block in self.blocks:
            total += size**2 * block.reduce.madds(share)
            size = -(-size // block.spatial.strides)
            behind = (conv for conv in block[1:] if conv)
            total += size**2 * sum(conv.madds(share) for conv in behind)
        return total

    def _run(self, image, convolve):
        import tensorflow as tf

        x = tf.nn.max_pool2d(convolve(self.stem, image), 3, 2, "SAME")
        for block in self.blocks:
            shortcut = convolve(block.shortcut, x) if block.shortcut else x
            for conv in (block.reduce, block.spatial, block.expand):
                x = convolve(conv, x)
            x = tf.nn.relu(x + shortcut)
        return tf.reduce_mean(x, (1, 2))

    def _weights(self, conv):
        import tensorflow as tf

        layer = self.layers[conv.name]
        return tf.convert_to_tensor(layer.kernel), tf.convert_to_tensor(layer.bias)

    def _first(self, conv):
        kernel, bias = self._weights(conv)
        inputs, filters = conv.channels(SHARE)
        return kernel[:, :, :inputs, :filters], bias[:filters]


def _sliced_layer(conv):
    import keras

    from keras_dsnet.layers import SlicedConv2D

    layer = SlicedConv2D(
        (conv.filters // SHARE, conv.filters),
        conv.kernel_size,
        conv.strides,
        use_bias=True,
        # With biases of zero, a channel that is not masked may be zero all the same.
        bias_initializer=keras.initializers.RandomUniform(-0.1, 0.1),
    )
    layer.build((1, None, None, conv.inputs))
    return layer


def _convolve(conv, x, kernel, bias):
    import tensorflow as tf

    from keras_dsnet.layers.sliced_conv2d import tf_padding

    padding = tf_padding("symmetric", conv.kernel_size, conv.strides)
    outputs = tf.nn.bias_add(tf.nn.conv2d(x, kernel, conv.strides, padding), bias)
    return tf.nn.relu(outputs) if conv.relu else outputs


def prepare_runs(engine, stack, image, methods, threads=1):
    """Returns a function without arguments for each way to run a stack.

    Args:
        engine: "TensorFlow" or "LiteRT"; the latter with XNNPACK.
        stack: a `ResNetStack`.
        image: float32 array `[1, height, width, 3]`.
        methods: names of ways to run it.
        threads: of LiteRT; TensorFlow's are a setting of the process.

    Raises:
        ValueError: the features of a way to run differ by more than 1e-4 of their largest value
            from the individual network's; "full" has features of its own.
    """
    import tensorflow as tf

    prepare = _on_litert if engine == "LiteRT" else _on_tensorflow
    expected = stack.individual(tf.constant(image)).numpy()
    runs = {}
    for method in methods:
        inputs = {"image": image, **stack.choices(method)}
        runs[method], features = prepare(getattr(stack, method), inputs, threads)
        if method != "full":
            _check_equal(f"{method} on {engine}", features, expected)
    return runs


def _check_equal(name, features, expected):
    """Raises an error unless features are the expected ones, and zero where there are more."""
    padding = features.shape[-1] - expected.shape[-1]
    difference = np.abs(features - np.pad(expected, ((0, 0), (0, padding)))).max()
    difference /= np.abs(expected).max()
    if not difference <= TOLERANCE:
        raise ValueError(
            f"The features of {name} differ by {difference:.1e} from those of the individual "
            f"network; {TOLERANCE:.0e} is allowed"
        )


def _on_tensorflow(function, inputs, _):
    import tensorflow as tf

    traced = tf.function(function, autograph=False)
    tensors = {name: tf.constant(value) for name, value in inputs.items()}

    def run():
        return traced(**tensors).numpy()

    return run, run()


def _on_litert(function, inputs, threads):
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter

    from keras_dsnet.export.conversion import convert

    specs = {name: tf.TensorSpec(value.shape, value.dtype) for name, value in inputs.items()}
    # AutoGraph has nothing to rewrite in a stack, and takes long to find out.
    plain = tf.autograph.experimental.do_not_convert(function)
    content = convert(lambda **tensors: {"features": plain(**tensors)}, specs)
    interpreter = Interpreter(model_content=content, num_threads=threads)
    features = interpreter.get_signature_runner("serving_default")(**inputs)["features"]
    # The inputs stay where they are; a view of the outputs would forbid to invoke again.
    return interpreter.invoke, features.copy()


if __name__ == "__main__":
    start(main, check_flags)
