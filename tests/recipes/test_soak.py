"""The soak: short forms of its parts, and that it finds what is wrong."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
from keras_dsnet_recipes.lib.soak import disk, predictions
from keras_dsnet_recipes.lib.soak.files import damaged_files, differences, temporary_files
from keras_dsnet_recipes.lib.soak.kills import kill_at
from keras_dsnet_recipes.lib.soak.results import Results, summary
from programs import run_program
from routed_networks import SHORT_SPEC, small_network

from keras_dsnet.utils.atomic_file import temporary_path

PROGRAM = pathlib.Path(__file__).resolve().parents[2] / "recipes" / "benchmarks" / "soak.py"


@pytest.fixture(scope="module")
def network():
    return small_network(spec=SHORT_SPEC)


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "rounds.json", {"seed": 0})


def run_part(folder, part, *arguments):
    """Runs a part of the soak; returns its rows after those of the runs without a kill."""
    done = run_program(PROGRAM, f"--workdir={folder}", f"--parts={part}", *arguments)
    rows = json.loads((folder / "soak.json").read_text())
    assert done.returncode == 0, (done.stdout, done.stderr, rows)
    assert f"## {part}" in (folder / "soak.md").read_text()
    return [row for row in rows if row["round"] >= 0]


@pytest.mark.long
def test_eight_threads_predict_what_one_does(network, results):
    images = predictions.make_images(network, seed=0)
    predictions.run_of_network(results, network, images, 40, 8, seed=0)
    assert [row["problems"] for row in results.rows] == [[]] * 3
    assert all(row["predictions"] == 40 for row in results.rows)
    # Wrong paths are found only if images have different ones.
    assert results.rows[1]["widths"] > 1
    predictions.run_first_calls(results, network, images, 8, seed=0)
    assert results.rows[3]["problems"] == []
    again = Results(results.path, {"seed": 0})
    predictions.run_of_network(again, None, images, 40, 8, seed=0)
    assert again.rows == results.rows


@pytest.mark.long
def test_threads_share_an_interpreter_or_have_their_own(tmp_path):
    rows = run_part(tmp_path, "predictions", "--predictions=300")
    assert len(rows) == 8


@pytest.mark.long
def test_a_wrong_prediction_a_new_trace_and_an_error_are_found(network, monkeypatch, results):
    call = predictions._Network(network)
    batches = [np.zeros((1, 16, 16, 3), "float32"), np.ones((2, 16, 16, 3), "float32")]
    right = [call(batch) for batch in batches]
    calls = []

    def wrong(batch):
        calls.append(batch)
        outputs, paths = right[len(batch) - 1]
        if len(calls) == 10:
            raise RuntimeError("a broken thread")
        late = len(calls) > 5
        return outputs + late, paths + late

    wrong.counter = lambda: len(calls)
    row = predictions._compare(wrong, batches, 40, 2, seed=0)
    problems = predictions._row("network", row, {"new_traces": row.pop("counter")})["problems"]
    assert len(problems) == 4
    assert "a broken thread" in problems[0]
    assert problems[2].startswith("outputs differ by 1 ")


class Traced:
    """A network that makes some traces at its first call."""

    def __init__(self, traces):
        self.trace_count, self._traces = 0, traces

    def run_dynamic(self, batch):
        self.trace_count = self._traces
        outputs = tf.zeros((len(batch), 1))
        return outputs, tf.cast(outputs, tf.int32)


@pytest.mark.long
def test_traces_made_twice_are_found_after_those_of_other_routings(monkeypatch, results):
    # The first one is the reference, which one thread calls.
    copies = iter([Traced(2), Traced(2), Traced(3), Traced(2)])
    monkeypatch.setattr(predictions, "_copy", lambda network: next(copies))
    network = Traced(4)
    network.run_dynamic(np.zeros((1, 1)))
    predictions.run_first_calls(results, network, np.zeros((4, 1), "float32"), 2, seed=0)
    (row,) = results.rows
    assert row["problems"] == ["1 traces made twice"]


class Killed:
    """A program that is killed at the second look, and starts to write a file or does not."""

    def __init__(self, folder, writes):
        self._folder, self._writes, self._looks = folder, writes, 0

    def poll(self, seconds=0):
        self._looks += 1
        if self._writes and self._looks > 2:
            temporary_path(self._folder / "m.tflite").touch()
        return None if self._looks < 9 else 0

    def processor_seconds(self):
        return self._looks

    def kill(self):
        return -9


@pytest.mark.parametrize("at_write", [False, True])
def test_a_file_left_by_an_earlier_kill_is_not_being_written(tmp_path, at_write):
    (tmp_path / temporary_path(tmp_path / "m.tflite").name.replace(str(os.getpid()), "1")).touch()
    assert temporary_files(tmp_path)
    assert kill_at(Killed(tmp_path, True), tmp_path, 1, at_write) == (-9, at_write)
    for path in tmp_path.iterdir():
        path.unlink()
    temporary_path(tmp_path / "m.tflite").touch()
    # It ends by itself before a write begins.
    code, is_writing = kill_at(Killed(tmp_path, False), tmp_path, 1, at_write)
    assert (code, is_writing) == (0 if at_write else -9, False)


def test_files_that_are_cut_or_differ_are_found(network, tmp_path):
    first, other = tmp_path / "first", tmp_path / "other"
    first.mkdir()
    network.save(first / "model.keras")
    network.save_weights(first / "model.weights.h5")
    np.savez(first / "checkpoint.npz", **{"model/0": np.arange(3.0)})
    (first / "log.csv").write_text("epoch,loss,val_top1_0\n1,2,0.5\n")
    (first / "rows.json").write_text("[1]")
    shutil.copytree(first, other)
    # The means of an interrupted epoch are others.
    (other / "log.csv").write_text("epoch,loss,val_top1_0\n1,3,0.5\n")
    assert damaged_files(other) == differences(first, other) == []
    np.savez(other / "checkpoint.npz", **{"model/0": np.arange(3.0) + 1e-9})
    (other / "log.csv").write_text("epoch,loss,val_top1_0\n1,2,0.4\n")
    temporary_path(other / "labels.txt").touch()
    (other / "rows.json").unlink()
    found = differences(first, other)
    assert found[:3] == ["rows.json is missing", "checkpoint.npz differs", "log.csv differs"]
    assert found[3].endswith("-labels.txt was left")
    for path in first.iterdir():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert len(damaged_files(first)) == 5


def test_results_of_another_seed_are_not_mixed(results):
    row = {"part": "kills", "subject": "save", "round": 0, "kills": 2, "problems": ["a"]}
    results.add(row)
    results.add({**row, "round": 1})
    with pytest.raises(ValueError, match=r"made with --seed=0: .* Received: --seed=1"):
        Results(results.path, {"seed": 1})
    assert Results(results.path, {"seed": 0}).find("kills", "save", 0) == row
    assert summary(results.rows)[0] == {
        "part": "kills",
        "subject": "save",
        "rounds": 2,
        "kills": 4,
        "problems": 2,
    }


@pytest.mark.long
def test_programs_that_are_killed_end_as_those_that_are_not(tmp_path):
    rows = run_part(tmp_path, "kills", "--kills=5")
    assert sum(row["kills"] for row in rows) == 5
    assert len({row["subject"] for row in rows}) == 5


@pytest.mark.long
def test_workers_that_are_killed_end_as_those_that_are_not(tmp_path):
    rows = run_part(tmp_path, "workers", "--worker_kills=2")
    assert sum(row["kills"] for row in rows) == 2
    assert all(row["seconds_to_end"] < 60 for row in rows)


@pytest.mark.long
@pytest.mark.skipif(disk.why_not() is not None, reason="a disk cannot be limited here")
def test_a_full_disk_ends_each_write_and_each_program_in_one_line(tmp_path):
    rows = run_part(tmp_path, "disk", "--disks=1")
    assert len(rows) == 2 * len(disk.WRITES) + len(disk.SUBJECTS) + 1
