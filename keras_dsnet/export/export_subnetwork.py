"""Writes one sub-network as a TFLite file."""

import keras
import numpy as np
import tensorflow as tf

from keras_dsnet.export.assembly import separate_buffers
from keras_dsnet.export.block_executor import BlockExecutor
from keras_dsnet.export.conversion import convert, representative_images
from keras_dsnet.export.export_routed import TOLERANCE, largest_difference
from keras_dsnet.export.graphs import normalise_pixels
from keras_dsnet.export.metadata import describe, with_labels
from keras_dsnet.export.options import check_network, check_options, check_target
from keras_dsnet.export.tflite_model import pack, parse, tensor_index
from keras_dsnet.models.executors import activate
from keras_dsnet.models.serialization import with_dtype
from keras_dsnet.utils.atomic_file import atomic_file


def export_subnetwork(
    network,
    path,
    filename,
    input_shape=None,
    quantize=None,
    representative_data=None,
    float_norms=True,
    input_type="float32",
):
    """Writes one path of a network as a TFLite file of builtin operators, and checks it.

    Batch normalisation is folded into the convolutions. The file has one signature,
    "serving_default": `image` `[1, height, width, 3]` to `output` `[1, classes]`. It computes in
    float32, whatever the precision of the network, unless it is quantised.

    The file has one graph, and TFLite Metadata: how images are normalised, and the names of the
    classes where the network has them, in the order of the outputs. MediaPipe's `ImageClassifier`
    takes it with `input_type="uint8"`.

    Args:
        network: a `DynamicSlimmableNetwork`.
        path: as in a call of the network.
        filename: of the file, ending in `.tflite`; an old one survives a failure.
        input_shape: `(height, width, 3)`, where the network leaves it open; None: the network's.
        quantize: None, "float16", "dynamic" or "int8"; see `export_routed`.
        representative_data: for "int8", images as the file takes them; see `export_routed`.
        float_norms: bool: keep group normalisation in float in an int8 file, as routed files do.
        input_type: "float32": preprocessed images; "uint8": raw pixels, which the file normalises
            by the network's `normalization`.

    Returns:
        Dict of "path", "bytes", "madds", and "difference": the largest difference of the file's
        outputs from the network's on random images, where 1 is their largest value.

    Raises:
        ValueError: on an unknown path, options or images that do not fit, a network that TFLite
            cannot hold, or a float32 file whose outputs differ by more than 1e-4.
        OSError: where the file cannot be written.
    """
    check_network(network)
    network.resolve_path(path)
    shape = check_options(network, input_shape, quantize, representative_data, input_type)
    check_target(filename)
    madds = network.madds(path, shape)
    images = None
    if quantize == "int8":
        images = representative_images(
            representative_data, shape, input_type, network.normalization
        )

    def ready(image):
        if input_type == "float32":
            return image
        return normalise_pixels(image, network.normalization, quantize == "int8")

    content = convert(
        lambda image: {"output": _run(network, path, ready(image), float_norms)},
        {"image": tf.TensorSpec((1, *shape), tf.as_dtype(input_type))},
        quantize,
        images and (lambda: ({"image": image} for image in images)),
    )
    content = finish_file(content, network, input_type)
    copy = with_dtype(network, "float32")
    difference = _largest_difference(content, copy, path, shape, input_type)
    if quantize is None and not difference <= TOLERANCE:
        raise ValueError(
            f"The TFLite file of path {path!r} differs by {difference:.1e} from the network; "
            f"{TOLERANCE:.0e} is allowed. {filename} was not written"
        )
    # Opened last, so that an export that is killed leaves nothing.
    with atomic_file(filename, "wb") as file:
        file.write(content)
    return {"path": path, "bytes": len(content), "madds": madds, "difference": difference}


def finish_file(content, network, input_type="float32"):
    """Returns the file of one sub-network with names, metadata and labels, for any runtime.

    Args:
        content: bytes, as `convert` gives them.
        network: the `DynamicSlimmableNetwork`.
        input_type: of the file.
    """
    model = parse(content)
    (signature,) = model.signatureDefs
    graph = model.subgraphs[signature.subgraphIndex]
    # Some runtimes know inputs and outputs by the names of their tensors only.
    for name, outputs in (("image", False), ("output", True)):
        graph.tensors[tensor_index(signature, name, outputs)].name = name.encode()
    separate_buffers(model)
    describe(model, network, input_type)
    return with_labels(pack(model), network)


def _run(network, path, image, float_norms):
    """Runs a path as a routed file does, without its choices and with whole kernels."""
    executor = BlockExecutor(network.resolve_path(path), float_norms=float_norms)
    x = (image,)
    for steps in network.sections:
        x = executor.run(steps, x)
    return activate(network.classifier_activation, x[0]) if network.include_top else x[0]


def _largest_difference(content, network, path, shape, input_type, images=4):
    """Returns how far a file's outputs are from the network's on random images."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_content=content).get_signature_runner("serving_default")
    generator = np.random.default_rng(0)
    if input_type == "uint8":
        batch = generator.integers(0, 256, (images, *shape), "uint8")
        normalised = network.normalization(batch)
    else:
        batch = normalised = generator.normal(size=(images, *shape)).astype("float32")
    expected = keras.ops.convert_to_numpy(network(normalised, path=path))
    outputs = np.concatenate([runner(image=image[None])["output"] for image in batch])
    return largest_difference(outputs, expected)
