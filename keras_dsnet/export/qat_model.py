"""The tf_keras model that quantisation-aware training trains.

It computes in float the values that its int8 file will compute. The import of this module loads
tensorflow-model-optimization and tf_keras, which takes seconds: import it inside the function that
uses it.
"""

import collections
import os
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras

_LEGACY = "TF_USE_LEGACY_KERAS"


def _load_tfmot():
    """Imports tensorflow-model-optimization without its effects on the process."""
    before = os.environ.get(_LEGACY)
    # tfmot sets the variable and leaves it set. By it `tf.keras` would become tf_keras for all code
    # in the process, unless `tf.keras` was looked up before.
    _ = tf.keras.layers
    try:
        import tensorflow_model_optimization as tfmot
    finally:
        if before is None:
            os.environ.pop(_LEGACY, None)
        else:
            os.environ[_LEGACY] = before
    return tfmot.quantization.keras


_tfmot: Any = _load_tfmot()

TOLERANCE = 1e-5
# The fields of a layer's configuration that its counterpart takes over. Any other field that was
# set would change the outputs, which are compared.
_FIELDS = {
    "Conv2D": ("filters", "kernel_size", "strides", "padding", "use_bias"),
    "DepthwiseConv2D": ("kernel_size", "strides", "padding", "use_bias"),
    "Dense": ("units", "use_bias"),
    "GroupNormalization": ("groups", "epsilon"),
    "ZeroPadding2D": ("padding",),
    "MaxPooling2D": ("pool_size", "strides", "padding"),
    "GlobalAveragePooling2D": ("keepdims",),
    "Rescaling": ("scale", "offset"),
    "Multiply": (),
    "Add": (),
}
# Their outputs have the range of their inputs, and TFLite's kernels need the same scale for both.
_KEEP_RANGES = ("ZeroPadding2D", "MaxPooling2D")
_ACTIVATIONS = ("relu", "sigmoid", "tanh")
# The name of the kernel, and its axis of output channels.
_KERNELS = {
    "Conv2D": ("kernel", -1),
    "DepthwiseConv2D": ("depthwise_kernel", -2),
    "Dense": ("kernel", -1),
}
# TFLite has a fixed range for the outputs of these activations.
_FIXED_RANGES = {"sigmoid": (0.0, 255 / 256), "tanh": (-1.0, 127 / 128)}
# TFLite fuses a ReLU into these operators and rounds once, after it.
_FUSES_RELU = ("Conv2D", "DepthwiseConv2D", "Dense", "Add")


def legacy_model(model: keras.Model, shape: tuple[int, int, int]) -> tf_keras.Model:
    """Rebuilds a plain model in tf_keras, with one layer for each operator of TFLite.

    Activations become separate layers, and swish becomes a sigmoid and a product. Dropout is left
    out.

    Args:
        model: A functional Keras 3 model without a softmax, as `DynamicSlimmableNetwork.subnetwork`
            makes it with batch norm folded.
        shape: `(height, width, 3)` of the images.

    Returns:
        A `tf_keras.Model` with copies of the weights.

    Raises:
        ValueError: If a layer or an activation is not known, or the outputs differ by more than
            1e-5 of their largest value.
    """
    tensors: dict[int, Any] = {}
    for layer in model.layers:
        kind = type(layer).__name__
        if kind == "InputLayer":
            inputs = tf_keras.Input(shape, name=layer.name)
            # A quantiser can be attached to a layer, and an input is not one.
            outputs = tf_keras.layers.Activation("linear", name=f"{layer.name}_rounded")(inputs)
        else:
            has_list = isinstance(layer.input, list)
            x = [tensors[id(x)] for x in layer.input] if has_list else tensors[id(layer.input)]
            outputs = _rebuild(layer, kind, x)
        tensors[id(layer.output)] = outputs
    rebuilt = tf_keras.Model(inputs, tensors[id(model.outputs[0])], name=model.name)
    _compare(rebuilt, model, shape)
    return rebuilt


