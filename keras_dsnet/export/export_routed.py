"""Writes a network with all its routes as one TFLite file."""

import collections
import time

import keras
import numpy as np
import tensorflow as tf

from keras_dsnet.export.assembly import RoutedFile
from keras_dsnet.export.conversion import representative_images
from keras_dsnet.export.graphs import RoutedParts, convert_choices, convert_parts
from keras_dsnet.export.metadata import OLDEST_RUNTIMES, with_labels
from keras_dsnet.export.options import (
    check_network,
    check_options,
    check_target,
    warn_of_stale_gates,
)
from keras_dsnet.export.partition import LAYOUTS, cuts_of, plan_sections
from keras_dsnet.export.tflite_model import operators_of
from keras_dsnet.models.path import check_routes
from keras_dsnet.models.serialization import with_dtype
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


TOLERANCE = 1e-4


def check_routed(content, network, routes, shape, input_type="float32", quantize=None, images=2):
    """Returns how far each route's outputs are from the network's; 1 is their largest value.

    Args:
        content: bytes of the file.
        network: a `DynamicSlimmableNetwork`.
        routes: tuple of widths. With several gates every uniform path is run, and one on which each
            gate takes another width than the one before it.
        shape: `(height, width, 3)`.
        input_type: "float32" or "uint8".
        quantize: as the file was made; only a float32 file must agree.
        images: int: how many random images to run.

    Returns:
        Dict from path, one width per gate, to the difference.

    Raises:
        ValueError: where a forced route is not taken, or a float32 file differs by more than 1e-4.
    """
    from ai_edge_litert.interpreter import Interpreter

    # Lower precision differs by its own rounding.
    network = with_dtype(network, "float32")
    runner = Interpreter(model_content=content).get_signature_runner("bounded")
    pixels = np.random.default_rng(0).integers(0, 256, (images, *shape), "uint8")
    normalised = network.normalization(pixels)
    inputs = pixels if input_type == "uint8" else normalised
    differences = {}
    for path in checked_paths(routes, network.num_gates):
        bound = np.array(path, "int32")
        results = [runner(image=image[None], min_width=bound, max_width=bound) for image in inputs]
        taken = {tuple(map(int, result["path"])) for result in results}
        if taken != {path}:
            raise ValueError(f"The TFLite file takes the paths {sorted(taken)} instead of {path}")
        expected = keras.ops.convert_to_numpy(network(normalised, path=path))
        outputs = np.concatenate([result["output"] for result in results])
        # Without a classifier the file's features are padded to the widest route's channels.
        outputs = outputs[..., : expected.shape[-1]]
        differences[path] = largest_difference(outputs, expected)
        if quantize is None and not differences[path] <= TOLERANCE:
            raise ValueError(
                f"The TFLite file differs by {differences[path]:.1e} from the network on the path "
                f"{path}; {TOLERANCE:.0e} is allowed. It was not written"
            )
    return differences


def checked_paths(routes, num_gates):
    """Returns the paths that are run: the uniform ones first."""
    uniform = [(route,) * num_gates for route in routes]
    mixed = tuple(routes[gate % len(routes)] for gate in range(num_gates))
    return list(dict.fromkeys([*uniform, mixed]))


def largest_difference(outputs, expected):
    """Returns the largest difference, where 1 is the largest expected value."""
    return float(np.abs(outputs - expected).max() / max(np.abs(expected).max(), 1e-12))


class RoutedReport:
    """Size, routes, operators of a routed file, and what its routes share.

    Args:
        network: the `DynamicSlimmableNetwork`.
        model: the file as a `schema.ModelT`.
        content: its bytes.
        plans: for each gate a `SectionPlan`.
        shape: `(height, width, 3)`.
        differences: dict from path to the difference from the network's outputs.
    """

    def __init__(self, network, model, content, plans, shape, differences):
        self._bytes = len(content)
        self._routes = [
            {
                "path": path[0] if len(path) == 1 else path,
                "madds": network.madds(path, shape),
                "cuts": cuts_of(plans, path),
                "difference": difference,
            }
            for path, difference in differences.items()
        ]
        counts = collections.Counter()
        for graph in model.subgraphs:
            counts.update(operators_of(graph, model))
        self._operators = dict(counts.most_common())
        self._constants = sum(
            len(buffer.data) for buffer in model.buffers if buffer.data is not None
        )
        self._apart = sum(_constants(graph, model) for graph in model.subgraphs)

    def as_dict(self):
        """Returns the report for JSON; sizes are in bytes."""
        return {
            "bytes": self._bytes,
            "routes": self._routes,
            "operators": self._operators,
            "shared": {"constants": self._constants, "parts_apart": self._apart},
        }

    def text(self, filename):
        """Returns the report in words."""
        width = max(4, *(len(str(row["path"])) for row in self._routes))
        lines = [
            f"{filename}: {self._bytes / 1e6:.2f} MB, of which {self._constants / 1e6:.2f} MB are "
            f"constants; its graphs apart have {self._apart / 1e6:.2f} MB",
            f"{'path':<{width}}     MAdds  difference  channel groups end at the channels of",
        ]
        for row in self._routes:
            cuts = ", ".join(map(str, row["cuts"]))
            madds, difference = row["madds"] / 1e6, row["difference"]
            lines.append(f"{row['path']!s:<{width}} {madds:8.2f}M  {difference:10.1e}  {cuts}")
        operators = ", ".join(f"{name} {count}" for name, count in self._operators.items())
        return "\n".join([*lines, f"operators: {operators}"])


def _constants(graph, model):
    """Returns the bytes of all constants of a graph."""
    buffers = (model.buffers[index].data for index in {tensor.buffer for tensor in graph.tensors})
    return sum(len(data) for data in buffers if data is not None)
