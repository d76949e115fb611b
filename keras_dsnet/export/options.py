"""Checks of an export's arguments, made before the work begins."""

import errno
import numbers
import os
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

from keras_dsnet.export.confidence import ConfidencePlan
from keras_dsnet.export.conversion import QUANTIZATIONS
from keras_dsnet.export.file_task import task_of
from keras_dsnet.models import DynamicSlimmableNetwork
from keras_dsnet.models.image_settings import check_crop_fraction
from keras_dsnet.models.path import check_routes
from keras_dsnet.models.routing_settings import DEFAULT_THRESHOLD, ROUTINGS, check_thresholds

INPUT_TYPES = ("float32", "uint8")


def check_network(network: Any) -> None:
    """Raises a ValueError unless `network` is a `DynamicSlimmableNetwork`."""
    if not hasattr(network, "slimming_gates"):
        raise ValueError(
            "Only a DynamicSlimmableNetwork has paths that can be exported. "
            f"Received: a {type(network).__name__}"
        )


def check_options(
    network: DynamicSlimmableNetwork,
    input_shape: Sequence[int] | None,
    quantize: str | None,
    representative_data: Any,
    input_type: str,
) -> tuple[int, int, int]:
    """Checks the options that every export has, and returns the shape of the file's images.

    Args:
        network: A `DynamicSlimmableNetwork`.
        input_shape: `(height, width, 3)`, or `None` for the network's shape.
        quantize: As for `convert`.
        representative_data: As for `representative_images`, or `None`. Only its presence is checked
            here.
        input_type: One of `INPUT_TYPES`.

    Returns:
        `(height, width, 3)`.

    Raises:
        ValueError: If an option does not fit the network or another option.
    """
    if not isinstance(quantize, str | None) or quantize not in QUANTIZATIONS:
        raise ValueError(
            "`quantize` must be None, 'float16', 'dynamic' or 'int8'. "
            f"Received: quantize={quantize!r}"
        )
    if quantize != "int8" and representative_data is not None:
        raise ValueError(
            "`representative_data` is only for quantize='int8', whose ranges are measured on it. "
            f"Received: `representative_data` with quantize={quantize!r}"
        )
    if not isinstance(input_type, str) or input_type not in INPUT_TYPES:
        raise ValueError(
            f"`input_type` must be 'float32' or 'uint8'. Received: input_type={input_type!r}"
        )
    return check_shape(network, input_shape)


def check_crop(network: Any, crop_fraction: float | None) -> float:
    """Returns the fraction of each side of a resized image that is kept, for the metadata.

    Args:
        network: A `DynamicSlimmableNetwork` or a detector.
        crop_fraction: As of `export_routed`.

    Raises:
        ValueError: If it is not above 0 and at most 1, or a detector is not to see whole images.
    """
    is_detector = hasattr(network, "anchors")
    if crop_fraction is None:
        return 1.0 if is_detector else network.crop_fraction or 0.875
    fraction = check_crop_fraction(crop_fraction)
    if is_detector and fraction != 1:
        raise ValueError(
            "`crop_fraction` is for classifiers: detectors see whole images. "
            f"Received: crop_fraction={crop_fraction!r}"
        )
    return fraction


def check_shape(
    network: DynamicSlimmableNetwork, input_shape: Sequence[int] | None
) -> tuple[int, int, int]:
    """Returns the shape of the file's images.

    Args:
        network: A `DynamicSlimmableNetwork`.
        input_shape: `(height, width, 3)`, or `None` for the network's shape.

    Returns:
        `(height, width, 3)`.

    Raises:
        ValueError: If `input_shape` is not such a shape, the network takes images of another shape,
            or the network takes images of any size and `input_shape` is `None`.
    """
    network_shape = tuple(network.input_shape[1:])
    shape = network_shape if input_shape is None else input_shape
    sides = tuple(shape) if isinstance(shape, (tuple, list)) and len(shape) == 3 else ()
    if not sides or sides[-1] != 3 or not all(map(_is_side, sides)):
        raise ValueError(
            "A TFLite file has one image size, of RGB images: pass "
            f"`input_shape=(height, width, 3)`. Received: input_shape={shape!r}"
        )
    if not all(side in (None, given) for side, given in zip(network_shape, sides)):
        raise ValueError(
            f"`input_shape` must be the network's, {network_shape}, where None means any size; "
            f"build the network for another size first. Received: input_shape={input_shape!r}"
        )
    height, width, channels = map(int, sides)
    return height, width, channels


def _is_side(side):
    is_int = isinstance(side, numbers.Integral) and not isinstance(side, bool)
    return is_int and side > 0


