"""The files of a task, which carry it from TensorFlow to JAX or back.

Nothing here imports TensorFlow.
"""

import hashlib
import json
import os
import pathlib
import zipfile
import zlib

import numpy as np

TASK, PROGRESS, RESULT = "task.npz", "progress.npz", "trained.npz"
_FORMAT = 1
_SETTINGS = "settings"


def write(path, arrays, settings):
    """Writes arrays and a dict for JSON into one file, which a failure leaves as it was.

    Args:
        path: Path of the file.
        arrays: Dict of arrays.
        settings: Dict.
    """
    path = pathlib.Path(path)
    text = np.frombuffer(json.dumps({**settings, "format": _FORMAT}).encode(), np.uint8)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            np.savez(file, **{_SETTINGS: text}, **arrays)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read(path):
    """Returns the arrays of a file of `write`, with its dict under "settings".

    Args:
        path: Path of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or has another format.
    """
    arrays = _open(path, lambda archive: {name: archive[name] for name in archive.files})
    settings = arrays.pop(_SETTINGS)
    return {**arrays, "settings": _parse(path, settings)}


def read_settings(path):
    """Returns the dict of a file of `write` without its arrays. Raises the errors of `read`.

    Args:
        path: Path of the file.
    """
    return _parse(path, _open(path, lambda archive: archive[_SETTINGS]))


def _open(path, take):
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        with np.load(path) as archive:
            return take(archive)
    except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged, or is no file of a task: {error}") from None


def _parse(path, text):
    try:
        settings = json.loads(text.tobytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged, or is no file of a task: {error}") from None
    if settings.pop("format") != _FORMAT:
        raise ValueError(f"{path} is of another version of this package: write the task again")
    return settings


def write_images(folder, images, labels):
    """Writes images and labels into a folder unless they are there, and returns the file's name.

    The name has a checksum of them, so that tasks of the same images share a file.

    Args:
        folder: Path of the folder.
        images: uint8 array `[images, height, width, 3]`.
        labels: int32 array `[images]`.
    """
    name = name_of_images(images, labels)
    path = pathlib.Path(folder) / name
    if not path.is_file():
        write(path, {"images": images, "labels": labels}, {})
    return name


def name_of_images(images, labels):
    """Returns the name of the file of images and labels, which has a checksum of them."""
    return f"images_{checksum((images, labels))}.npz"


def read_images(path):
    """Returns the arrays of a file of `write_images`, under "images" and "labels".

    Args:
        path: Path of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or its images are not those of its name.
    """
    arrays = read(path)
    if name_of_images(arrays["images"], arrays["labels"]) != pathlib.Path(path).name:
        raise ValueError(f"{path} does not hold the images that its name has the checksum of")
    return arrays


def checksum(arrays):
    """Returns a checksum of arrays, 16 hexadecimal digits.

    Args:
        arrays: Iterable of arrays.
    """
    sums = hashlib.sha256()
    for array in arrays:
        sums.update(np.ascontiguousarray(array))
    return sums.hexdigest()[:16]
