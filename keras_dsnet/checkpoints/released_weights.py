"""The authors' released supernet: fetched once, converted once, kept in Keras's cache."""

import logging
import os
import pathlib

import keras

from keras_dsnet.checkpoints.convert import convert_checkpoint
from keras_dsnet.utils import UserError
from keras_dsnet.utils.atomic_file import atomic_path

URL = "https://github.com/changlin31/DS-Net/releases/download/v0.0.1/DS_MBNet-70_1.pth.tar"

_log = logging.getLogger(__name__)


def cache_folder():
    """Returns where weights are kept: `models/keras_dsnet` in `$KERAS_HOME`, or in `~/.keras`."""
    home = os.environ.get("KERAS_HOME") or "~/.keras"
    return pathlib.Path(home).expanduser() / "models" / "keras_dsnet"


def released_weights(url=URL):
    """Returns the path of the authors' ImageNet weights as a `.weights.h5` file.

    The first call downloads their checkpoint, unless it lies in `cache_folder()` already, and
    converts it; neither a download that broke nor a half-written file is ever kept. Processes that
    do so at the same time do not disturb each other.

    Args:
        url: of the checkpoint.

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
            convert_checkpoint(checkpoint, converted, gates_trained=False)
        else:
            _fetch(url, checkpoint, converted)
    except OSError as error:
        raise UserError(
            f"cannot write the cache {folder}: {error.strerror or error}; set KERAS_HOME to a "
            "folder that can be written"
        ) from error
    return converted


def _fetch(url, checkpoint, converted):
    # Under another name until it is known to be whole: a killed download must not look like one.
    with atomic_path(checkpoint) as partial:
        _download(url, partial, checkpoint)
        convert_checkpoint(partial, converted, gates_trained=False)


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
