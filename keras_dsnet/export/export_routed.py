"""Writes a network with its routes as one TFLite file."""

import time
import warnings

import tensorflow as tf

from keras_dsnet.export.check_routed import check_routed
from keras_dsnet.export.conversion import check_quantize
from keras_dsnet.export.convert_parts import convert_choices, convert_parts
from keras_dsnet.export.plan_sections import LAYOUTS, cuts_of, plan_sections
from keras_dsnet.export.representative_images import representative_images
from keras_dsnet.export.routed_file import RoutedFile
from keras_dsnet.export.routed_parts import RoutedParts
from keras_dsnet.export.routed_report import RoutedReport
from keras_dsnet.models.path import check_routes
from keras_dsnet.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from keras_dsnet.utils.atomic_file import atomic_file

INPUT_TYPES = ("float32", "uint8")


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
    can be taken.

    Args:
        network: a `DynamicSlimmableNetwork`.
        filename: of the file; an old one survives a failure.
        routes: candidate widths, ascending; None: the network's.
        quantize: None, "float16" (weights), "dynamic" (int8 weights), or "int8": weights and
            activations; needs `representative_data`.
        layout: "shared": one copy of the weights, cut into blocks that routes add up, and a few of
            them twice where that saves most time; "fast": each route has whole convolutions of its
            own, with several gates up to twice the widest path's weights, and the rest shared.
        representative_data: a `tf.data.Dataset` or another iterable of images, or of batches of
            them, as the file takes them; every route is measured on all of it.
        input_shape: `(height, width, 3)`; None: the network's, which then must be fixed.
        input_type: "float32": preprocessed images; "uint8": raw pixels, which the file normalises.
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
    routes = check_routes(network.routes if routes is None else routes, network.num_widths)
    shape = _check(network, quantize, layout, input_shape, input_type)
    integer = quantize == "int8"
    images = representative_images(representative_data, shape, input_type) if integer else None
    if not network.gates_trained:
        warnings.warn(
            "The gate of this network is not trained: the file's own choices mean nothing; force a "
            "width by the signature 'bounded', or train the gate with "
            "keras_dsnet.training.GateTrainer.",
            stacklevel=2,
        )
    say = _teller(verbose)
    # Opened first: a folder that cannot be written is known before the conversion, not after it.
    with atomic_file(filename, "wb") as target:
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
            _metadata(network, routes, plans, shape, quantize, layout, input_type),
        )
        content = file.content()
        say("checking paths against the network")
        differences = check_routed(content, network, routes, shape, input_type, quantize)
        target.write(content)
    report = RoutedReport(network, file.model, content, plans, shape, differences)
    if verbose:
        print(report.text(filename), flush=True)
    return report.as_dict()


def _check(network, quantize, layout, input_shape, input_type):
    check_quantize(quantize)
    shape = network.input_shape[1:] if input_shape is None else input_shape
    if not _is_image_shape(shape):
        raise ValueError(
            "A TFLite file has one image size: pass `input_shape=(height, width, 3)`. "
            f"Received: input_shape={shape!r}"
        )
    if layout not in LAYOUTS:
        raise ValueError(f"`layout` must be 'shared' or 'fast'. Received: layout={layout!r}")
    if input_type not in INPUT_TYPES:
        raise ValueError(
            f"`input_type` must be 'float32' or 'uint8'. Received: input_type={input_type!r}"
        )
    return tuple(shape)


def _is_image_shape(shape):
    if not isinstance(shape, (tuple, list)) or len(shape) != 3 or shape[-1] != 3:
        return False
    return all(isinstance(side, int) and side > 0 for side in shape)


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
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
        },
        "quantize": quantize,
        "layout": layout,
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
