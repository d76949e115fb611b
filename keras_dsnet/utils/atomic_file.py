"""Files that are written completely or not at all."""

import contextlib
import errno
import glob
import os
import pathlib
import platform
import re
import threading
import time
from collections.abc import Iterator
from typing import IO

# A temporary file of another machine's process is stale if nobody wrote to it for this time.
_STALE_SECONDS = 24 * 3600


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """Opens a temporary file that replaces `path` when the block ends without an error.

    Args:
        path: Path of the file. Its folder must exist.
        mode: String, `"w"` for UTF-8 text with unchanged newlines, or `"wb"`. Defaults to `"w"`.

    Yields:
        The open file.

    Raises:
        OSError: If the file cannot be written. The error names `path`, and an older file is kept.
    """
    encoding, newline = (None, None) if "b" in mode else ("utf-8", "")
    with (
        atomic_path(path) as beside,
        beside.open(mode, encoding=encoding, newline=newline) as file,
    ):
        yield file


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path whose file replaces `path` when the block ends without an error.

    It serves libraries that open files by name and require a suffix. The file is flushed to the
    disk before it is renamed, so that a crash of the process or the machine leaves either the old
    file or the new one. Processes and threads that write the same file use different temporary
    paths, and the file of the last one stays.

    Args:
        path: Path of the file. Its folder must exist.

    Yields:
        `pathlib.Path` in the same folder and with the suffix of `path`. The file does not exist
        yet.

    Raises:
        OSError: If the file cannot be written. The error names `path`, and an older file is kept.
    """
    path = given = pathlib.Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.is_symlink():
        # The link stays, as with plain writing.
        path = pathlib.Path(os.path.realpath(path))
    remove_leftovers(path)
    beside = temporary_path(path)
    try:
        # A killed process can have had the same ids.
        beside.unlink(missing_ok=True)
        yield beside
        _flush(beside)
        beside.replace(path)
        # A rename is on the disk only when the folder is. Some file systems cannot flush a folder.
        with contextlib.suppress(OSError):
            _flush(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        if isinstance(error, OSError) and error.strerror and error.filename in (None, str(beside)):
            error.filename = str(given)
        raise


def temporary_path(path: str | os.PathLike) -> pathlib.Path:
    """Returns the path of this thread's temporary file for `path`."""
    path = pathlib.Path(path)
    writer = f"{os.getpid()}.{threading.get_native_id()}@{platform.node()}"
    return path.with_name(f"partial-{writer}-{path.name}")


def is_temporary(path: str | os.PathLike) -> bool:
    """Returns whether a path is that of a temporary file of this process."""
    pattern = rf"partial-{os.getpid()}\.\d+@{re.escape(platform.node())}-"
    return re.match(pattern, pathlib.Path(path).name) is not None


def remove_leftovers(path: str | os.PathLike) -> None:
    """Removes the temporary files of killed writes of `path`, and keeps those of running ones."""
    path = pathlib.Path(path)
    for beside in path.parent.glob(f"partial-*@*-{glob.escape(path.name)}"):
        writer = beside.name.removeprefix("partial-").removesuffix(f"-{path.name}")
        # Another process can remove the file at the same time.
        with contextlib.suppress(OSError):
            written = beside.stat().st_mtime
            if _is_gone(writer, written) or time.time() - written > _STALE_SECONDS:
                beside.unlink()


def remove_leftovers_of_the_dead(folder: str | os.PathLike) -> None:
    """Removes the temporary files in a folder of killed processes of this machine."""
    prefix = re.compile(rf"partial-([\d.]+@{re.escape(platform.node())})-")
    for beside in pathlib.Path(folder).glob("partial-*@*-*"):
        match = prefix.match(beside.name)
        with contextlib.suppress(OSError):
            if match and _is_gone(match[1], beside.stat().st_mtime):
                beside.unlink()


def _is_gone(writer, written):
    """Returns whether a process that wrote on this machine has ended.

    Args:
        writer: String, ids of process and thread, and machine, as in `temporary_path`.
        written: Float, the time of its last write, in seconds since 1970.
    """
    ids, _, machine = writer.partition("@")
    number = ids.partition(".")[0]
    if machine != platform.node() or not number.isdecimal():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        # The process is another user's, or the number is not a process id.
        return False
    started = _start_time(int(number))
    # A process that began after the write has the id of a process that ended.
    return started is not None and started > written + 2


def _start_time(number):
    """Returns the start time of a process in seconds since 1970, or None if it is not known."""
    try:
        fields = pathlib.Path(f"/proc/{number}/stat").read_text("utf-8", "replace")
        ticks = int(fields.rpartition(")")[2].split()[19])
        lines = pathlib.Path("/proc/stat").read_text("utf-8").splitlines()
        (booted,) = (int(line.split()[1]) for line in lines if line.startswith("btime "))
        return booted + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def _flush(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
