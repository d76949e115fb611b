"""Conversion of traced functions to TFLite files of builtin operators.

For an int8 file the ranges of activations are measured on images. `representative_images` reads
the images, and `raise_scales` raises measured scales that XNNPACK refuses. `normalise_pixels` lets
a file take raw pixels.
"""

import contextlib
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from keras_dsnet.export.activation_ranges import narrow_ranges
from keras_dsnet.export.packing import pack
from keras_dsnet.export.tflite_model import (
    Builtin,
    ModelBuilder,
    TensorType,
    builtin_code,
    is_operator,
    parse,
)
from keras_dsnet.models.preprocessing import Normalization
from keras_dsnet.utils.batches import image_batches
from keras_dsnet.utils.private_names import calibrate_only, quantize_calibrated

QUANTIZATIONS = (None, "float16", "dynamic", "int8")
# Operations traced in a name scope of this name stay in float in an int8 file.
FLOAT_SCOPE = "kept_in_float"
# In this scope they do so even if they make an output of the graph, whose name hides the scope.
_RESULTS_SCOPE = "kept_in_float_results"
# More images change the ranges little and fill memory. A data set may also be endless.
MOST_IMAGES = 500
_FEWEST_IMAGES = 8
# Augmented images and those of tests may leave the range of normalised pixels, up to this factor.
_MOST_RANGES = 20
# Images that cover a smaller share of the range of normalised pixels are warned of.
_LEAST_SHARE = 0.5
# With a bias of ordinary size, an int8 activation within 127 steps of this size is lost.
LEAST_SCALE = 1e-5
_WITH_BIAS = (
    schema.BuiltinOperator.CONV_2D,
    schema.BuiltinOperator.DEPTHWISE_CONV_2D,
    schema.BuiltinOperator.FULLY_CONNECTED,
)


def convert(
    function: Callable,
    inputs: dict[str, tf.TensorSpec],
    quantize: str | None = None,
    samples: Callable | None = None,
) -> bytes:
    """Converts a function to a TFLite file with one signature, "serving_default".

    Args:
        function: Function of tensors, by the names of `inputs`. It returns a dict of tensors. Its
            constants, and the variables of the Keras model that it calls, go into the file.
        inputs: Dict of `tf.TensorSpec`, in the order of the file's inputs.
        quantize: `None` for float32, "float16" for float16 weights, "dynamic" for int8 weights, or
            "int8" for int8 weights and activations. Operators that TFLite cannot quantise stay in
            float32. Inputs and outputs keep their types. Defaults to `None`.
        samples: Function that returns an iterator of dicts of arrays, by the names of `inputs`. The
            ranges of activations are measured on them. Only for "int8", and not needed where the
            function rounds activations itself. Defaults to `None`.

    Returns:
        The bytes of the file.

    Raises:
        ValueError: If TFLite has no builtin operators for the function. The message is the first
            line of the converter's.
    """
    name = "serving_default"
    traced = {name: trace(function, inputs)}
    return convert_traced(traced, quantize, {name: samples} if samples else None)


def trace(function: Callable, inputs: dict[str, tf.TensorSpec]) -> Any:
    """Traces a function as a graph.

    Args:
        function: Function of tensors, as for `convert`.
        inputs: Dict of `tf.TensorSpec`, as for `convert`.

    Returns:
        A `tf.types.experimental.ConcreteFunction`.
    """
    specs = [tf.TensorSpec(spec.shape, spec.dtype, name=key) for key, spec in inputs.items()]
    traced = tf.function(
        lambda *tensors: function(**dict(zip(inputs, tensors))),
        input_signature=specs,
        autograph=False,
    )
    return traced.get_concrete_function()


def kept_in_float(results: bool = False) -> contextlib.AbstractContextManager:
    """Returns a context manager: operations traced within it stay in float in an int8 file.

    Args:
        results: Boolean. `True` includes the operations that make outputs of the graph from the
            outputs of others in the scope. Defaults to `False`.
    """
    return tf.name_scope(_RESULTS_SCOPE if results else FLOAT_SCOPE)