def _rebuild(layer, kind, x):
    """Calls the counterpart of a layer and that of its activation."""
    config = layer.get_config()
    if kind == "Dropout":
        return x
    if kind != "Activation":
        if kind not in _FIELDS:
            known = ", ".join([*_FIELDS, "Activation", "Dropout"])
            raise ValueError(
                "Quantisation-aware training knows these layers: "
                f"{known}. Received: layer {layer.name!r}, a {kind}"
            )
        fields = {field: config[field] for field in _FIELDS[kind]}
        counterpart = getattr(tf_keras.layers, kind)(name=layer.name, **fields)
        x = counterpart(x)
        counterpart.set_weights(layer.get_weights())
    # A layer that is only an activation keeps its name.
    name = layer.name if kind == "Activation" else f"{layer.name}_activation"
    return _activate(config.get("activation", "linear"), x, name)


def _activate(activation, x, name):
    layers = tf_keras.layers
    if activation == "linear":
        return x
    if activation in ("silu", "swish"):
        sigmoid = layers.Activation("sigmoid", name=f"{name}_sigmoid")
        return layers.Multiply(name=name)([x, sigmoid(x)])
    if activation not in _ACTIVATIONS:
        known = ", ".join([*_ACTIVATIONS, "silu", "linear"])
        raise ValueError(
            f"Quantisation-aware training knows these activations: {known}. "
            f"Received: {activation!r} in layer {name!r}"
        )
    return layers.Activation(activation, name=name)(x)


def _compare(rebuilt, model, shape):
    images = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    expected = np.asarray(model(images))
    difference = np.abs(np.asarray(rebuilt(images)) - expected).max()
    if not difference <= TOLERANCE * max(1.0, np.abs(expected).max()):
        raise ValueError(
            f"The network that was rebuilt for quantisation-aware training differs by "
            f"{difference:.1e} from the sub-network; {TOLERANCE:.0e} of its largest output is "
            "allowed."
        )


def fake_quantized(model: tf_keras.Model, batches: Iterable) -> tf_keras.Model:
    """Returns a copy of a model that rounds kernels and activations as TFLite's int8 kernels do.

    In training mode the copy rounds both, and the ranges of activations follow the values that
    occur. In inference mode it rounds activations only, because the converter rounds the kernels to
    the same values itself.

    Args:
        model: A `tf_keras.Model` as `legacy_model` makes it.
        batches: Iterable of images `[batch, height, width, 3]`. The first ranges of the activations
            are measured on them.

    Returns:
        A `tf_keras.Model`.
    """
    configs = _configs(model, batches)

    def annotate(layer):
        copy = type(layer).from_config(layer.get_config())
        return _tfmot.quantize_annotate_layer(copy, configs[layer.name])

    with _tfmot.quantize_scope({"_Int8Config": _Int8Config}):
        annotated = tf_keras.models.clone_model(model, clone_function=annotate)
        annotated.set_weights(model.get_weights())
        return _tfmot.quantize_apply(annotated, _Int8Scheme())


def _configs(model, batches):
    """Returns a dict from a layer's name to its `_Int8Config`."""
    layers = [layer for layer in model.layers if not isinstance(layer, tf_keras.layers.InputLayer)]
    uses = collections.Counter(id(x) for layer in layers for x in tf.nest.flatten(layer.input))
    relus = {id(layer.input) for layer in layers if _activation(layer) == "relu"}
    fused = {x for x in relus if uses[x] == 1}

    def is_measured(layer):
        kind = type(layer).__name__
        joins_relu = kind in _FUSES_RELU and id(layer.output) in fused
        return not (joins_relu or kind in _KEEP_RANGES or _activation(layer) in _FIXED_RANGES)

    measured = [layer for layer in layers if is_measured(layer)]
    ranges = _measure(model, measured, batches)
    return {
        layer.name: _Int8Config(
            _KERNELS.get(type(layer).__name__),
            ranges.get(layer.name),
            _FIXED_RANGES.get(_activation(layer)),
        )
        for layer in layers
    }


