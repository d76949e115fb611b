"""A run's folder belongs to one configuration and to one process."""

import json
import os
import pathlib
import platform
import subprocess
import sys

import pytest

from keras_dsnet.runs.run_checkpoint import RunCheckpoint
from keras_dsnet.runs.training_run import TensorBoardLog
from keras_dsnet.runs.workdir import ConfigMismatchError, WorkDir, read_config

_HOLD_LOCK = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""
_TRY_LOCK = """
import fcntl, sys
fcntl.flock(open(sys.argv[1], "w"), fcntl.LOCK_EX | fcntl.LOCK_NB)
"""


def test_a_new_folder_is_made_with_its_parents(tmp_path):
    workdir = WorkDir(tmp_path / "runs" / "x", {"alpha": 0.5, "sizes": (32, 32)})
    assert read_config(workdir.path) == {"alpha": 0.5, "sizes": [32, 32]}
    assert workdir.checkpoint == tmp_path / "runs" / "x" / "checkpoint.npz"
    assert workdir.tables.is_dir()
    assert workdir.plots.is_dir()
    for path in (workdir.log, workdir.tensorboard):
        assert path.parent == workdir.path


def test_the_same_configuration_goes_on(tmp_path):
    config = {"sizes": (32, 32), "data_dir": pathlib.Path("/data"), "seed": None}
    WorkDir(tmp_path, config).checkpoint.touch()
    assert WorkDir(tmp_path, config).config == read_config(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"alpha": 1.0, "batch": 8},
            "was started with alpha=0.5, and now runs with alpha=1.0: use the same value",
        ),
        ({"dataset": "cifar10"}, "with dataset=digits, and now runs with dataset=cifar10"),
        ({"seed": 3}, "was started without seed, and now runs with seed=3"),
        ({"alpha": None}, "was started with alpha=0.5, and now runs without alpha"),
    ],
)
def test_another_configuration_is_refused_by_its_first_setting(tmp_path, changes, message):
    config = {"alpha": 0.5, "dataset": "digits", "batch": 4}
    WorkDir(tmp_path, config).checkpoint.touch()
    with pytest.raises(ValueError, match=message) as caught:
        WorkDir(tmp_path, {**config, **changes})
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert read_config(tmp_path) == config


def test_a_program_can_describe_the_setting_in_its_own_words(tmp_path):
    run, data = tmp_path / "run", tmp_path / "data"
    data.mkdir()
    config, options = {"data": str(data), "epochs": 3}, {"paths": ["data"], "growing": ["epochs"]}
    WorkDir(run, config, **options).checkpoint.touch()
    with pytest.raises(ConfigMismatchError) as caught:
        WorkDir(run, {**config, "epochs": 2}, **options)
    error = caught.value
    assert (error.folder, error.name, error.can_grow) == (run, "epochs", True)
    assert (error.before, error.now) == ((3, None), (2, None))
    assert "with --epochs=3, which may grow, and now runs with --epochs=2" in error.describe(
        "--{name}"
    )
    with pytest.raises(ConfigMismatchError) as caught:
        WorkDir(run, {"epochs": 3}, **options)
    assert caught.value.before == (str(data), str(data))
    assert caught.value.now == (None, None)
    assert f"with --data={data}, and now runs without --data" in caught.value.describe("--{name}")


def test_a_start_that_trained_nothing_leaves_the_folder_to_other_flags(tmp_path):
    WorkDir(tmp_path, {"alpha": 0.3})
    (tmp_path / "output.txt").write_text("error: alpha")
    WorkDir(tmp_path, {"alpha": 0.5})
    assert read_config(tmp_path) == {"alpha": 0.5}


@pytest.mark.parametrize("name", ["checkpoint.npz", "log.csv", "tensorboard", "model.keras"])
def test_whatever_a_run_leaves_ties_the_folder_to_its_flags(tmp_path, name):
    workdir = WorkDir(tmp_path, {"alpha": 0.3})
    if name == "tensorboard":
        TensorBoardLog(workdir.tensorboard).on_train_begin()
    else:
        (tmp_path / name).touch()
    del workdir
    with pytest.raises(ValueError, match=r"was started with alpha=0\.3"):
        WorkDir(tmp_path, {"alpha": 0.5})
    assert read_config(tmp_path) == {"alpha": 0.3}


