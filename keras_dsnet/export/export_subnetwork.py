"""Writes one sub-network as a TFLite file."""

import keras
import numpy as np
import tensorflow as tf

from keras_dsnet.export.block_executor import BlockExecutor
from keras_dsnet.export.check_routed import TOLERANCE, largest_difference
from keras_dsnet.export.conversion import check_quantize, convert
from keras_dsnet.export.representative_images import representative_images
from keras_dsnet.models.activation import activate
from keras_dsnet.models.precision import with_dtype
from keras_dsnet.utils.atomic_file import atomic_file


def export_subnetwork(
    network,
    path,
    filename,
    input_shape=None,
    quantize=None,
    representative_data=None,
    float_norms=True,
):
    """Writes one path of a network as a TFLite file of builtin operators, and checks it.

    Batch normalisation is folded into the convolutions. The file has one signature,
    "serving_default": `image` float32 `[1, height, width, 3]`, preprocessed, to `output`
    `[1, classes]`. It computes in float32, whatever the precision of the network, unless it is
    quantised.

    Args:
        network: a `DynamicSlimmableNetwork`.
        path: as in a call of the network.
        filename: of the file; an old one survives a failure.
        input_shape: `(height, width, 3)`; None: the network's, which then must be fixed.
        quantize: None, "float16", "dynamic" or "int8"; see `export_routed`.
        representative_data: for "int8", preprocessed images; see `export_routed`.
        float_norms: bool: keep group normalisation in float in an int8 file, as routed files do.

    Returns:
        Dict of "path", "bytes", "madds", and "difference": the largest difference of the file's
        outputs from the network's on random images, where 1 is their largest value.

    Raises:
        ValueError: on an unknown path, an open input shape, images that do not fit, a network that
            TFLite cannot hold, or a float32 file whose outputs differ by more than 1e-4.
        OSError: where the file cannot be written.
    """
    shape = tuple(input_shape or network.input_shape[1:])
    madds = network.madds(path, shape)
    check_quantize(quantize)
    images = representative_images(representative_data, shape) if quantize == "int8" else None
    # Opened first: a folder that cannot be written is known before the conversion, not after it.
    with atomic_file(filename, "wb") as file:
        content = convert(
            lambda image: {"output": _run(network, path, image, float_norms)},
            {"image": tf.TensorSpec((1, *shape))},
            quantize,
            images and (lambda: ({"image": image} for image in images)),
        )
        difference = _largest_difference(content, with_dtype(network, "float32"), path, shape)
        if quantize is None and not difference <= TOLERANCE:
            raise ValueError(
                f"The TFLite file of path {path!r} differs by {difference:.1e} from the network; "
                f"{TOLERANCE:.0e} is allowed. {filename} was not written"
            )
        file.write(content)
    return {"path": path, "bytes": len(content), "madds": madds, "difference": difference}


def _run(network, path, image, float_norms):
    """Runs a path as a routed file does, without its choices and with whole kernels."""
    executor = BlockExecutor(network.resolve_path(path), float_norms=float_norms)
    x = (image,)
    for steps in network.sections:
        x = executor.run(steps, x)
    return activate(network.classifier_activation, x[0]) if network.include_top else x[0]


def _largest_difference(content, network, path, shape, images=4):
    """Returns how far a file's outputs are from the network's on random images."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_content=content).get_signature_runner("serving_default")
    batch = np.random.default_rng(0).normal(size=(images, *shape)).astype("float32")
    expected = keras.ops.convert_to_numpy(network(batch, path=path))
    outputs = np.concatenate([runner(image=image[None])["output"] for image in batch])
    return largest_difference(outputs, expected)
