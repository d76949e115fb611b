"""A path has the old file or the new one, never a part of a file."""

import contextlib
import errno
import os
import signal
import subprocess
import threading
import time

import pytest
from programs import run_program

from keras_dsnet.utils.atomic_file import (
    atomic_file,
    atomic_path,
    remove_leftovers,
    temporary_path,
)

KILLED = """
import os, signal, sys
from keras_dsnet.utils.atomic_file import atomic_file

with atomic_file(sys.argv[1]) as file:
    file.write("half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_text_is_written_as_it_is(tmp_path):
    path = tmp_path / "a.txt"
    with atomic_file(path) as file:
        file.write("é\r\n")
    assert path.read_bytes() == "é\r\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_shows_before_the_block_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_file(path) as file:
        file.write("new")
        file.flush()
        assert path.read_text() == "old"
        assert temporary_path(path).read_text() == "new"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_keeps_the_old_file_and_cleans_up(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_file(path) as file:
        _write_and_raise(file, error)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@contextlib.contextmanager
def opened_by_name(path):
    """Writes like a library that opens a file by its name."""
    with atomic_path(path) as beside, beside.open("w") as file:
        yield file


WAYS = pytest.mark.parametrize("opened", [atomic_file, opened_by_name])


@WAYS
def test_a_full_disk_is_reported_with_the_path(opened, tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with (
        pytest.raises(OSError, match="No space left on device") as caught,
        opened(path) as file,
    ):
        file.write("new")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@WAYS
def test_the_file_is_on_the_disk_before_its_name_is_and_then_the_folder(
    opened, tmp_path, monkeypatch
):
    path, flushed = tmp_path / "a.txt", []

    def fsync(descriptor):
        flushed.append((os.fstat(descriptor).st_ino, path.exists()))

    monkeypatch.setattr("os.fsync", fsync)
    with opened(path) as file:
        file.write("new")
    assert flushed == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


@WAYS
def test_a_missing_folder_is_reported_with_the_path_that_was_asked_for(opened, tmp_path):
    path = tmp_path / "missing" / "a.txt"
    with pytest.raises(FileNotFoundError) as caught, opened(path):
        pass
    assert caught.value.filename == str(path)


@WAYS
def test_a_folder_in_the_files_place_is_told_before_the_work(opened, tmp_path):
    with pytest.raises(IsADirectoryError) as caught, opened(tmp_path):
        pytest.fail("the block ran")
    assert caught.value.filename == str(tmp_path)


def test_a_killed_write_keeps_the_old_file_and_the_next_one_removes_what_it_left(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    program = tmp_path / "program.py"
    program.write_text(KILLED)
    assert run_program(program, path).returncode == -signal.SIGKILL
    program.unlink()
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    with atomic_file(path) as file:
        file.write("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_processes_write_the_same_file_under_names_of_their_own(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    with atomic_file(path) as file:
        file.write("first")
        with monkeypatch.context() as patch:
            # The parent process runs as long as this one.
            patch.setattr(os, "getpid", os.getppid)
            with atomic_file(path) as other:
                other.write("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_threads_that_write_the_same_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "a.txt"

    def write_meanwhile():
        with atomic_file(path) as other:
            other.write("second")

    with atomic_file(path) as file:
        file.write("fir")
        thread = threading.Thread(target=write_meanwhile)
        thread.start()
        thread.join()
        assert path.read_text() == "second"
        file.write("st")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_are_those_of_ended_processes_and_of_a_day_ago(tmp_path):
    path = tmp_path / "a.txt"
    ended = subprocess.Popen(["true"])
    ended.wait()
    names = {
        "own": temporary_path(path).name,
        "ended": temporary_path(path).name.replace(str(os.getpid()), str(ended.pid), 1),
        "elsewhere": f"partial-{ended.pid}@elsewhere-a.txt",
        "old": "partial-1@elsewhere-a.txt",
        "other": f"partial-{ended.pid}@elsewhere-b.txt",
    }
    for name in names.values():
        (tmp_path / name).write_text("half")
    day_ago = time.time() - 25 * 3600
    os.utime(tmp_path / names["old"], (day_ago, day_ago))
    remove_leftovers(path)
    remove_leftovers(path)
    assert {one.name for one in tmp_path.iterdir()} == {
        names[name] for name in ("own", "elsewhere", "other")
    }


def test_what_a_process_left_whose_number_another_one_has_now_is_removed(tmp_path):
    path = tmp_path / "m.tflite"
    own = temporary_path(path).name
    with subprocess.Popen(["sleep", "60"]) as running:
        beside = tmp_path / own.replace(str(os.getpid()), str(running.pid), 1)
        beside.write_text("half")
        remove_leftovers(path)
        assert beside.exists()
        # The file is older than the process that has the id now.
        hour_ago = time.time() - 3600
        os.utime(beside, (hour_ago, hour_ago))
        remove_leftovers(path)
        running.kill()
    assert not any(tmp_path.iterdir())


def _write_and_raise(file, error):
    file.write("new")
    raise error


def test_a_path_beside_keeps_the_ending_and_takes_the_place(tmp_path):
    path = tmp_path / "x.weights.h5"
    path.write_text("old")
    with atomic_path(path) as beside:
        assert beside.name.endswith(".weights.h5")
        beside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_beside_goes_away_with_an_error(tmp_path):
    path = tmp_path / "x.keras"
    path.write_text("old")

    def fails():
        with atomic_path(path) as beside:
            beside.write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fails()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_its_target_is_written(tmp_path):
    target, link = tmp_path / "real.txt", tmp_path / "link.txt"
    target.write_text("old")
    link.symlink_to(target)
    with atomic_file(link) as file:
        file.write("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 2
