"""Files that are there whole or not at all."""

import contextlib
import errno
import glob
import os
import pathlib
import platform
import re
import time

# A temporary file that nobody wrote to for so long is nobody's, wherever its process ran.
_STALE_SECONDS = 24 * 3600


@contextlib.contextmanager
def atomic_file(path, mode="w"):
    """Opens a file beside `path` that takes its place when the block ends without an error.

    Args:
        path: of the file; its folder must exist.
        mode: "w" (UTF-8 text, newlines as written) or "wb".

    Yields:
        The open file.

    Raises:
        OSError: it cannot be written; the error names `path`, and what was there still is.
    """
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    with atomic_path(path) as beside, beside.open(mode, **text) as file:
        yield file


@contextlib.contextmanager
def atomic_path(path):
    """Gives a name beside `path`, whose file takes its place when the block ends without an error.

    For libraries that open files by name and insist on the name's ending. The file is flushed to
    the disk before it is renamed, so that whatever ends the process or the machine leaves either
    the old file or the new one. Processes that write the same file do so under different names, and
    the last one's stays.

    Args:
        path: of the file; its folder must exist.

    Yields:
        `pathlib.Path` with the ending of `path`; there is no file of that name yet.

    Raises:
        OSError: it cannot be written; the error names `path`, and what was there still is.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    remove_leftovers(path)
    beside = temporary_path(path)
    try:
        # A killed process may have had the number of this one.
        beside.unlink(missing_ok=True)
        yield beside
        _flush(beside)
        beside.replace(path)
        # A rename is on the disk only when the folder is; some file systems cannot flush one.
        with contextlib.suppress(OSError):
            _flush(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        if isinstance(error, OSError) and error.strerror and error.filename in (None, str(beside)):
            error.filename = str(path)
        raise


def temporary_path(path):
    """Returns where this process writes what is to take the place of `path`."""
    path = pathlib.Path(path)
    return path.with_name(f"partial-{os.getpid()}@{platform.node()}-{path.name}")


def remove_leftovers(path):
    """Removes what killed writes of `path` left behind; those that go on keep their files."""
    path = pathlib.Path(path)
    for beside in path.parent.glob(f"partial-*@*-{glob.escape(path.name)}"):
        writer = beside.name.removeprefix("partial-").removesuffix(f"-{path.name}")
        # Another process may have removed it by now.
        with contextlib.suppress(OSError):
            written = beside.stat().st_mtime
            if _is_gone(writer, written) or time.time() - written > _STALE_SECONDS:
                beside.unlink()


def remove_leftovers_of_the_dead(folder):
    """Removes from a folder what processes of this machine that were killed left half-written."""
    prefix = re.compile(rf"partial-(\d+@{re.escape(platform.node())})-")
    for beside in pathlib.Path(folder).glob("partial-*@*-*"):
        match = prefix.match(beside.name)
        with contextlib.suppress(OSError):
            if match and _is_gone(match[1], beside.stat().st_mtime):
                beside.unlink()


def _is_gone(writer, written):
    """Whether a process has ended that wrote on this machine.

    Args:
        writer: str, as in `temporary_path`.
        written: float, when it last wrote, in seconds since 1970.
    """
    number, _, machine = writer.partition("@")
    if machine != platform.node() or not number.isdecimal():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        # It is another user's, or no number of a process.
        return False
    started = _start_time(int(number))
    # A process that began after the writing has got the number of one that ended.
    return started is not None and started > written + 2


def _start_time(number):
    """Returns when a process began, in seconds since 1970; None where the system does not tell."""
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
