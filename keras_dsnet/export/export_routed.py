"""Export of a network with all its routes as one TFLite file."""

import collections
import contextlib
import dataclasses
import logging
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_dsnet.export.assembly import assemble_file
from keras_dsnet.export.confidence import ConfidencePlan, confidence_metadata
from keras_dsnet.export.conversion import representative_images
from keras_dsnet.export.convert_graphs import convert_parts
from keras_dsnet.export.dynamic_interpreter import FORMAT, read_metadata
from keras_dsnet.export.file_task import compare_results, task_of
from keras_dsnet.export.graphs import RoutedParts
from keras_dsnet.export.metadata import OLDEST_RUNTIMES, with_labels
from keras_dsnet.export.options import (
    check_crop,
    check_network,
    check_options,
    check_target,
    plan_routing,
    warn_of_stale_gates,
)
from keras_dsnet.export.packing import pack
from keras_dsnet.export.partition import LAYOUTS, group_ends_of, plan_sections
from keras_dsnet.export.staged import (
    assemble_staged,
    parts_beside,
    split_staged,
    staged_metadata,
)
from keras_dsnet.export.staged_runtime import TRUNK, StagedRuntime
from keras_dsnet.export.tflite_model import operators_of
from keras_dsnet.models.dynamic_slimmable_network import DynamicSlimmableNetwork
from keras_dsnet.utils.atomic_file import atomic_file

# The largest difference of a float32 file's outputs from the network's, where 1 is their largest
# value.
TOLERANCE = 1e-4
_LOGGER = logging.getLogger("keras_dsnet")


