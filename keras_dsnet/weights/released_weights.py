"""The authors' released supernet: fetched once, converted once, kept in Keras's cache."""

import hashlib
import logging
import os
import pathlib

import keras

from keras_dsnet.utils import UserError
from keras_dsnet.utils.atomic_file import atomic_path
from keras_dsnet.weights.weights_file import check_trained, convert_checkpoint

_log = logging.getLogger(__name__)


def cache_folder():
    """Returns where weights are kept: `models/keras_dsnet` in `$KERAS_HOME`, or in `~/.keras`."""
    home = os.environ.get("KERAS_HOME") or "~/.keras"
    return pathlib.Path(home).expanduser() / "models" / "keras_dsnet"


def released_weights(url, sha256=None, classes=None):
    """Returns the path of a checkpoint of the authors' release as a `.weights.h5` file.

    The first call downloads the checkpoint, unless it lies in `cache_folder()` already, and
    converts it; neither a download that broke or is another file nor a half-written file is ever
    kept. Processes that do so at the same time do not disturb each other.

    Args:
        url: of the checkpoint.
        sha256: hexadecimal SHA-256 of the checkpoint; None: not known. In either case its tensors
            must be those of a trained network.
        classes: int: of the network; None: any number.

    Raises:
        UserError: there is no network, the cache cannot be written, or the file is not the
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
            # Under another name until it is known to be whole: a killed download must not look
            # like one.
            with atomic_path(checkpoint) as partial:
                _download(url, partial, checkpoint)
                _convert(partial, converted, sha256, classes)
    except OSError as error:
        raise UserError(
            f"cannot write the cache {folder}: {error.strerror or error}; set KERAS_HOME to a "
            "folder that can be written"
        ) from error
    return converted


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


def _download(url, partial, checkpoint):
    if not os.access(partial.parent, os.W_OK):
        raise PermissionError(None, "Permission denied", str(partial.parent))
    try:
        keras.utils.get_file(partial.name, url, cache_subdir=str(partial.parent.resolve()))
    except OSError:
        raise
    except Exception as error:
        # What Keras raises where the network fails.
        reason = str(error).rsplit("--", 1)[-1].strip()
        raise UserError(
            f"cannot download {url} ({reason}): put the file at {checkpoint} and try again"
        ) from error
