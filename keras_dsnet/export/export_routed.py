"""Writes a network with its routes as one TFLite file."""

import time

import tensorflow as tf

from keras_dsnet.export.check_options import (
    check_network,
    check_options,
    check_target,
    warn_of_stale_gates,
)
from keras_dsnet.export.check_routed import check_routed
from keras_dsnet.export.convert_parts import convert_choices, convert_parts
from keras_dsnet.export.metadata import OLDEST_RUNTIMES, with_labels
from keras_dsnet.export.plan_sections import LAYOUTS, cuts_of, plan_sections
from keras_dsnet.export.representative_images import representative_images
from keras_dsnet.export.routed_file import RoutedFile
from keras_dsnet.export.routed_parts import RoutedParts
from keras_dsnet.export.routed_report import RoutedReport
from keras_dsnet.models.path import check_routes
from keras_dsnet.utils.atomic_file import atomic_file


def export_routed(
    network,
    filename,
    routes=None,
    quantize=None,
    layout="shared",
    representative_data=None,
    input_shape=None,
    input_type="float32",
    verbose=True,
):
    """Writes a network as one TFLite file whose gates choose a path for every image.

    The file has builtin operators only, batch 1, and two signatures over the same graphs:
    "serving_default", `image` to `output` `[1, classes]` and `path` int32 `[num_gates]`; and
    "bounded", which takes `min_width` and `max_width` too, int32 `[num_gates]`: each gate chooses
    its best-scored route within its own, and equal bounds force a width. Every path of the routes
    can be taken. Tensors have the names of the signatures. The image's size and the batch cannot be
    changed by resizing tensors.

    The file has TFLite Metadata, and the network's class names, in the order of the outputs, in a
    file `labels.txt` at its end. The oldest runtimes that run it right are TensorFlow Lite 2.14 and
    LiteRT 1.0.1; with "float16" 2.19 and 1.1.1, with "dynamic" 2.19 and 1.1.2.

    Args:
        network: a `DynamicSlimmableNetwork`.
        filename: of the file, ending in `.tflite`; an old one survives a failure.
        routes: candidate widths, ascending; None: the network's. Gates that were not trained for
            them are warned of.
        quantize: None, "float16" (weights), "dynamic" (int8 weights), or "int8": weights and
            activations; needs `representative_data`.
        layout: "shared": one copy of the weights, cut into blocks that routes add up, and a few of
            them twice where that saves most time; "fast": each route has whole convolutions of its
            own, with several gates up to twice the widest path's weights, and the rest shared.
        representative_data: for "int8" only: a `tf.data.Dataset`, array, generator or other
            iterable of images, or of batches of them, as the file takes them, or a function that
            returns one; it may be endless. Every route is measured on its first 500 images.
        input_shape: `(height, width, 3)`, where the network leaves it open; None: the network's.
        input_type: "float32": preprocessed images; "uint8": raw pixels, which the file normalises
            by the network's `normalization`.
        verbose: bool: print a line per phase and a report.

    Returns:
        Dict: "bytes", "routes" (for each path that was checked its MAdds, the cuts of each span of
        layers between two strides, and the largest difference of the file's outputs from the
        network's, where 1 is their largest value), "operators", "shared".

    Raises:
        ValueError: on routes, options or images that do not fit, a network that TFLite cannot hold,
            or a float32 file whose outputs differ by more than 1e-4.
        OSError: where the file cannot be written.
    """
    check_network(network)
    routes = check_routes(network.routes if routes is None else routes, network.num_widths)
    if not isinstance(layout, str) or layout not in LAYOUTS:
        raise ValueError(f"`layout` must be 'shared' or 'fast'. Received: layout={layout!r}")
    shape = check_options(network, input_shape, quantize, representative_data, input_type)
    check_target(filename)
    integer = quantize == "int8"
    images = None
    if integer:
        images = representative_images(
            representative_data, shape, input_type, network.normalization
        )
    warn_of_stale_gates(network, routes, stacklevel=2)
    say = _teller(verbose)
    plans = plan_sections(network, routes, shape, layout, integer)
    parts = RoutedParts(network, routes, plans, integer, input_type == "uint8")
    runs, choices = list(parts.parts()), list(parts.choices())
    say(f"converting {len(runs)} graphs")
    image = tf.TensorSpec((1, *shape), tf.as_dtype(input_type))
    scores = [gate.w2.shape[1] for gate in network.slimming_gates]
    contents = convert_parts(runs, image, quantize, images, say)
    contents.append(convert_choices(choices, scores, len(routes)))
    file = RoutedFile(
        runs,
        choices,
        contents,
        routes,
        network,
        _metadata(network, routes, plans, shape, quantize, layout, input_type),
    )
    content = with_labels(file.content(), network)
    say("checking paths against the network")
    differences = check_routed(content, network, routes, shape, input_type, quantize)
    # Opened last, so that an export that is killed leaves nothing.
    with atomic_file(filename, "wb") as target:
        target.write(content)
    report = RoutedReport(network, file.model, content, plans, shape, differences)
    if verbose:
        print(report.text(filename), flush=True)
    return report.as_dict()


def _metadata(network, routes, plans, shape, quantize, layout, input_type):
    """Returns what the file says of itself."""
    return {
        "format": 1,
        "network": network.name,
        "input_shape": list(shape),
        "input_type": input_type,
        "preprocessing": {
            "in_file": input_type == "uint8",
            "channels": "RGB",
            "scale": 1 / 255,
            **network.normalization.get_config(),
        },
        "class_names": network.class_names,
        "quantize": quantize,
        "layout": layout,
        "oldest_runtime": dict(zip(("tensorflow", "litert"), OLDEST_RUNTIMES[quantize])),
        "num_widths": network.num_widths,
        "gates_trained": network.gates_trained,
        "routes": [
            {
                "path": [route] * network.num_gates,
                "madds": network.madds(route, shape),
                "cuts": cuts_of(plans, [route] * network.num_gates),
            }
            for route in routes
        ],
    }


def _teller(verbose):
    """Returns a function that prints a phase, and how long the export has run."""
    start = time.perf_counter()

    def say(phase):
        if verbose:
            print(f"[{time.perf_counter() - start:5.1f} s] {phase}", flush=True)

    return say
