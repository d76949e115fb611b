"""What every export checks before it begins."""

import errno
import numbers
import os
import pathlib
import warnings

from keras_dsnet.export.conversion import QUANTIZATIONS

INPUT_TYPES = ("float32", "uint8")


def check_network(network):
    """Raises a ValueError unless `network` is a `DynamicSlimmableNetwork`."""
    if not hasattr(network, "slimming_gates"):
        raise ValueError(
            "Only a DynamicSlimmableNetwork has paths that can be exported. "
            f"Received: a {type(network).__name__}"
        )


def check_target(filename):
    """Raises an error unless a TFLite file can be written under a name.

    Args:
        filename: path, ending in `.tflite`.

    Raises:
        ValueError: it is no path, or has another ending.
        OSError: it is a folder, its folder does not exist, or it must not be written to.
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


def check_options(network, input_shape, quantize, representative_data, input_type):
    """Returns the shape of the images of a file, having checked what was asked for.

    Args:
        network: a `DynamicSlimmableNetwork`.
        input_shape: `(height, width, 3)`, or None: the network's.
        quantize: as `convert` takes it.
        representative_data: as `representative_images` takes it, or None.
        input_type: one of `INPUT_TYPES`.

    Returns:
        A tuple of three ints.

    Raises:
        ValueError: one of them does not fit the network, or the others.
    """
    check_quantize(quantize)
    if quantize != "int8" and representative_data is not None:
        raise ValueError(
            "`representative_data` is what the ranges of quantize='int8' are measured on; other "
            "files do not use it. Received: `representative_data` with "
            f"quantize={quantize!r}"
        )
    if not isinstance(input_type, str) or input_type not in INPUT_TYPES:
        raise ValueError(
            f"`input_type` must be 'float32' or 'uint8'. Received: input_type={input_type!r}"
        )
    return check_shape(network, input_shape)


def check_quantize(quantize):
    """Raises a ValueError unless `quantize` is one of `QUANTIZATIONS`."""
    if not isinstance(quantize, str | None) or quantize not in QUANTIZATIONS:
        raise ValueError(
            "`quantize` must be None, 'float16', 'dynamic' or 'int8'. "
            f"Received: quantize={quantize!r}"
        )


def check_shape(network, input_shape):
    """Returns the shape of the images of a file: a tuple of three ints.

    Args:
        network: a `DynamicSlimmableNetwork`.
        input_shape: `(height, width, 3)`, or None: the network's.

    Raises:
        ValueError: it is no such shape, the network's size is open and none was given, or the
            network takes images of another one.
    """
    own = tuple(network.input_shape[1:])
    shape = own if input_shape is None else input_shape
    sides = tuple(shape) if isinstance(shape, (tuple, list)) and len(shape) == 3 else ()
    if not sides or sides[-1] != 3 or not all(map(_is_side, sides)):
        raise ValueError(
            "A TFLite file has one image size, of RGB images: pass "
            f"`input_shape=(height, width, 3)`. Received: input_shape={shape!r}"
        )
    if not all(side in (None, given) for side, given in zip(own, sides)):
        raise ValueError(
            f"`input_shape` must be the network's, {own}, where None stands for any size; build "
            f"the network for another size first. Received: input_shape={input_shape!r}"
        )
    return tuple(map(int, sides))


def warn_of_stale_gates(network, routes, stacklevel):
    """Warns where the choices of a file would mean nothing.

    Args:
        network: a `DynamicSlimmableNetwork`.
        routes: tuple of widths, of the file.
        stacklevel: as of `warnings.warn`, counted from the caller.
    """
    if not network.gates_trained:
        warnings.warn(
            "The gate of this network is not trained: the file's own choices mean nothing; force a "
            "width by the signature 'bounded', or train the gate with "
            "keras_dsnet.training.GateTrainer.",
            stacklevel=stacklevel + 1,
        )
    elif not set(routes) <= set(network.routes):
        warnings.warn(
            f"The gate of this network was trained for the routes {network.routes}; the file may "
            f"choose others, {routes}, whose scores may mean nothing. Train the gate with these "
            "routes by keras_dsnet.training.GateTrainer.",
            stacklevel=stacklevel + 1,
        )


def _is_side(side):
    whole = isinstance(side, numbers.Integral) and not isinstance(side, bool)
    return whole and side > 0
