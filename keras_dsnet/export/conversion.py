"""Converts traced functions to TFLite models of builtin operators, in float or quantised."""

import contextlib
import logging
import re
import tempfile
import warnings

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from keras_dsnet.export.tflite_model import builtin_code, pack, parse
from keras_dsnet.utils import batches
from keras_dsnet.utils.batches import image_batches

# What is traced in a name scope of this name stays in float in an int8 file.
FLOAT_SCOPE = "kept_in_float"
QUANTIZATIONS = (None, "float16", "dynamic", "int8")


def convert(function, inputs, quantize=None, samples=None, name="serving_default"):
    """Returns the bytes of a TFLite file with one signature.

    Args:
        function: of tensors, by the names of `inputs`; returns a dict of tensors. Its constants, or
            the variables of the Keras model that it calls, go into the file.
        inputs: dict of `tf.TensorSpec`, in the order of the file's inputs.
        quantize: None: float32; "float16": weights in float16; "dynamic": weights in int8;
            "int8": weights and activations in int8, what TFLite cannot quantise in float32. Inputs
            and outputs keep their types.
        samples: for "int8", a function that returns an iterator of dicts of arrays, by the names
            of `inputs`, on which the ranges of activations are measured.
        name: of the signature.

    Raises:
        ValueError: TFLite has no builtin operators for the function; the first line that the
            converter says about it.
    """
    samples = samples and {name: samples}
    return convert_traced({name: trace(function, inputs)}, quantize, samples)


def trace(function, inputs):
    """Returns a function as a graph; see `convert`."""
    specs = [tf.TensorSpec(spec.shape, spec.dtype, name=key) for key, spec in inputs.items()]
    traced = tf.function(
        lambda *tensors: function(**dict(zip(inputs, tensors))),
        input_signature=specs,
        autograph=False,
    )
    return traced.get_concrete_function()


def convert_traced(functions, quantize=None, samples=None):
    """Returns the bytes of a TFLite file with a signature, and a graph, for each function.

    Args:
        functions: dict from signature to what `trace` gives.
        quantize: see `convert`.
        samples: for "int8", dict from signature to what `convert` takes as `samples`.
    """
    module = tf.Module()
    module.functions = functions
    # A saved model keeps the variables of the models that its functions call only so.
    module.variables_of_functions = [v for traced in functions.values() for v in traced.variables]
    with tempfile.TemporaryDirectory() as folder:
        # No gradients: nothing is trained from this copy.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(module, folder, signatures=functions, options=options)
        with _quiet():
            converter = tf.lite.TFLiteConverter.from_saved_model(
                folder, signature_keys=list(functions)
            )
        _configure(converter, quantize, samples and (lambda: _named_samples(samples)))
        in_float = quantize == "int8" and any(map(_has_float_scope, functions.values()))
        # Calibration alone: what must stay in float can only be told to the step after it.
        converter._experimental_calibrate_only = in_float
        try:
            with _quiet():
                content = converter.convert()
                content = _quantize_rest(content) if in_float else content
        except Exception as error:
            line = first_line(error)
            raise ValueError(f"TFLite cannot hold this network: {line}") from error
    return raise_scales(content) if quantize == "int8" else content


def _has_float_scope(traced):
    return any(FLOAT_SCOPE in operation.name for operation in traced.graph.get_operations())


def _quantize_rest(content):
    """Quantises a calibrated file but for the operators of `FLOAT_SCOPE`."""
    from tensorflow.lite.python.convert import mlir_quantize

    names = set()
    for graph in parse(content).subgraphs:
        for operator in graph.operators:
            name = graph.tensors[operator.outputs[0]].name.decode()
            names |= {name} if FLOAT_SCOPE in name else set()
    return mlir_quantize(content, denylisted_nodes=names)


def _named_samples(samples):
    for name, own in samples.items():
        for sample in own():
            yield name, sample


@contextlib.contextmanager
def _quiet():
    """Keeps what is no news from the user: the old interpreter, gradients that nobody needs."""
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


def _configure(converter, quantize, samples):
    # Without this the converter would silently take operators that a phone's runtime lacks.
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if quantize is None:
        return
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize == "int8":
        converter.representative_dataset = samples