def convert_traced(
    functions: dict[str, Any],
    quantize: str | None = None,
    samples: dict[str, Callable] | None = None,
    passed: dict[str, dict] | None = None,
) -> bytes:
    """Converts graphs to a TFLite file with a signature and a subgraph for each of them.

    Args:
        functions: Dict from signature to the result of `trace`.
        quantize: As for `convert`.
        samples: Dict from signature to a function, as for `convert`. Defaults to `None`.
        passed: Ranges of the features that the graphs pass on, as of `narrow_ranges`. Defaults to
            `None`.

    Returns:
        The bytes of the file.

    Raises:
        ValueError: As for `convert`.
    """
    module = tf.Module()
    module.functions = functions
    # A saved model only keeps variables that are attributes of the module.
    module.variables_of_functions = [v for traced in functions.values() for v in traced.variables]
    with tempfile.TemporaryDirectory() as folder:
        # Nothing is trained from this copy, so it needs no gradients.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(module, folder, signatures=functions, options=options)
        with _without_warnings():
            converter = tf.lite.TFLiteConverter.from_saved_model(
                folder, signature_keys=list(functions)
            )
        _configure(converter, quantize, samples)
        has_float_operations = any(map(_has_float_scope, functions.values()))
        in_two_steps = quantize == "int8" and (bool(samples) or has_float_operations)
        if in_two_steps:
            # Only the step after calibration takes other ranges, and a list of operators that stay
            # in float.
            calibrate_only(converter)
        try:
            with _without_warnings():
                content = converter.convert()
                if in_two_steps:
                    content = narrow_ranges(content, samples, passed) if samples else content
                    content = quantize_calibrated(content, _outputs_in_float_scope(content))
        except (OSError, MemoryError):
            raise
        except Exception as error:
            line = _first_line(error)
            raise ValueError(f"TFLite cannot hold this network: {line}") from error
    return raise_scales(content) if quantize == "int8" else content


def _configure(converter, quantize, samples):
    # By default the converter silently takes operators that a phone's runtime lacks.
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if quantize is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize == "int8" and samples:
        converter.representative_dataset = lambda: (
            (name, sample) for name, make in samples.items() for sample in make()
        )


def _has_float_scope(traced):
    return any(FLOAT_SCOPE in operation.name for operation in traced.graph.get_operations())


def _outputs_in_float_scope(content):
    """Returns the names of the outputs of all operators that were traced in `FLOAT_SCOPE`."""
    found = set()
    for graph in parse(content).subgraphs:
        names = [tensor.name.decode() for tensor in graph.tensors]
        for operator in graph.operators:
            output = operator.outputs[0]
            is_result = output in graph.outputs and any(
                _RESULTS_SCOPE in names[index] for index in operator.inputs if index >= 0
            )
            if is_result or FLOAT_SCOPE in names[output]:
                found.add(names[output])
    return found


