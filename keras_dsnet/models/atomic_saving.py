"""The methods of a model that save it: a file is complete or is not there."""

import io
import os
import pathlib
from typing import Any

from keras_dsnet.utils.atomic_file import atomic_file, atomic_path, is_temporary


class AtomicSaving:
    """The part of a model that saves it. The model inherits from this class.

    Keras writes into the file itself. Here a second file replaces it when that file is complete, so
    that a kill or a full disk leaves the older file. Folders, sharded weights and remote paths are
    written by Keras as usual, and so is a file whose replacement Keras asks the user about.
    """

    def save(
        self, filepath: Any, overwrite: bool = True, zipped: bool | None = None, **kwargs: Any
    ) -> None:
        model: Any = super()
        is_one_file = zipped is not False and str(filepath).endswith(".keras")
        if not is_one_file or not _replaces(filepath, overwrite) or is_temporary(filepath):
            model.save(filepath, overwrite=overwrite, zipped=zipped, **kwargs)
            return
        with atomic_path(filepath) as beside:
            model.save(beside, zipped=zipped, **kwargs)

    def save_weights(
        self, filepath: Any, overwrite: bool = True, max_shard_size: float | None = None
    ) -> None:
        model: Any = super()
        is_one_file = max_shard_size is None and str(filepath).endswith(".weights.h5")
        if not is_one_file or not _replaces(filepath, overwrite):
            model.save_weights(filepath, overwrite=overwrite, max_shard_size=max_shard_size)
            return
        # HDF5 can end the process with a segmentation fault when its disk is full.
        content = _InMemory()
        model.save_weights(content)
        if is_temporary(filepath):
            pathlib.Path(filepath).write_bytes(content.getbuffer())
            return
        with atomic_file(filepath, "wb") as file:
            file.write(content.getbuffer())


class _InMemory(io.BytesIO):
    """A file in memory, with a name whose ending Keras accepts."""

    def __str__(self) -> str:
        return "memory.weights.h5"


def _replaces(filepath: Any, overwrite: bool) -> bool:
    """Returns whether a path names a local file that is written without a question."""
    if not isinstance(filepath, (str, os.PathLike)) or "://" in str(filepath):
        return False
    path = pathlib.Path(filepath)
    # Keras's own error names a folder that is missing.
    return path.parent.is_dir() and not path.is_dir() and (overwrite or not path.exists())