def test_a_run_about_to_train_in_this_process_keeps_its_flags(tmp_path):
    workdir = WorkDir(tmp_path, {"alpha": 0.3})
    with pytest.raises(ValueError, match=r"was started with alpha=0\.3"):
        WorkDir(tmp_path, {"alpha": 0.5})
    assert read_config(workdir.path) == {"alpha": 0.3}


def test_without_locks_another_process_may_be_about_to_train(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("keras_dsnet.runs.workdir.fcntl.flock", refuse)
    WorkDir(tmp_path, {"alpha": 0.3})
    with pytest.raises(ValueError, match=r"was started with alpha=0\.3"):
        WorkDir(tmp_path, {"alpha": 0.5})


def test_exempt_flags_may_change_and_the_last_are_kept(tmp_path):
    WorkDir(tmp_path, {"alpha": 0.5, "log_steps": 10}, exempt=("log_steps",)).checkpoint.touch()
    WorkDir(tmp_path, {"alpha": 0.5, "log_steps": 20}, exempt=("log_steps",))
    assert read_config(tmp_path)["log_steps"] == 20
    with pytest.raises(ValueError, match="log_steps"):
        WorkDir(tmp_path, {"alpha": 0.5, "log_steps": 30})


def test_a_flag_that_is_new_and_unset_changes_nothing(tmp_path):
    WorkDir(tmp_path, {"alpha": 0.5}).checkpoint.touch()
    WorkDir(tmp_path, {"alpha": 0.5, "cutout": None})
    assert read_config(tmp_path) == {"alpha": 0.5, "cutout": None}


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path, inside):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(
        NotADirectoryError, match=r"must not be a file or lie inside one\. Received: .*file"
    ):
        WorkDir(path / inside, {})


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("keras_dsnet.runs.workdir.os.open", refuse)
    with pytest.raises(
        PermissionError, match=f"The folder {tmp_path} cannot be written: Permission"
    ):
        WorkDir(tmp_path, {})
    monkeypatch.undo()
    monkeypatch.setattr(pathlib.Path, "mkdir", refuse)
    with pytest.raises(PermissionError, match="cannot be written"):
        WorkDir(tmp_path / "new", {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot be written"):
        WorkDir(tmp_path, {})


def test_a_folder_in_use_by_another_process_is_refused(tmp_path):
    WorkDir(tmp_path, {})
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD_LOCK, str(tmp_path / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        process.stdout.readline()
        with pytest.raises(OSError, match="is in use by another process"):
            WorkDir(tmp_path, {})
        process.stdin.close()
    WorkDir(tmp_path, {})


def test_a_folder_opened_again_stays_locked_until_the_last_run_ends(tmp_path):
    def is_free():
        command = [sys.executable, "-c", _TRY_LOCK, str(tmp_path / ".lock")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert not done.stderr or "BlockingIOError" in done.stderr
        return done.returncode == 0

    workdir = WorkDir(tmp_path, {})
    again = WorkDir(tmp_path / ".", {})
    assert not is_free()
    del workdir
    assert not is_free()
    workdir = WorkDir(tmp_path, {})
    del again
    assert not is_free()
    del workdir
    assert is_free()


@pytest.mark.parametrize("content", ["", "{half", "[1]", "null"])
def test_a_damaged_configuration_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "checkpoint.npz").touch()
    with pytest.raises(ValueError, match=r"config\.json is damaged") as caught:
        WorkDir(tmp_path, {})
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_run_is_refused_where_one_is_needed(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match=r"not the folder of a run: it has no config"):
            read_config(path)


def test_the_configuration_is_readable(tmp_path):
    WorkDir(tmp_path, {"alpha": 0.5})
    assert json.loads((tmp_path / "config.json").read_text()) == {"alpha": 0.5}
    assert (tmp_path / "config.json").read_text().endswith("}\n")


def test_a_number_that_may_grow_is_refused_only_where_it_shrinks(tmp_path):
    WorkDir(tmp_path, {"epochs": 3}, growing=("epochs",)).checkpoint.touch()
    WorkDir(tmp_path, {"epochs": 5}, growing=("epochs",))
    assert read_config(tmp_path)["epochs"] == 5
    for make in (WorkDir, WorkDir.check):
        with pytest.raises(ValueError, match=r"epochs=5, which may grow, and now .*epochs=4"):
            make(tmp_path, {"epochs": 4}, growing=("epochs",))
    assert read_config(tmp_path)["epochs"] == 5


def test_a_start_that_trained_no_step_leaves_the_number_of_the_checkpoint(tmp_path):
    workdir = WorkDir(tmp_path, {"epochs": 3}, growing=("epochs",))
    RunCheckpoint(workdir.checkpoint).save({}, 6, {"epochs": 3})
    WorkDir(tmp_path, {"epochs": 1000}, growing=("epochs",))
    WorkDir(tmp_path, {"epochs": 3}, growing=("epochs",))
    assert read_config(tmp_path)["epochs"] == 3
    with pytest.raises(ValueError, match=r"epochs=3, which may grow, and now .*epochs=2"):
        WorkDir(tmp_path, {"epochs": 2}, growing=("epochs",))


def test_the_same_folder_spelled_otherwise_is_the_same(tmp_path, monkeypatch):
    data = tmp_path / "data"
    (tmp_path / "home").mkdir()
    data.mkdir()
    (tmp_path / "link").symlink_to(data)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    run = tmp_path / "run"
    WorkDir(run, {"dataset": "data"}, paths=("dataset",)).checkpoint.touch()
    for spelled in ("data/", "./data", str(data), "home/../data", "~/data", "link"):
        WorkDir(run, {"dataset": spelled}, paths=("dataset",))
        WorkDir.check("~/run", {"dataset": spelled}, paths=("dataset",))
    with pytest.raises(ValueError, match="now runs with dataset=home"):
        WorkDir(run, {"dataset": "home"}, paths=("dataset",))
    # In another folder the same relative path is another place.
    (tmp_path / "home" / "data").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    WorkDir(run, {"dataset": "../data"}, paths=("dataset",))
    with pytest.raises(ValueError, match=r"now runs with dataset=data \(.*home/data\)"):
        WorkDir(run, {"dataset": "data"}, paths=("dataset",))


def test_a_path_that_was_not_set_before_is_another_configuration(tmp_path):
    (tmp_path / "weights").touch()
    options = {"paths": ("weights",)}
    WorkDir(tmp_path / "run", {"weights": None}, **options).checkpoint.touch()
    with pytest.raises(ValueError, match="without weights, and now runs with weights="):
        WorkDir(tmp_path / "run", {"weights": str(tmp_path / "weights")}, **options)


def test_names_and_folders_that_have_moved_are_compared_as_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("data").mkdir()
    options = {"paths": ("dataset",)}
    WorkDir("run", {"dataset": "data"}, **options).checkpoint.touch()
    WorkDir("named", {"dataset": "cifar10"}, **options).checkpoint.touch()
    pathlib.Path("data").rename("moved")
    pathlib.Path("new").mkdir()
    monkeypatch.chdir("new")
    pathlib.Path("data").mkdir()
    WorkDir("../run", {"dataset": "data"}, **options)
    WorkDir("../named", {"dataset": "cifar10"}, **options)
    with pytest.raises(ValueError, match="dataset"):
        WorkDir("../named", {"dataset": "cifar100"}, **options)


def test_a_run_of_before_is_recognised_whichever_way_its_lists_are_spelled(tmp_path):
    WorkDir(tmp_path, {"weights": ["1", "0.5"], "strides": ["1", "2"]}).checkpoint.touch()
    WorkDir(tmp_path, {"weights": ["1.0", "0.50"], "strides": ["1", "2"]})
    with pytest.raises(ValueError, match="weights"):
        WorkDir(tmp_path, {"weights": ["1.0", "0.6"], "strides": ["1", "2"]})


def test_check_makes_nothing(tmp_path):
    WorkDir.check(tmp_path / "new", {"alpha": 1})
    assert not (tmp_path / "new").exists()


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    killed = subprocess.Popen([sys.executable, "-c", "pass"])
    killed.wait()
    node = platform.node()
    left = tmp_path / f"partial-{killed.pid}@{node}-supernet.keras"
    kept = tmp_path / f"partial-{os.getpid()}@{node}-log.csv", tmp_path / f"partial-1@{node}x-a"
    for path in (left, *kept):
        path.touch()
    WorkDir(tmp_path, {})
    assert not left.exists()
    assert all(path.exists() for path in kept)