@contextlib.contextmanager
def _without_warnings():
    """Hides messages that do not concern the user, such as those about missing gradients."""
    loggers = (tf.get_logger(), logging.getLogger("absl"))
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # The converter measures int8 ranges by the interpreter that TensorFlow deprecates.
            warnings.filterwarnings("ignore", ".*tf.lite.Interpreter is deprecated")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _first_line(error: Exception) -> str:
    """Returns the first line of a converter's message, without the location in the graph."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in str(error).splitlines()]
    for line in lines:
        # <unknown>:0: error: loc(callsite(... at ...)): 'tf.Svd' op is neither ...
        if message := re.search(r"error: (?:loc\(.*\): )?(.+)", line):
            return message[1]
    return next(filter(None, lines), type(error).__name__)


def representative_images(
    data: Any,
    shape: Sequence[int],
    dtype: str = "float32",
    normalization: Normalization | None = None,
    stacklevel: int = 3,
) -> list[np.ndarray]:
    """Reads the images on which the ranges of an int8 file are measured.

    Args:
        data: A `tf.data.Dataset`, `keras.utils.PyDataset`, array, generator or other iterable of
            images `[height, width, 3]` or of batches `[batch, height, width, 3]`; or a function
            that returns one, as `tf.lite.TFLiteConverter` takes it. The first entry of a tuple is
            read, and of a dict its only entry or "image". The data may be endless.
        shape: `(height, width, 3)` of the file's images.
        dtype: "float32" for preprocessed images or "uint8" for raw pixels. Defaults to "float32".
        normalization: The network's `Normalization`. Preprocessed images must have its range.
            Defaults to `None`, with which they may have any.
        stacklevel: Stack level of warnings, as for `warnings.warn`. Defaults to 3.

    Returns:
        List of at most 500 arrays `[1, height, width, 3]`.

    Raises:
        ValueError: If there is no image, an image has another shape or type, all images are one
            value, or the images have another scale than the file takes.
    """
    if data is None:
        raise ValueError(
            "quantize='int8' needs `representative_data`: a hundred or more images that are like "
            "those the file will see, as a tf.data.Dataset or an iterable. Received: None"
        )
    images: list[np.ndarray] = []
    has_more = False
    batches = image_batches(
        _without_names(data),
        tuple(shape),
        num_batches=MOST_IMAGES + 1,
        name="representative_data",
        dtype=dtype,
        single=True,
    )
    for batch in batches:
        batch = batch.numpy()
        remaining = MOST_IMAGES - len(images)
        images.extend(image[None] for image in batch[:remaining])
        if len(batch) > remaining:
            has_more = True
            break
    if not images:
        raise ValueError(
            "`representative_data` has no image; a hundred or more are right. An iterator can be "
            "read only once: pass an iterable or a function that makes an iterator. "
            "Received: 0 images"
        )
    _check_values(images, dtype, normalization, stacklevel + 1)
    if has_more:
        warnings.warn(
            f"The ranges are measured on the first {MOST_IMAGES} images of `representative_data`; "
            "it has more.",
            stacklevel=stacklevel,
        )
    if len(images) < _FEWEST_IMAGES:
        warnings.warn(
            "The ranges of an int8 file that are measured on so few images may cut off the values "
            f"of other images; a hundred or more are right. Received: {len(images)} images in "
            "`representative_data`",
            stacklevel=stacklevel,
        )
    return images


def _without_names(data):
    """Returns a data set with images in place of dicts."""
    if isinstance(data, dict):
        return _image_of(data)
    if isinstance(data, tf.data.Dataset):
        return data.map(_image_of) if isinstance(data.element_spec, dict) else data
    if hasattr(data, "shape"):
        # An array may hold batches.
        return list(data) if len(data.shape) == 5 else data
    if isinstance(data, (str, bytes, keras.utils.PyDataset, tuple)):
        return data
    if isinstance(data, list):
        return [_image_of(element) for element in data]
    if callable(data) and not hasattr(data, "__iter__"):
        return lambda: _without_names(data())
    return map(_image_of, data) if hasattr(data, "__iter__") else data


def _image_of(element):
    """Returns the image of a dict, and anything else unchanged."""
    if not isinstance(element, dict):
        return element
    (name,) = element if len(element) == 1 else ("image",)
    if name not in element:
        raise ValueError(
            "`representative_data` with dicts needs one entry in each, or one that is called "
            f"'image'. Received: entries {', '.join(map(repr, element))}"
        )
    return element[name]


def _check_values(images, dtype, normalization, stacklevel):
    """Raises a ValueError for images of another scale, and warns of images that may have one."""
    low = min(float(image.min()) for image in images)
    high = max(float(image.max()) for image in images)
    received = f"Received: {len(images)} images with values from {low:g} to {high:g}"
    if low == high:
        raise ValueError(
            "`representative_data` must have images like those the file will see; int8 ranges "
            f"measured on images of one value fit no others. {received}"
        )
    if dtype == "uint8":
        least, most = 0.0, 255.0
        right = "raw pixels from 0 to 255, as the file's input_type='uint8' takes them"
        is_wrong = high <= 1
    elif normalization is None:
        return
    else:
        mean, std = np.array(normalization.mean), np.array(normalization.std)
        least, most = float(min(-mean / std)), float(max((1 - mean) / std))
        right = (
            f"images normalised as the network's `normalization` does, from about {least:.2f} to "
            f"{most:.2f}"
        )
        is_wrong = _has_other_scale(images, low, high, least, most)
    if is_wrong:
        raise ValueError(f"`representative_data` must have {right}. {received}")
    if high - low < _LEAST_SHARE * (most - least):
        warnings.warn(
            f"`representative_data` should have {right}. The ranges of an int8 file that are "
            f"measured on less cut off the values of other images. {received}",
            stacklevel=stacklevel,
        )


def _has_other_scale(images, low, high, least, most):
    """Returns whether values from `low` to `high` cannot be pixels normalised to `least..most`."""
    if max(-low, high) > _MOST_RANGES * max(abs(least), abs(most)):
        return True
    if low < 0:
        return False
    # A normalised range that begins near zero looks like the scale from 0 to 1.
    begins_below_zero = least < -0.1
    is_unit_scale = high <= 1 and begins_below_zero
    is_pixel_scale = high > 2 * most and all(np.all(image == np.rint(image)) for image in images)
    return is_unit_scale or is_pixel_scale or (begins_below_zero and high > 4 * most)


def normalise_pixels(image: tf.Tensor, normalization: Normalization, integer: bool) -> tf.Tensor:
    """Normalises pixels by a depthwise convolution, which int8 supports for three channels.

    Args:
        image: uint8 `[1, height, width, 3]`.
        normalization: `Normalization`.
        integer: Boolean, whether the file is int8.

    Returns:
        float32 tensor `[1, height, width, 3]`.
    """
    image = tf.cast(image, tf.float32)
    if integer:
        # With a scale of 1 the pixels lose nothing in int8.
        image = tf.quantization.fake_quant_with_min_max_args(image, 0, 255)
    std = np.array(normalization.std, "float32")
    offset = -np.array(normalization.mean, "float32") / std
    kernel = tf.constant((1 / (255 * std)).reshape(1, 1, 3, 1))
    return tf.nn.depthwise_conv2d(image, kernel, [1, 1, 1, 1], "VALID") + offset


def raise_scales(content: bytes) -> bytes:
    """Raises the scales of an int8 file's activations to at least 1e-5.

    If every image of the measurement makes a unit zero, the converter takes a scale near 1e-8. The
    next layer's bias is stored in units of that scale and exceeds the values that XNNPACK takes. It
    then refuses the graph and ends the process.

    Args:
        content: Bytes of a TFLite file.

    Returns:
        The bytes of the changed file, or `content` if no scale is below 1e-5.
    """
    model = parse(content)
    is_changed = False
    for graph in model.subgraphs:
        low = {
            index
            for index, tensor in enumerate(graph.tensors)
            if is_activation(tensor, model) and tensor.quantization.scale[0] < LEAST_SCALE
        }
        for index in low:
            graph.tensors[index].quantization.scale = np.array([LEAST_SCALE], "float32")
        for operator in graph.operators:
            code = builtin_code(model.operatorCodes[operator.opcodeIndex])
            if operator.inputs[0] in low and code in _WITH_BIAS:
                _requantize_bias(graph, operator, model)
        is_changed |= bool(low)
    return pack(model) if is_changed else content


def is_activation(tensor: schema.TensorT, model: schema.ModelT) -> bool:
    """Returns whether a tensor is an int8 activation, neither a constant nor of another type."""
    quantization = tensor.quantization
    if tensor.type != schema.TensorType.INT8 or quantization is None or quantization.scale is None:
        return False
    data = model.buffers[tensor.buffer].data
    return len(quantization.scale) == 1 and (data is None or len(data) == 0)


def _requantize_bias(graph, operator, model):
    """Writes a bias in units of the product of the input's new scale and the kernel's scales."""
    if len(operator.inputs) < 3 or operator.inputs[2] < 0:
        return
    kernel, bias = (graph.tensors[index] for index in operator.inputs[1:3])
    steps = np.asarray(model.buffers[bias.buffer].data, "uint8").view("<i4")
    values = steps * np.asarray(bias.quantization.scale, "float64")
    scales = np.asarray(kernel.quantization.scale, "float64") * LEAST_SCALE
    limit = np.iinfo("int32").max
    steps = np.clip(np.rint(values / scales), -limit, limit).astype("<i4")
    # Another operator may share the old buffer.
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(steps.tobytes(), "uint8")
    bias.buffer = len(model.buffers)
    bias.quantization.scale = scales.astype("float32")
    model.buffers.append(buffer)


def restore_multiplications(graph: schema.SubGraphT, builder: ModelBuilder) -> None:
    """Turns the depthwise convolutions of `block_executor.multiply_channels` into `MUL` operators.

    The numbers stay the same and take less time: XNNPACK pads one tap to three.

    Args:
        graph: `schema.SubGraphT`, converted. It is changed.
        builder: `ModelBuilder` that imported the graph.
    """
    model, multiply = builder.model, builder.builtin("MUL")
    for operator in graph.operators:
        if is_operator(operator, Builtin.DEPTHWISE_CONV_2D, model) and _is_product(
            operator, graph, model
        ):
            options = schema.MulOptionsT()
            options.fusedActivationFunction = operator.builtinOptions.fusedActivationFunction
            operator.builtinOptions = options
            operator.builtinOptionsType = schema.BuiltinOptions.MulOptions
            operator.opcodeIndex, operator.inputs = multiply, operator.inputs[:2]


def _is_product(operator, graph, model):
    """Returns whether a depthwise convolution multiplies channels by floats and adds zeros."""
    options = operator.builtinOptions
    kernel, bias = (graph.tensors[index] for index in operator.inputs[1:])
    taps = (*kernel.shape[1:3], options.strideH, options.strideW, options.depthMultiplier)
    if kernel.type != TensorType.FLOAT32 or set(map(int, taps)) != {1}:
        return False
    # Weights in float16 pass a DEQUANTIZE.
    makers = [maker for maker in graph.operators if operator.inputs[2] in maker.outputs]
    bias = graph.tensors[makers[0].inputs[0]] if makers else bias
    zeros = model.buffers[bias.buffer].data
    return zeros is not None and not np.any(zeros)