def export_routed(
    network: DynamicSlimmableNetwork,
    filename: str | os.PathLike,
    routes: Sequence[int] | None = None,
    quantize: str | None = None,
    layout: str = "shared",
    representative_data: Any = None,
    input_shape: Sequence[int] | None = None,
    input_type: str = "float32",
    verbose: bool = True,
    routing: str | None = None,
    steps: Sequence[int] | None = None,
    thresholds: Sequence[float] | None = None,
    split: bool = False,
    crop_fraction: float | None = None,
) -> "RoutedReport":
    """Writes a network as one TFLite file that chooses a path for every image.

    The file has only builtin operators, batch size 1, and two signatures over the same graphs.
    "serving_default" takes `image` and returns `output` `[1, classes]` and `path` int32
    `[num_gates]`. "bounded" also takes `min_width` and `max_width`, int32 `[num_gates]`: each gate
    chooses its best-scored route within its bounds, and equal bounds force a width. The gates can
    choose every combination of routes. Tensors have the names of the signatures. The size of the
    image and the batch size cannot be changed by resizing tensors.

    With `routing="confidence"` the file has no slimming heads. An image starts at the first of
    `steps`, a width at every gate, and goes on to the next step where its confidence is at most the
    threshold. The confidence is the largest softmax probability of the logits in float32. The steps
    share one run of the layers before the first gate. A threshold of 0 lets no image go on, and a
    threshold of 1 lets every image go on. "bounded" starts at the first step within the bounds and
    ends at the last one within them. A third signature "tuned" takes `image` and `thresholds`,
    float32 `[steps - 1]`, in place of those stored, and also returns `confidence` `[1]`, that of
    the output. With "gate+confidence" the gates choose where an image starts among the routes. It
    goes on by the threshold of the widest step up to the largest width of its path, or of the first
    step, to the next wider step.

    With `layout="staged"` the file has static signatures without branches, which the caller runs in
    turn, as `DynamicInterpreter` does. "trunk" takes `image` and returns `features_0` and, if the
    file has gates, `scores` `[1, choices]`. "route_<k>" for the width k takes these features and
    returns `output`. With several gates there are signatures for each segment, the layers between
    two gates: "segment_1_to_<k>", then for each pair of widths "segment_2_<j>_to_<k>", whose
    features "segment_2_to_<k>" takes, and so on. They return the features and scores for the next
    segment. If both widths are the narrowest, the first one of the two runs the whole segment. In a
    file that routes by confidence the last signature also returns `logits`, unless they are the
    output.

    The file contains TFLite Metadata and, in a file `labels.txt` at its end, the network's class
    names in the order of the outputs. The oldest runtimes that run it correctly are TensorFlow Lite
    2.14 and LiteRT 1.0.1; with "float16" they are 2.19 and 1.1.1, with "dynamic" 2.19 and 1.1.2.

    Args:
        network: `DynamicSlimmableNetwork`.
        filename: Path of the file, which must end in `.tflite`. An existing file survives a failed
            export.
        routes: Tuple of ints, candidate widths in ascending order. Defaults to the network's
            routes. A warning is given if the gates were not trained for them.
        quantize: None for float32, "float16" for float16 weights, "dynamic" for int8 weights, or
            "int8" for int8 weights and activations, which needs `representative_data`. Defaults to
            None.
        layout: "shared", "fast" or "staged". "shared" stores one copy of the weights, cut into
            blocks that routes add up, and a few of them twice where that saves most time. "fast"
            stores whole convolutions for each route, with several gates up to twice the widest
            path's weights, and shares the rest. "staged" stores the same weights as "fast".
            Defaults to "shared".
        representative_data: Only for "int8", a `tf.data.Dataset`, array, generator or other
            iterable of images or batches of images as the file takes them, or a function that
            returns one. It may be endless. Every route is measured on its first 500 images.
        input_shape: `(height, width, 3)`. Defaults to the network's input shape; required if that
            is open.
        input_type: "float32" for preprocessed images, or "uint8" for raw pixels, which the file
            normalises by the network's `normalization`. Defaults to "float32".
        verbose: Boolean. `True` logs each phase and a report at the level INFO of the logger
            "keras_dsnet". Defaults to `True`.
        routing: "gate", "confidence" or "gate+confidence". Defaults to the network's `routing`.
        steps: Tuple of ints, the ascending widths that are tried in turn. The file also has those
            of `routes` that are not steps, if `routes` are given or the gates choose the start.
            Defaults to the network's `confidence_steps`, or to the narrowest and the widest of
            `routes` where these lack one of them.
        thresholds: Tuple of floats from 0 to 1, one for each step except the last. Defaults to the
            network's `thresholds` for its own steps, and to 0.7 for others.
        split: Boolean, only for "staged". `True` writes a file for each signature: the trunk to
            `filename`, the others beside it, as `m.route_0.tflite` beside `m.tflite`. They are
            opened when they are first needed. A file of an earlier export of this name that the new
            one does not write is removed. Defaults to `False`.
        crop_fraction: Float above 0 and at most 1, the fraction of each side of a resized
            photograph that an app keeps, as in `keras_dsnet.data.evaluation_pipeline`. It stands in
            the metadata. Defaults to that of the network, to 0.875 where it is not known, and to 1
            for detectors, which see whole images.

    Returns:
        `RoutedReport`, a dict.

    Raises:
        ValueError: If routes, options or images do not fit, if TFLite cannot hold the network, or
            if the outputs of a float32 file differ from the network's by more than 1e-4.
        OSError: If the file cannot be written.

    Example:

    ```python
    import numpy as np
    from keras_dsnet.applications import DSMobileNet
    from keras_dsnet.export import DynamicInterpreter, export_routed

    model = DSMobileNet(weights=None, input_shape=(32, 32, 3), classes=10)
    report = export_routed(model, "m.tflite", routes=(0, 1))
    print(report.text())
    output, path = DynamicInterpreter("m.tflite").run(np.zeros((32, 32, 3), "float32"))
    ```
    """
    check_network(network)
    routes, confidence = plan_routing(network, routes, routing, steps, thresholds)
    if not isinstance(layout, str) or layout not in LAYOUTS:
        raise ValueError(
            f"`layout` must be 'shared', 'fast' or 'staged'. Received: layout={layout!r}"
        )
    if not isinstance(split, bool) or (split and layout != "staged"):
        raise ValueError(
            "`split` must be a bool, and True only for layout='staged', whose signatures can be "
            f"separate files. Received: split={split!r} with layout={layout!r}"
        )
    shape = check_options(network, input_shape, quantize, representative_data, input_type)
    crop = check_crop(network, crop_fraction)
    check_target(filename)
    integer = quantize == "int8"
    images = None
    if integer:
        images = representative_images(
            representative_data, shape, input_type, network.normalization
        )
    if confidence is None or confidence.gate_routes:
        chosen = routes if confidence is None else confidence.gate_routes
        warn_of_stale_gates(network, chosen, stacklevel=2)
    log = _phase_logger() if verbose else _log_nothing
    plans = plan_sections(network, routes, shape, layout, integer)
    raw = input_type == "uint8"
    parts = RoutedParts(network, routes, plans, integer, raw, shape, confidence).graphs()
    if layout == "staged":
        parts = dataclasses.replace(parts, allow=None, choices=(), tune=None, confidence=None)
    log(f"converting {len(list(parts.running()))} graphs")
    builder, graphs = convert_parts(parts, quantize, images, log)
    metadata = _metadata(network, routes, plans, shape, quantize, layout, input_type, crop)
    if confidence:
        metadata |= confidence_metadata(network, confidence, shape)
    segments: dict[str, bytes] = {}
    if layout == "staged":
        metadata["staged"] = staged_metadata(network, routes, confidence)
        model = assemble_staged(builder, graphs, network, metadata)
        segments = split_staged(model, metadata, pathlib.Path(filename).stem) if split else {}
    else:
        model = assemble_file(builder, graphs, routes, network, metadata, confidence)
    content = with_labels(segments.pop(TRUNK) if split else pack(model), network)
    log("checking paths against the network")
    differences = check_routed(
        content, network, routes, shape, input_type, quantize, confidence, segments=segments
    )
    files = {filename: content}
    for name, segment in segments.items():
        beside = metadata["staged"]["files"][name]["name"]
        files[pathlib.Path(filename).with_name(beside)] = segment
    stale = [path for path in parts_beside(filename) if path not in files]
    # All are written before any gets its name, so that a full disk leaves the files of an earlier
    # export. The trunk, which was opened first, is the last to get its name.
    with contextlib.ExitStack() as stack:
        for path, data in files.items():
            stack.enter_context(atomic_file(path, "wb")).write(data)
    for path in stale:
        path.unlink(missing_ok=True)
    size = len(content) + sum(map(len, segments.values()))
    report = RoutedReport(filename, size, model, _rows(network, plans, shape, differences))
    if verbose:
        _LOGGER.info(report.text())
    return report


