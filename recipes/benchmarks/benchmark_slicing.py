r"""Times the methods of Table 1 of the paper on the convolutions of ResNet-50.

    python recipes/benchmarks/benchmark_slicing.py --workdir=runs/benchmark_slicing

The methods keep a quarter of the channels. The benchmark runs one image through random weights, on
TensorFlow and on LiteRT with XNNPACK:
- full: all channels;
- masking: all channels, multiplied by a mask that keeps the first quarter;
- indexing: kernels gathered by the indices of the channels to keep;
- slicing: the first channels of the full kernels, by `SlicedConv2D`. LiteRT's converter folds the
  slices; TensorFlow slices its variables in every call;
- slicing at run time, only on LiteRT: slices that the converter cannot fold;
- individual: a network that was built with a quarter of the channels.

A choice at run time is an input, so no engine can know it beforehand. XNNPACK leaves convolutions
whose kernels are made at run time to slower code. The program checks that all networks but the full
one give equal features before it times them. The methods alternate in one process, each for half a
second per round. The program prints a table and writes it as CSV, JSON and Markdown, with a plot.
docs/results/mobile.md has the results.

The stack of convolutions is written once, and each method defines how one convolution runs. Batch
norm is folded into the biases, as in a deployed network, and the classifier is left out.
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
# Each stage: number of bottlenecks, channels of their 3x3 convolutions, stride of the first.
RESNET_50 = ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2))
EXPANSION = 4
# Every layer keeps one channel in four.
SHARE = 4
TOLERANCE = 1e-4

FLAGS = flags.FLAGS
shared.define_workdir("Folder that the figures are written into.")
shared.define_image_size("Side of the image in pixels.", 224, lower_bound=32)
shared.define_rounds(9, "Number of rounds of the comparison.")
shared.define_threads("Number of threads of either engine.")
flags.DEFINE_multi_enum(
    "engine", list(ENGINES), list(ENGINES), "Engine to run. Can be repeated.", case_sensitive=False
)


def check_flags():
    """Raises an error if the folder cannot be written or a package is missing."""
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
    """Returns the rows of the table for one engine."""
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
    """Returns the command, its setting and the table as Markdown for the documentation."""
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
    """Draws the median times, with a panel for each engine."""
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
        # The order is that of the table, and the margin has room for the text of the longest bar.
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
        """Returns the counts of inputs and filters with one channel in `share` kept.

        The channels of an image are all kept.
        """
        return self.inputs if self.takes_image else self.inputs // share, self.filters // share

    def madds(self, share):
        """Returns the multiply-adds for one position of the output."""
        inputs, filters = self.channels(share)
        return self.kernel_size**2 * inputs * filters

    @property
    def takes_image(self):
        """Whether the inputs are the colours of an image."""
        return self.name == "stem"


class Bottleneck(NamedTuple):
    """A residual block; `shortcut` is None if the block adds its input unchanged."""

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
    """A stack of convolutions with a method for each row of Table 1.

    Each method takes an image `[1, height, width, 3]` and returns pooled features `[1, channels]`.
    A method that chooses channels at run time takes the choice as further inputs. The individual
    network has a copy of its share of the weights.

    Args:
        stages: Tuple in the form of `RESNET_50`. Channel counts must be multiples of `SHARE`.
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
        """Computes all channels and multiplies those that are not kept by zero."""

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
        """Slices the first channels at a static width by the layers of this package."""
        import tensorflow as tf

        def convolve(conv, x):
            outputs = self.layers[conv.name](x, width=0)
            return tf.nn.relu(outputs) if conv.relu else outputs

        return self._run(image, convolve)

    def slicing_at_run_time(self, image, start):
        """Takes slices that a converter cannot fold, because their start is known only at run time.

        The channel counts are static, as TFLite's convolutions require.
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
        """Returns the inputs of a method besides the image, which keep the first quarter.

        Args:
            method: Str, name of the method.
        """
        counts = sorted({conv.filters for conv in self.convolutions})
        if method == "masking":
            return {f"mask_{c}": (np.arange(c) < c // SHARE).astype("float32") for c in counts}
        if method == "indexing":
            return {f"index_{c}": np.arange(c // SHARE, dtype="int32") for c in counts}
        return {"start": np.int32(0)} if method == "slicing_at_run_time" else {}

    def madds(self, image_size, share=1):
        """Returns the multiply-adds of an image with one channel in `share` kept.

        Args:
            image_size: Int, side of the square image in pixels.
            share: Int. Defaults to 1, all channels.
        """
        size = -(-image_size // self.stem.strides)
        total = size**2 * self.stem.madds(share)
        size = -(-size // 2)
        for block in self.blocks:
            total += size**2 * block.reduce.madds(share)
            size = -(-size // block.spatial.strides)
            after = (conv for conv in block[1:] if conv)
            total += size**2 * sum(conv.madds(share) for conv in after)
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
        # Random biases, because with zero biases an unmasked channel can also be zero.
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
    """Returns a function without arguments for each method of a stack.

    Args:
        engine: Str, "TensorFlow", or "LiteRT" for LiteRT with XNNPACK.
        stack: A `ResNetStack`.
        image: float32 array `[1, height, width, 3]`.
        methods: Names of methods of the stack.
        threads: Int, threads of LiteRT. Those of TensorFlow are a setting of the process.

    Raises:
        ValueError: If the features of a method differ from those of the individual network by more
            than 1e-4 of the largest value. "full" is not checked, because its features differ.
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
    """Raises an error unless features are the expected ones, and further features are zero."""
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
    # AutoGraph has nothing to rewrite in a stack and takes long to find that out.
    plain = tf.autograph.experimental.do_not_convert(function)
    content = convert(lambda **tensors: {"features": plain(**tensors)}, specs)
    interpreter = Interpreter(model_content=content, num_threads=threads)
    features = interpreter.get_signature_runner("serving_default")(**inputs)["features"]
    # The inputs stay set. A view of the outputs would block further calls, so they are copied.
    return interpreter.invoke, features.copy()


if __name__ == "__main__":
    start(main, check_flags)
