"""Export of one sub-network as a TFLite file."""

import os
from typing import Any

import numpy as np
import tensorflow as tf

from keras_dsnet.export.block_executor import BlockExecutor
from keras_dsnet.export.conversion import convert, normalise_pixels, representative_images
from keras_dsnet.export.export_routed import TOLERANCE
from keras_dsnet.export.file_task import compare_results, task_of
from keras_dsnet.export.metadata import describe, with_labels
from keras_dsnet.export.options import check_network, check_options, check_target
from keras_dsnet.export.packing import pack
from keras_dsnet.export.tflite_model import parse, separate_buffers
from keras_dsnet.models import DynamicSlimmableNetwork
from keras_dsnet.utils.atomic_file import atomic_file


def export_subnetwork(
    network: DynamicSlimmableNetwork,
    path: Any,
    filename: str | os.PathLike,
    input_shape: tuple[int, int, int] | None = None,
    quantize: str | None = None,
    representative_data: Any = None,
    float_norms: bool = True,
    input_type: str = "float32",
) -> dict[str, Any]:
    """Writes one path of a network as a TFLite file of builtin operators, and checks it.

    Batch normalisation is folded into the convolutions. The file has one signature,
    "serving_default", from `image` `[1, height, width, 3]` to `output` `[1, classes]`. Unless it is
    quantised, it computes in float32, whatever the precision of the network.

    The file has one subgraph and TFLite Metadata: how images are normalised, and the names of the
    classes in the order of the outputs, if the network has them. MediaPipe's `ImageClassifier`
    takes files with `input_type="uint8"`.

    Args:
        network: A `DynamicSlimmableNetwork`.
        path: The path, as in a call of the network.
        filename: Path of the file, ending in `.tflite`. An old file there survives a failure.
        input_shape: `(height, width, 3)` of the file's images. Defaults to the network's shape, and
            is required if the network takes images of any size.
        quantize: `None`, "float16", "dynamic" or "int8", as for `export_routed`. Defaults to
            `None`.
        representative_data: Images for "int8", as for `export_routed`. Defaults to `None`.
        float_norms: Whether group normalisation stays in float in an int8 file, as in routed files.
            Defaults to `True`.
        input_type: "float32" for preprocessed images, or "uint8" for raw pixels, which the file
            normalises by the network's `normalization`. Defaults to "float32".

    Returns:
        Dict of "path"; "bytes", the size of the file; "madds", the path's multiply-adds; and
        "difference", the largest difference of the file's outputs from the network's on random
        images, where 1 is their largest value.

    Raises:
        ValueError: If the path is unknown, an option or an image does not fit, TFLite cannot hold
            the network, or the outputs of a float32 file differ by more than 1e-4.
        OSError: If the file cannot be written.

    Example:

    ```python
    from keras_dsnet.export import export_subnetwork
    from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, MobileNetStage

    spec = MobileNetSpec(stem=(4, 6), stages=(MobileNetStage(1, 2, (8, 16), gated=True),))
    model = DynamicSlimmableNetwork(spec, (16, 16, 3), classes=5)
    report = export_subnetwork(model, "slimmest", "slimmest.tflite")
    assert report["difference"] < 1e-4
    ```
    """
    check_network(network)
    network.resolve_path(path)
    shape = check_options(network, input_shape, quantize, representative_data, input_type)
    check_target(filename)
    madds = network.madds(path, shape)
    images: list[np.ndarray] = []
    if quantize == "int8":
        images = representative_images(
            representative_data, shape, input_type, network.normalization
        )

    def infer(image):
        if input_type == "uint8":
            image = normalise_pixels(image, network.normalization, quantize == "int8")
        return _run(network, path, image, float_norms, input_type == "uint8" and quantize == "int8")

    content = convert(
        infer,
        {"image": tf.TensorSpec((1, *shape), tf.as_dtype(input_type))},
        quantize,
        (lambda: ({"image": image} for image in images)) if images else None,
    )
    content = finish_file(content, network, input_type)
    difference = _difference(content, network, path, shape, input_type)
    if quantize is None and not difference <= TOLERANCE:
        raise ValueError(
            f"The TFLite file of path {path!r} differs by {difference:.1e} from the network; "
            f"{TOLERANCE:.0e} is allowed. {filename} was not written"
        )
    # The file is opened last, so that a killed export leaves nothing.
    with atomic_file(filename, "wb") as file:
        file.write(content)
    return {"path": path, "bytes": len(content), "madds": madds, "difference": difference}


def _run(network, path, image, float_norms, raw_int8=False):
    """Runs a path with the operators of a routed file, but with whole kernels and no choices."""
    executor = BlockExecutor(network.resolve_path(path), float_norms=float_norms)
    executor.runs_all = True
    task, x = task_of(network), (image,)
    for section in range(len(network.sections)):
        x = task.run_section(executor, section, x)
    return task.finish(x, executor.path.gates[-1], takes_pixels_in_int8=raw_int8)


def finish_file(
    content: bytes, network: DynamicSlimmableNetwork, input_type: str = "float32"
) -> bytes:
    """Gives a converted sub-network its tensor names, metadata and labels.

    Args:
        content: Bytes of a file with one signature, as `convert` returns them.
        network: The `DynamicSlimmableNetwork`.
        input_type: Type of the file's images, "float32" or "uint8". Defaults to "float32".

    Returns:
        The bytes of the finished file.
    """
    model = parse(content)
    (signature,) = model.signatureDefs
    graph = model.subgraphs[signature.subgraphIndex]
    # Some runtimes know inputs and outputs by the names of their tensors only.
    for entry in (*signature.inputs, *signature.outputs):
        graph.tensors[entry.tensorIndex].name = entry.name
    separate_buffers(model)
    describe(model, network, input_type)
    return with_labels(pack(model), network)


def _difference(content, network, path, shape, input_type, images=4):
    """Returns the largest difference of a file's outputs from the network's on random images."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_content=content).get_signature_runner("serving_default")
    generator = np.random.default_rng(0)
    # In lower precision the rounding of the network would be part of the difference.
    task = task_of(network).in_float32()
    network = task.network
    if input_type == "uint8":
        batch = generator.integers(0, 256, (images, *shape), "uint8")
        normalised = network.normalization(batch)
    else:
        batch = normalised = generator.normal(size=(images, *shape)).astype("float32")
    results = [runner(image=image[None]) for image in batch]
    return compare_results(results, task.expected(normalised, path))
