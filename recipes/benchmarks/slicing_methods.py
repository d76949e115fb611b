"""The ways of Table 1 of the paper to run a quarter of the convolutions of ResNet-50.

The stack is written once; a way to run it says what one convolution does. Batch norm is folded into
the biases, as in a deployed network; the classifier is left out.
"""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from keras_dsnet.export.conversion import convert
from keras_dsnet.layers import SlicedConv2D
from keras_dsnet.layers.sliced_conv2d import tf_padding

# Number of bottlenecks, channels of their 3x3 convolutions, stride of the first.
RESNET_50 = ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2))
EXPANSION = 4
# One channel in four is kept, in every layer.
SHARE = 4
TOLERANCE = 1e-4


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

        def convolve(conv, x):
            kernel, bias = self._weights(conv)
            if not conv.takes_image:
                kernel = tf.gather(kernel, indices[f"index_{conv.inputs}"], axis=2)
            filters = indices[f"index_{conv.filters}"]
            return _convolve(conv, x, tf.gather(kernel, filters, axis=3), tf.gather(bias, filters))

        return self._run(image, convolve)

    def slicing(self, image):
        """Takes the first channels, as many as Python says: the layers of this package."""

        def convolve(conv, x):
            outputs = self.layers[conv.name](x, width=0)
            return tf.nn.relu(outputs) if conv.relu else outputs

        return self._run(image, convolve)

    def slicing_at_run_time(self, image, start):
        """Takes slices that a converter cannot fold: where they start is known at run time.

        TFLite's convolutions need static channel counts, so how many is not left open.
        """

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
        x = tf.nn.max_pool2d(convolve(self.stem, image), 3, 2, "SAME")
        for block in self.blocks:
            shortcut = convolve(block.shortcut, x) if block.shortcut else x
            for conv in (block.reduce, block.spatial, block.expand):
                x = convolve(conv, x)
            x = tf.nn.relu(x + shortcut)
        return tf.reduce_mean(x, (1, 2))

    def _weights(self, conv):
        layer = self.layers[conv.name]
        return tf.convert_to_tensor(layer.kernel), tf.convert_to_tensor(layer.bias)

    def _first(self, conv):
        kernel, bias = self._weights(conv)
        inputs, filters = conv.channels(SHARE)
        return kernel[:, :, :inputs, :filters], bias[:filters]


def _sliced_layer(conv):
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
    expected = stack.individual(tf.constant(image)).numpy()
    runs = {}
    for method in methods:
        inputs = {"image": image, **stack.choices(method)}
        runs[method], features = _ENGINES[engine](getattr(stack, method), inputs, threads)
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
    traced = tf.function(function, autograph=False)
    tensors = {name: tf.constant(value) for name, value in inputs.items()}

    def run():
        return traced(**tensors).numpy()

    return run, run()


def _on_litert(function, inputs, threads):
    specs = {name: tf.TensorSpec(value.shape, value.dtype) for name, value in inputs.items()}
    # AutoGraph has nothing to rewrite in a stack, and takes long to find out.
    plain = tf.autograph.experimental.do_not_convert(function)
    content = convert(lambda **tensors: {"features": plain(**tensors)}, specs)
    interpreter = Interpreter(model_content=content, num_threads=threads)
    features = interpreter.get_signature_runner("serving_default")(**inputs)["features"]
    # The inputs stay where they are; a view of the outputs would forbid to invoke again.
    return interpreter.invoke, features.copy()


_ENGINES = {"TensorFlow": _on_tensorflow, "LiteRT": _on_litert}