def plan_routing(
    network: DynamicSlimmableNetwork,
    routes: Sequence[int] | None,
    routing: str | None,
    steps: Sequence[int] | None,
    thresholds: Sequence[float] | None,
) -> tuple[tuple[int, ...], ConfidencePlan | None]:
    """Returns the widths of a file, and its steps if it routes by confidence.

    Args:
        network: A `DynamicSlimmableNetwork`.
        routes: As for `export_routed`.
        routing: As for `export_routed`.
        steps: As for `export_routed`.
        thresholds: As for `export_routed`.

    Returns:
        Tuple of the widths, ascending, and a `ConfidencePlan`. It is None where the gates choose
        the whole path.

    Raises:
        ValueError: If an argument does not fit the network or another argument.
    """
    routing = network.routing if routing is None else routing
    if not isinstance(routing, str) or routing not in ROUTINGS:
        raise ValueError(
            "`routing` must be 'gate', 'confidence' or 'gate+confidence'. "
            f"Received: routing={routing!r}"
        )
    candidates = check_routes(network.routes if routes is None else routes, network.num_widths)
    if routing == "gate":
        if steps is not None or thresholds is not None:
            raise ValueError(
                "`steps` and `thresholds` are for routing by confidence. Received: "
                f"steps={steps!r}, thresholds={thresholds!r} with routing='gate'"
            )
        return candidates, None
    if not network.include_top:
        raise ValueError(
            "Routing by confidence needs the network's classifier. Received: "
            f"routing={routing!r} for a network with include_top=False"
        )
    tried = _check_steps(network, candidates, steps, routes is not None)
    if thresholds is None:
        is_same = tried == network.confidence_steps
        thresholds = network.thresholds if is_same else [DEFAULT_THRESHOLD] * (len(tried) - 1)
    has_gates = routing == "gate+confidence"
    kept = candidates if has_gates or routes is not None else ()
    plan = ConfidencePlan(
        widths=tuple(sorted({*kept, *tried})),
        steps=tried,
        thresholds=check_thresholds(thresholds, tried),
        gate_routes=candidates if has_gates else (),
    )
    if not plan.targets:
        raise ValueError(
            f"Routing by confidence needs a step that is wider than a start, which is {candidates} "
            f"here. Received: steps={steps!r}"
        )
    return plan.widths, plan


def _check_steps(network, candidates, steps, are_given):
    """Returns the steps of a file as a tuple of ints.

    By default they are the network's, unless other routes are given that lack one of them.
    """
    if steps is None:
        steps = network.confidence_steps
        if are_given and not set(steps) <= set(candidates):
            steps = tuple(dict.fromkeys((candidates[0], candidates[-1])))
        if are_given and len(steps) < 2:
            raise ValueError(
                "`routes` of a file that routes by confidence must be two or more widths; "
                "export_subnetwork writes a file of one. "
                f"Received: routes={tuple(candidates)}"
            )
    try:
        checked = check_routes(steps, network.num_widths)
    except ValueError:
        checked = ()
    if len(checked) < 2:
        raise ValueError(
            f"`steps` must be two or more ascending widths from 0 to {network.num_widths - 1}. "
            f"Received: steps={steps!r}"
        )
    return checked


def check_target(filename: str | os.PathLike) -> None:
    """Raises an error unless a TFLite file can be written under a name.

    Args:
        filename: Path of the file, ending in `.tflite`.

    Raises:
        ValueError: If it is not a path, or has another ending.
        OSError: If it is a folder, its folder does not exist, or the folder is not writable.
    """
    if not isinstance(filename, (str, os.PathLike)) or not os.fspath(filename):
        raise ValueError(
            "The file of an export needs a name that ends in '.tflite'. "
            f"Received: {filename!r}, of type {type(filename).__name__}"
        )
    path = pathlib.Path(os.fsdecode(filename))
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not path.parent.is_dir():
        code = errno.ENOTDIR if path.parent.exists() else errno.ENOENT
        raise OSError(code, os.strerror(code), str(path))
    if path.suffix != ".tflite":
        raise ValueError(
            f"The name of a TFLite file must end in '.tflite'. Received: {os.fsdecode(filename)!r}"
        )
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def warn_of_stale_gates(
    network: DynamicSlimmableNetwork, routes: Sequence[int], stacklevel: int
) -> None:
    """Warns if the gates were not trained to choose among the routes of a file.

    Args:
        network: A `DynamicSlimmableNetwork`.
        routes: Candidate widths of the file.
        stacklevel: As for `warnings.warn`, counted from the caller.
    """
    trainer = task_of(network).gate_trainer
    if not network.gates_trained:
        warnings.warn(
            "The gate of this network is not trained, so the file's own choices mean nothing. "
            f"Force a width by the signature 'bounded', or train the gate with {trainer}.",
            stacklevel=stacklevel + 1,
        )
    elif not set(routes) <= set(network.routes):
        warnings.warn(
            f"The gate of this network was trained for the routes {network.routes}. The file may "
            f"choose among {routes}, whose scores may mean nothing. Train the gate with these "
            f"routes by {trainer}.",
            stacklevel=stacklevel + 1,
        )