def _phase_logger():
    """Returns a function that logs a phase with the seconds since the export began."""
    start = time.perf_counter()

    def log(phase):
        _LOGGER.info(f"[{time.perf_counter() - start:5.1f} s] {phase}")

    return log


def _log_nothing(phase):
    pass


def _metadata(network, routes, plans, shape, quantize, layout, input_type, crop):
    """Returns the metadata that `DynamicInterpreter` reads from the file."""
    return {
        "format": FORMAT,
        "network": network.name,
        "input_shape": list(shape),
        "input_type": input_type,
        "preprocessing": {
            "in_file": input_type == "uint8",
            "channels": "RGB",
            "scale": 1 / 255,
            "crop_fraction": crop,
            **network.normalization.get_config(),
        },
        "class_names": network.class_names,
        "quantize": quantize,
        "layout": layout,
        "oldest_runtime": dict(zip(("tensorflow", "litert"), OLDEST_RUNTIMES[quantize])),
        "num_widths": network.num_widths,
        "gates_trained": network.gates_trained,
        **task_of(network).metadata,
        "routes": [
            {
                "path": [route] * network.num_gates,
                "madds": network.madds(route, shape),
                "cuts": group_ends_of(plans, [route] * network.num_gates),
            }
            for route in routes
        ],
    }


def check_routed(
    content: bytes,
    network: DynamicSlimmableNetwork,
    routes: Sequence[int],
    shape: Sequence[int],
    input_type: str = "float32",
    quantize: str | None = None,
    confidence: ConfidencePlan | None = None,
    images: int = 2,
    segments: Mapping[str, bytes] | None = None,
) -> dict[tuple[int, ...], float]:
    """Compares the outputs of a routed file with those of the network.

    Args:
        content: Bytes of the file.
        network: `DynamicSlimmableNetwork`.
        routes: Tuple of widths. The paths are those of `checked_paths`.
        shape: `(height, width, 3)`.
        input_type: "float32" or "uint8". Defaults to "float32".
        quantize: String or None, as of `export_routed`. Only a float32 file must agree. Defaults to
            None.
        confidence: `ConfidencePlan` of the file. Defaults to None for a file that routes only by
            its gates.
        images: Integer, number of random images to run. Defaults to 2.
        segments: Dict from signature to the bytes of the other files of a split export. Defaults to
            None: there is one file.

    Returns:
        Dict from path, a tuple with one width per gate, to the largest difference, where 1 is the
        largest output of the network.

    Raises:
        ValueError: If the file does not take a forced path, if an image does not go on as its
            confidence demands, or if a float32 file differs by more than 1e-4.
    """
    # In lower precision the rounding of the network would be part of the difference.
    task = task_of(network).in_float32()
    network = task.network
    runner_of = _runners(content, segments or {})
    runner = runner_of("bounded")
    pixels = np.random.default_rng(0).integers(0, 256, (images, *shape), "uint8")
    normalised = network.normalization(pixels)
    inputs = pixels if input_type == "uint8" else normalised
    differences = {}
    paths = checked_paths(routes, network.num_gates)
    if confidence and not confidence.gate_routes:
        paths = paths[: len(routes)]
    for path in paths:
        bound = np.array(path, "int32")
        results = [runner(image=image[None], min_width=bound, max_width=bound) for image in inputs]
        found = {tuple(map(int, result["path"])) for result in results}
        if found != {path}:
            raise ValueError(f"The TFLite file takes the paths {sorted(found)} instead of {path}")
        differences[path] = compare_results(results, task.expected(normalised, path))
        if quantize is None and not differences[path] <= TOLERANCE:
            raise ValueError(
                f"The TFLite file differs by {differences[path]:.1e} from the network on the path "
                f"{path}; {TOLERANCE:.0e} is allowed. It was not written"
            )
    if confidence:
        _check_steps(runner_of("tuned"), confidence, inputs)
    return differences