def _activation(layer):
    is_activation = isinstance(layer, tf_keras.layers.Activation)
    return layer.activation.__name__ if is_activation else None


def _measure(model, layers, batches):
    """Returns a dict from a layer's name to the least and the greatest value of its outputs."""
    probe = tf_keras.Model(model.inputs, [layer.output for layer in layers])

    @tf.function(autograph=False, reduce_retracing=True)
    def extremes(images):
        outputs = probe(images, training=False)
        return tf.stack([(tf.reduce_min(x), tf.reduce_max(x)) for x in outputs])

    seen = np.stack([extremes(images) for images in batches])
    # int8 must represent zero exactly, so every range holds it.
    low, high = np.minimum(seen[..., 0].min(0), 0), np.maximum(seen[..., 1].max(0), 0)
    return {layer.name: (float(a), float(b)) for layer, a, b in zip(layers, low, high)}


class _Int8Config(_tfmot.QuantizeConfig):
    """How one layer is rounded.

    Args:
        kernel: An entry of `_KERNELS`, or `None`.
        measured: First range of the outputs, which training changes, or `None`.
        fixed: Constant range of the outputs, or `None`.
    """

    def __init__(self, kernel, measured, fixed):
        self.kernel = kernel
        self.measured = measured
        self.fixed = fixed

    def get_weights_and_quantizers(self, layer):
        if not self.kernel:
            return []
        name, axis = self.kernel
        return [(getattr(layer, name), _KernelQuantizer(axis))]

    def set_quantize_weights(self, layer, quantize_weights):
        if self.kernel:
            setattr(layer, self.kernel[0], quantize_weights[0])

    def get_activations_and_quantizers(self, layer):
        return []

    def set_quantize_activations(self, layer, quantize_activations):
        pass

    def get_output_quantizers(self, layer):
        if self.fixed:
            return [_tfmot.quantizers.FixedQuantizer(8, *self.fixed, narrow_range=False)]
        return [_RangeQuantizer(*self.measured)] if self.measured else []

    def get_config(self):
        return {"kernel": self.kernel, "measured": self.measured, "fixed": self.fixed}


class _KernelQuantizer(_tfmot.quantizers.Quantizer):
    """Symmetric rounding with a scale per output channel.

    tfmot's quantiser has a single scale for a depthwise kernel.
    """

    def __init__(self, channels_axis):
        self.channels_axis = channels_axis

    def build(self, tensor_shape, name, layer):
        return {}

    def __call__(self, inputs, training, weights, **kwargs):
        if not training:
            return inputs
        shape = inputs.shape
        kernel = tf.reshape(inputs, (-1, shape[self.channels_axis]))
        limit = tf.stop_gradient(tf.maximum(tf.reduce_max(tf.abs(kernel), 0), 1e-6))
        rounded = tf.quantization.fake_quant_with_min_max_vars_per_channel(
            kernel, -limit, limit, narrow_range=True
        )
        return tf.reshape(rounded, shape)

    def get_config(self):
        return {"channels_axis": self.channels_axis}


class _RangeQuantizer(_tfmot.quantizers.MovingAverageQuantizer):
    """Rounding with a moving range that starts from a measured one.

    tfmot's range starts at -6 to 6 and needs thousands of steps.
    """

    def __init__(self, low, high):
        super().__init__(num_bits=8, per_axis=False, symmetric=False, narrow_range=False)
        self.range = {"min": low, "max": high}

    def build(self, tensor_shape, name, layer):
        return {
            f"{end}_var": layer.add_weight(
                f"{name}_{end}", initializer=tf_keras.initializers.Constant(value), trainable=False
            )
            for end, value in self.range.items()
        }


class _Int8Scheme(_tfmot.default_8bit.Default8BitQuantizeScheme):
    def get_layout_transformer(self):
        return _Unchanged()


class _Unchanged(_tfmot.QuantizeLayoutTransform):
    """Keeps all layers. tfmot's transform would remove the rounding of kernels before a ReLU."""

    def apply(self, model, layer_quantize_map):
        return model, layer_quantize_map
