"""Writes one sub-network as a TFLite file."""

import re
import tempfile

import keras
import numpy as np
import tensorflow as tf

from keras_dsnet.utils.atomic_file import atomic_file

TOLERANCE = 1e-4


def export_subnetwork(network, path, filename, input_shape=None):
    """Writes one path of a network as a TFLite file of builtin operators, and checks it.

    Batch normalisation is folded into the convolutions. The file has one signature,
    "serving_default": `image` float32 `[1, height, width, 3]`, preprocessed, to `output`
    `[1, classes]`. It computes in float32, whatever the precision of the network.

    Args:
        network: a `DynamicSlimmableNetwork`.
        path: as in a call of the network.
        filename: of the file; an old one survives a failure.
        input_shape: `(height, width, 3)`; None: the network's, which then must be fixed.

    Returns:
        Dict of "path", "bytes", "madds", and "difference": the largest difference of the file's
        outputs from the network's on random images, where 1 is their largest value.

    Raises:
        ValueError: on an unknown path, an open input shape, a network that TFLite cannot hold, or a
            file whose outputs differ by more than 1e-4.
        OSError: where the file cannot be written.
    """
    shape = tuple(input_shape or network.input_shape[1:])
    madds = network.madds(path, shape)
    # Opened first: a folder that cannot be written is known before the conversion, not after it.
    with atomic_file(filename, "wb") as file:
        content = _convert(network.subnetwork(path, fold_batch_norm=True), shape)
        difference = _largest_difference(content, _in_float32(network), path, shape)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"The TFLite file of path {path!r} differs by {difference:.1e} from the network; "
                f"{TOLERANCE:.0e} is allowed. {filename} was not written"
            )
        file.write(content)
    return {"path": path, "bytes": len(content), "madds": madds, "difference": difference}


def _convert(model, shape):
    """Returns the bytes of a TFLite file of a plain Keras model, for batch 1."""
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serving_default",
        lambda image: {"output": model(image)},
        input_signature=[tf.TensorSpec((1, *shape), tf.float32, name="image")],
    )
    with tempfile.TemporaryDirectory() as folder:
        archive.write_out(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(
            folder, signature_keys=["serving_default"]
        )
        # Without this the converter would silently take operators that a phone's runtime lacks.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        try:
            return converter.convert()
        except Exception as error:
            line = _first_line(error)
            raise ValueError(f"TFLite cannot hold this network: {line}") from error


def _in_float32(network):
    """Returns the network, or a float32 copy: lower precision differs by its own rounding."""
    if network.compute_dtype == "float32":
        return network
    copy = type(network).from_config({**network.get_config(), "dtype": "float32"})
    copy.set_weights(network.get_weights())
    return copy


def _largest_difference(content, network, path, shape, images=4):
    """Returns how far a file's outputs are from the network's, relative to their largest value."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_content=content).get_signature_runner("serving_default")
    batch = np.random.default_rng(0).normal(size=(images, *shape)).astype("float32")
    expected = keras.ops.convert_to_numpy(network(batch, path=path))
    outputs = np.concatenate([runner(image=image[None])["output"] for image in batch])
    return float(np.abs(outputs - expected).max() / max(np.abs(expected).max(), 1e-12))


def _first_line(error):
    """Returns what the converter says first, without where in the graph it says it."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in str(error).splitlines()]
    for line in lines:
        # <unknown>:0: error: loc(callsite(... at ...)): 'tf.Svd' op is neither ...
        if message := re.search(r"error: (?:loc\(.*\): )?(.+)", line):
            return message[1]
    return next(filter(None, lines), type(error).__name__)
