"""What is at a path is the old file or the new one, never half of one."""

import errno

import pytest

from keras_dsnet.utils.atomic_file import (
    atomic_file,
    atomic_path,
    remove_leftover,
    temporary_path,
)


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


def test_a_full_disk_is_reported_with_the_path(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with (
        pytest.raises(OSError, match="No space left on device") as caught,
        atomic_file(path) as file,
    ):
        file.write("new")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_reported_with_the_path_that_was_asked_for(tmp_path):
    path = tmp_path / "missing" / "a.txt"
    with pytest.raises(FileNotFoundError) as caught, atomic_file(path):
        pass
    assert caught.value.filename == str(path)


def test_leftovers_are_removed_and_may_be_absent(tmp_path):
    path = tmp_path / "a.txt"
    temporary_path(path).write_text("half")
    remove_leftover(path)
    remove_leftover(path)
    assert list(tmp_path.iterdir()) == []


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