def first_line(error):
    """Returns what the converter says first, without where in the graph it says it."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in str(error).splitlines()]
    for line in lines:
        # <unknown>:0: error: loc(callsite(... at ...)): 'tf.Svd' op is neither ...
        if message := re.search(r"error: (?:loc\(.*\): )?(.+)", line):
            return message[1]
    return next(filter(None, lines), type(error).__name__)


# Of an endless data set as of a long one; more images change the ranges little, and fill memory.
MOST_IMAGES = 500
FEWEST_IMAGES = 8
# Augmented images, and those of tests, leave the range of normalised pixels, but not by so much.
_MOST_RANGES = 20
_LEAST_SHARE = 0.5


def representative_images(data, shape, dtype="float32", normalization=None, stacklevel=3):
    """Returns the first 500 images of a data set: a list of arrays `[1, height, width, 3]`.

    Args:
        data: a `tf.data.Dataset`, `keras.utils.PyDataset`, array, generator or other iterable of
            images `[height, width, 3]` or of batches `[batch, height, width, 3]`; or a function
            that returns one, as `tf.lite.TFLiteConverter` takes it. An element may be a tuple, of
            which the first is taken, or a dict with one entry or with "image". It may be endless.
        shape: `(height, width, 3)` that the file takes.
        dtype: "float32": preprocessed images; "uint8": raw pixels.
        normalization: the network's `Normalization`, whose range images must have; None: any.
        stacklevel: of warnings, as of `warnings.warn`.

    Raises:
        ValueError: without an image, on one of another shape or type, on images that are all one
            value, or on those of another scale than the file takes.
    """
    if data is None:
        raise ValueError(
            "quantize='int8' needs `representative_data`: a hundred or more images that are like "
            "those the file will see, as a tf.data.Dataset or an iterable. Received: None"
        )
    images, more = [], False
    batches = image_batches(
        _unnamed(data),
        tuple(shape),
        num_batches=MOST_IMAGES + 1,
        name="representative_data",
        dtype=dtype,
        single=True,
    )
    for batch in batches:
        batch = batch.numpy()
        left = MOST_IMAGES - len(images)
        images.extend(image[None] for image in batch[:left])
        if len(batch) > left:
            more = True
            break
    if not images:
        raise ValueError(
            "`representative_data` has no image; a hundred or more are right. An iterator can be "
            "read only once: pass what makes one. Received: 0 images"
        )
    _check_values(images, dtype, normalization, stacklevel + 1)
    if more:
        warnings.warn(
            f"The ranges are measured on the first {MOST_IMAGES} images of `representative_data`; "
            "it has more.",
            stacklevel=stacklevel,
        )
    if len(images) < FEWEST_IMAGES:
        warnings.warn(
            f"The ranges of an int8 file measured on so few images may cut off what others reach; "
            f"a hundred or more are right. Received: {len(images)} images in "
            "`representative_data`",
            stacklevel=stacklevel,
        )
    return images


def _unnamed(data):
    """Returns the data set with images in place of dicts that name them."""
    if isinstance(data, dict):
        return _image_of(data)
    if isinstance(data, tf.data.Dataset):
        return data.map(_image_of) if isinstance(data.element_spec, dict) else data
    if hasattr(data, "shape"):
        # Batches in one array.
        return list(data) if len(data.shape) == 5 else data
    if isinstance(data, (str, bytes, keras.utils.PyDataset, tuple)):
        return data
    if isinstance(data, list):
        return [_image_of(element) for element in data]
    if callable(data) and not hasattr(data, "__iter__"):
        return lambda: _unnamed(data())
    return map(_image_of, data) if hasattr(data, "__iter__") else data


def _image_of(element):
    """Returns the image of a dict, and anything else as it is."""
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
    """Raises a ValueError on images of another scale, and warns where they may be of one."""
    low = min(float(image.min()) for image in images)
    high = max(float(image.max()) for image in images)
    received = f"Received: {len(images)} images with values from {low:g} to {high:g}"
    if low == high:
        raise ValueError(
            "`representative_data` must have images like those the file will see; int8 ranges "
            f"measured on images of one value fit no other. {received}"
        )
    if dtype == "uint8":
        least, most = 0.0, 255.0
        right = "raw pixels from 0 to 255, as the file's input_type='uint8' takes them"
        wrong = high <= 1
    elif normalization is None:
        return
    else:
        mean, std = np.array(normalization.mean), np.array(normalization.std)
        least, most = float(min(-mean / std)), float(max((1 - mean) / std))
        right = (
            f"images normalised as the network's `normalization` does, from about {least:.2f} to "
            f"{most:.2f}"
        )
        limit = max(abs(least), abs(most))
        # Where the normalised range begins about zero, it is the scale from 0 to 1 itself.
        is_unit = low >= 0 and high <= 1 and least < -0.1
        is_pixels = low >= 0 and high > 2 * most and all(_is_whole(image) for image in images)
        wrong = is_unit or is_pixels or max(-low, high) > _MOST_RANGES * limit
        wrong |= low >= 0 and least < -0.1 and high > 4 * most
    if wrong:
        raise ValueError(f"`representative_data` must have {right}. {received}")
    if high - low < _LEAST_SHARE * (most - least):
        warnings.warn(
            f"`representative_data` should have {right}; the ranges of an int8 file measured on "
            f"less cut off what other images reach. {received}",
            stacklevel=stacklevel,
        )


def _is_whole(image):
    return bool(np.all(image == np.rint(image)))


def labelled_batches(dataset, shape, classes, count):
    """Yields batches of a data set, from its beginning again where it ends.

    Args:
        dataset: as of `keras_dsnet.utils.batches.labelled_batches`.
        shape: `(height, width, 3)` of the images.
        classes: int.
        count: int, how many batches.

    Yields:
        Tensors: images, float32, and labels: int32 `[batch]` or float32 `[batch, classes]`.

    Raises:
        ValueError: on a batch that does not fit, or where there is none left.
    """
    number = 0
    while number < count:
        first = number
        for batch in batches.labelled_batches(dataset, shape, classes, count - number):
            number += 1
            yield batch
        if number == first:
            raise ValueError(
                f"`dataset` has no batches: it ended after {number}. An iterator can be read only "
                "once: pass what makes one."
            )


# An activation within 127 such steps of zero tells nothing in int8 beside a bias of ordinary size.
LEAST_SCALE = 1e-5
_WITH_BIAS = (
    schema.BuiltinOperator.CONV_2D,
    schema.BuiltinOperator.DEPTHWISE_CONV_2D,
    schema.BuiltinOperator.FULLY_CONNECTED,
)


def raise_scales(content):
    """Returns an int8 TFLite file whose activations have a scale of at least 1e-5.

    Where no image of the measurement makes a unit other than zero, the converter takes a scale near
    1e-8, and the next layer's bias, in units of that scale, goes beyond what XNNPACK takes: it
    refuses the graph, and ends the process on the way out.

    Args:
        content: bytes of the file.
    """
    model = parse(content)
    changed = False
    for graph in model.subgraphs:
        low = {
            index
            for index, tensor in enumerate(graph.tensors)
            if _is_activation(tensor, model) and tensor.quantization.scale[0] < LEAST_SCALE
        }
        for index in low:
            scale = np.array([LEAST_SCALE], "float32")
            graph.tensors[index].quantization.scale = scale
        for operator in graph.operators:
            if operator.inputs[0] in low and _kind(operator, model) in _WITH_BIAS:
                _requantize_bias(graph, operator, model)
        changed |= bool(low)
    return pack(model) if changed else content


def _is_activation(tensor, model):
    own = tensor.quantization
    if tensor.type != schema.TensorType.INT8 or own is None or own.scale is None:
        return False
    data = model.buffers[tensor.buffer].data
    return len(own.scale) == 1 and (data is None or len(data) == 0)


def _kind(operator, model):
    return builtin_code(model.operatorCodes[operator.opcodeIndex])


def _requantize_bias(graph, operator, model):
    """Writes a bias in units of the input's new scale times those of the kernel."""
    if len(operator.inputs) < 3 or operator.inputs[2] < 0:
        return
    kernel, bias = (graph.tensors[index] for index in operator.inputs[1:3])
    steps = np.asarray(model.buffers[bias.buffer].data, "uint8").view("<i4")
    values = steps * np.asarray(bias.quantization.scale, "float64")
    scales = np.asarray(kernel.quantization.scale, "float64") * LEAST_SCALE
    limit = np.iinfo("int32").max
    new = np.clip(np.rint(values / scales), -limit, limit).astype("<i4")
    # A new buffer: another operator may use the old one.
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(new.tobytes(), "uint8")
    bias.buffer = len(model.buffers)
    bias.quantization.scale = scales.astype("float32")
    model.buffers.append(buffer)
