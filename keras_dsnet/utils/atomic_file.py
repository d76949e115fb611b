"""Files that are there whole or not at all."""

import contextlib
import errno
import os
import pathlib

_SUFFIX = ".tmp"


@contextlib.contextmanager
def atomic_file(path, mode="w"):
    """Opens a file beside `path` that takes its place when the block ends without an error.

    It is flushed to the disk before it is renamed, so that whatever ends the process or the machine
    leaves either the old file or the new one.

    Args:
        path: of the file; its folder must exist.
        mode: "w" (UTF-8 text, newlines as written) or "wb".

    Yields:
        The open file.

    Raises:
        OSError: it cannot be written; the error names `path`, and what was there still is.
    """
    path = pathlib.Path(path)
    beside = temporary_path(path)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    try:
        with beside.open(mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        _flush_folder(path.parent)
    except BaseException as error:
        remove_leftover(path)
        if isinstance(error, OSError) and error.filename in (None, str(beside)):
            error.filename = str(path)
        raise


@contextlib.contextmanager
def atomic_path(path):
    """Gives a name beside `path`, whose file takes its place when the block ends without an error.

    For libraries that open files by name and insist on the name's ending.

    Args:
        path: of the file; its folder must exist.

    Yields:
        `pathlib.Path` with the ending of `path`.

    Raises:
        OSError: it cannot be renamed; what was there before still is.
    """
    path = pathlib.Path(path)
    beside = path.with_name(f"partial-{path.name}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def temporary_path(path):
    """Returns where `atomic_file(path)` writes before it renames."""
    path = pathlib.Path(path)
    return path.with_name(path.name + _SUFFIX)


def remove_leftover(path):
    """Removes what a killed write of `path` left behind."""
    with contextlib.suppress(OSError):
        temporary_path(path).unlink()


def _flush_folder(folder):
    # A rename is on the disk only when the folder is; some file systems cannot flush one.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
