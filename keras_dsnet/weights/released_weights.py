"""Weights that have a name, such as the supernet that the authors released.

The names, with URL and SHA-256, are in the table `PRESETS` of each application.
"""

import dataclasses
import hashlib
import logging
import os
import pathlib
import ssl

import keras
import numpy as np

from keras_dsnet.utils import UserError
from keras_dsnet.utils.atomic_file import atomic_path
from keras_dsnet.weights.weights_file import convert_checkpoint

# Trained weights, and statistics of normalised images, stay far below these values.
_MAX_WEIGHT, _MAX_STATISTIC = 1e4, 1e12

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Preset:
    """Weights that have a name. Either `file` or `url` is set.

    Args:
        file: Path of the `.weights.h5` file, if it comes with the package.
        url: URL of a checkpoint of the authors' code, which is downloaded on first use.
        sha256: Hexadecimal SHA-256 of the file. None if it is unknown; a download is then only
            checked to hold the tensors of a trained network.
        classes: Int, number of classes.
        class_names: Tuple of str, the name of each class by its index, if the file does not hold
            them. None if they are unknown, or those of ImageNet, which Keras knows.
        accuracy: Dict that maps a path (an int, or "dynamic" for the routing of the weights) to its
            top-1 accuracy on the test or validation images, as a fraction.
        crop_fraction: Float, the fraction of each side of a resized image that the network was
            evaluated on.
    """

    file: pathlib.Path | None = None
    url: str | None = None
    sha256: str | None = None
    classes: int = 1000
    class_names: tuple | None = None
    accuracy: dict = dataclasses.field(default_factory=dict)
    crop_fraction: float = 0.875

    def filepath(self) -> pathlib.Path:
        """Returns the path of the weights file; see `released_weights` for downloads.

        Raises:
            ValueError: Neither `file` nor `url` is set.
            UserError: The checkpoint cannot be downloaded or converted.
        """
        if self.file is not None:
            return self.file
        if self.url is None:
            raise ValueError(f"A preset needs a `file` or a `url`. Received: {self}")
        return released_weights(self.url, self.sha256, self.classes)


def released_weights(
    url: str, sha256: str | None = None, classes: int | None = None
) -> pathlib.Path:
    """Returns a released checkpoint of the authors as a `.weights.h5` file.

    The first call downloads the checkpoint, unless it is in `cache_folder()` already, and converts
    it. Incomplete downloads, other files and partly written files are never kept. Several
    processes may call this function at the same time.

    Args:
        url: URL of the checkpoint.
        sha256: Hexadecimal SHA-256 of the checkpoint. None if it is unknown. In both cases the
            tensors must be those of a trained network.
        classes: Int, number of classes of the network. Defaults to any number.

    Returns:
        `pathlib.Path` of the converted file.

    Raises:
        UserError: The download fails, the cache cannot be written, or the file is not the released
            checkpoint.
    """
    folder = cache_folder()
    checkpoint = folder / url.rsplit("/", 1)[-1]
    converted = folder / f"{checkpoint.name.removesuffix('.pth.tar')}.weights.h5"
    if converted.exists():
        return converted
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if checkpoint.exists():
            _log.warning("converting %s", checkpoint)
            _convert(checkpoint, converted, sha256, classes)
        else:
            # The file gets its name only after the conversion, so that a download that was killed
            # is not mistaken for the checkpoint.
            with atomic_path(checkpoint) as partial:
                _download(url, partial, checkpoint)
                _convert(partial, converted, sha256, classes)
    except OSError as error:
        raise UserError(
            f"cannot write the cache {folder}: {error.strerror or error}; set KERAS_HOME to a "
            "folder that can be written"
        ) from error
    return converted


def cache_folder() -> pathlib.Path:
    """Returns the folder of converted weights, `models/keras_dsnet` in Keras's home.

    Keras's home is `$KERAS_HOME`, or `~/.keras` if that is not set.
    """
    home = os.environ.get("KERAS_HOME") or "~/.keras"
    return pathlib.Path(home).expanduser() / "models" / "keras_dsnet"


def _download(url, partial, checkpoint):
    if not os.access(partial.parent, os.W_OK):
        raise PermissionError(None, "Permission denied", str(partial.parent))
    try:
        keras.utils.get_file(partial.name, url, cache_subdir=str(partial.parent.resolve()))
    except Exception as error:
        # Keras raises a bare `Exception` when the network fails, but lets the errors of a
        # connection through that breaks after it was made.
        broken = (ConnectionError, TimeoutError, ssl.SSLError)
        if isinstance(error, OSError) and not isinstance(error, broken):
            raise
        reason = str(error).rsplit("--", 1)[-1].strip()
        raise UserError(
            f"cannot download {url} ({reason}): put the file at {checkpoint} and try again"
        ) from error


def _convert(checkpoint, converted, sha256, classes):
    if sha256 is not None:
        with checkpoint.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256.lower():
            raise UserError(
                f"the checkpoint {checkpoint} is not the released file: its SHA-256 is {found} "
                f"instead of {sha256.lower()}"
            )
    convert_checkpoint(
        checkpoint,
        converted,
        gates_trained=False,
        check=lambda tensors: check_trained(checkpoint, tensors, classes),
    )


def check_trained(
    path: str | os.PathLike, tensors: dict[str, np.ndarray], classes: int | None = None
) -> None:
    """Checks that a checkpoint without a known checksum has the values of a trained network.

    Names, shapes and finite values are checked when the tensors are read and assigned.

    Args:
        path: Path of the checkpoint, for messages.
        tensors: Dict that maps the names of tensors in the authors' code to arrays.
        classes: Int, rows of the classifier. Defaults to any number.

    Raises:
        UserError: A kernel is constant, a variance is negative, a value is far too large, the
            statistics are those of a network that has seen no image, or the number of classes
            differs.
    """
    rows = len(tensors.get("classifier.bias", ()))
    if classes is not None and rows != classes:
        raise UserError(
            f"the checkpoint {path} is of {rows} classes instead of {classes}: it is another file"
        )
    for name, tensor in tensors.items():
        fault = _fault(name, tensor)
        if fault:
            raise UserError(
                f"the checkpoint {path} does not hold a trained network: its tensor '{name}' "
                f"{fault}"
            )
    means = [tensor for name, tensor in tensors.items() if name.endswith("running_mean")]
    variances = [tensor for name, tensor in tensors.items() if name.endswith("running_var")]
    if means and not any(map(np.any, means)) and all(np.all(v == 1) for v in variances):
        raise UserError(
            f"the checkpoint {path} does not hold a trained network: its batch-norm statistics "
            "are those of a network that has seen no image"
        )


def _fault(name, tensor):
    """Returns what is wrong with the values of a tensor, or None."""
    if name.endswith("num_batches_tracked") or not tensor.size:
        return None
    values = tensor.astype("float32")
    limit = _MAX_STATISTIC if "running_" in name else _MAX_WEIGHT
    if np.abs(values).max() > limit:
        return f"has the value {values.flat[np.abs(values).argmax()]:.3g}"
    # The moving variance of a channel that is never active decays to zero.
    if name.endswith("running_var") and values.min() < 0:
        return f"has the variance {values.min():.3g}"
    # Gates that are not trained may keep their initial zeros.
    is_kernel = values.ndim >= 2 and values.size > 1 and ".gate." not in name
    if is_kernel and values.min() == values.max():
        return f"is {values.flat[0]:.3g} everywhere"
    return None
