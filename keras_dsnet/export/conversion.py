"""From a traced function to a TFLite file of builtin operators."""

import contextlib
import logging
import re
import tempfile
import warnings

import tensorflow as tf

from keras_dsnet.export.flatbuffer import parse
from keras_dsnet.export.raise_scales import raise_scales

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