def _runners(content: bytes, segments: Mapping[str, bytes]) -> Callable:
    """Returns the function from the name of a routed file's signature to its runner."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter, metadata = Interpreter(model_content=content), read_metadata(content)
    if metadata["layout"] != "staged":
        return interpreter.get_signature_runner
    opened = {name: Interpreter(model_content=segment) for name, segment in segments.items()}

    def runner_of(name):
        return opened.get(name, interpreter).get_signature_runner(name)

    return StagedRuntime(metadata, runner_of).get_signature_runner


def _check_steps(runner, confidence, images):
    """Raises a ValueError unless thresholds of 1 lead every image to each step in turn."""
    count = len(confidence.thresholds)
    for image in images:
        paths = []
        for end in range(count + 1):
            thresholds = np.array([1.0] * end + [0.0] * (count - end), "float32")
            result = runner(image=image[None], thresholds=thresholds)
            paths.append(tuple(map(int, result["path"])))
        start, *others = paths
        for step, path in zip(confidence.steps[1:], others):
            expected = (step,) * len(start) if step > max(start) else start
            if path != expected:
                raise ValueError(
                    f"The TFLite file takes the path {path} instead of {expected} with thresholds "
                    f"of 1 up to the step {step}"
                )


def checked_paths(routes: Sequence[int], num_gates: int) -> list[tuple[int, ...]]:
    """Returns the paths on which a file is checked.

    These are the uniform paths, and with several gates a last one on which each gate takes another
    width than the gate before it.
    """
    uniform = [(route,) * num_gates for route in routes]
    mixed = tuple(routes[gate % len(routes)] for gate in range(num_gates))
    return list(dict.fromkeys([*uniform, mixed]))


class RoutedReport(dict):
    """Report of a routed file, a dict for JSON.

    It has the keys:

    - "bytes": int, size of the file.
    - "routes": list with a dict for each path that was checked. "path" is an int, or a tuple with
      one width per gate; "madds" the path's multiply-adds; "cuts" a list with the routes at whose
      channels the channel groups end, for each span of layers between two strides; "difference" the
      largest difference of the file's outputs from the network's, where 1 is their largest value.
    - "operators": dict from the name of an operator to its count over all subgraphs.
    - "shared": dict. "constants" is the size of all constants in bytes, "parts_apart" the
      size if every subgraph had separate copies.

    Args:
        filename: Path of the file.
        size: Integer, bytes of the file, or of all files of a split export.
        model: `schema.ModelT` of the file.
        rows: List, the value of "routes".
    """

    def __init__(
        self, filename: str | os.PathLike, size: int, model: schema.ModelT, rows: list[dict]
    ):
        counts: collections.Counter = collections.Counter()
        for graph in model.subgraphs:
            counts.update(operators_of(graph, model))
        super().__init__(
            bytes=size,
            routes=rows,
            operators=dict(counts.most_common()),
            shared={
                "constants": sum(_size(buffer) for buffer in model.buffers),
                "parts_apart": sum(_constant_bytes(graph, model) for graph in model.subgraphs),
            },
        )
        self.filename = filename

    def text(self) -> str:
        """Returns the report as a table for people."""
        shared = self["shared"]
        width = max(4, *(len(str(row["path"])) for row in self["routes"]))
        lines = [
            f"{self.filename}: {self['bytes'] / 1e6:.2f} MB, of which "
            f"{shared['constants'] / 1e6:.2f} MB are constants; separate subgraphs would have "
            f"{shared['parts_apart'] / 1e6:.2f} MB of them",
            f"{'path':<{width}}     MAdds  difference  channel groups end at the channels of",
        ]
        for row in self["routes"]:
            ends = ", ".join(map(str, row["cuts"]))
            madds, difference = row["madds"] / 1e6, row["difference"]
            lines.append(f"{row['path']!s:<{width}} {madds:8.2f}M  {difference:10.1e}  {ends}")
        operators = ", ".join(f"{name} {count}" for name, count in self["operators"].items())
        return "\n".join([*lines, f"operators: {operators}"])


def _rows(network, plans, shape, differences):
    """Returns the value of a report's "routes"."""
    return [
        {
            "path": path[0] if len(path) == 1 else path,
            "madds": network.madds(path, shape),
            "cuts": group_ends_of(plans, path),
            "difference": difference,
        }
        for path, difference in differences.items()
    ]


def _size(buffer):
    return 0 if buffer.data is None else len(buffer.data)


def _constant_bytes(graph, model):
    """Returns the size of all constants of a subgraph."""
    return sum(_size(model.buffers[index]) for index in {tensor.buffer for tensor in graph.tensors})
