"""The benchmark of the input pipelines."""

import json
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.long
RECIPES = pathlib.Path(__file__).resolve().parents[2] / "recipes"
PROGRAM = RECIPES / "benchmarks" / "benchmark_input.py"
SMALL = ("--photographs=10", "--batch_size=4", "--batches=2", "--rounds=1", "--size=224x224")


def run(workdir, *arguments):
    command = [sys.executable, PROGRAM, f"--workdir={workdir}", *SMALL, *arguments]
    subprocess.run(command, check=True, capture_output=True)


def test_every_task_is_compared_in_both_stores(tmp_path):
    run(tmp_path)
    rows = json.loads((tmp_path / "input.json").read_text())
    assert len(rows) == 10
    assert all(row["ratio_low"] <= row["ratio"] <= row["ratio_high"] for row in rows)
    assert [row["of_first_task"] for row in rows if row["task"] == "crop and flip"] == [1, 1]
    assert "benchmark_input.py --workdir=" in (tmp_path / "table.md").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of the memory is read from Linux")
def test_memory_of_a_large_batch_is_larger(tmp_path):
    small = ("--measure_memory", "--store=folder", "--task=evaluation")
    run(tmp_path, *small)
    (row,) = json.loads((tmp_path / "memory.json").read_text())
    run(tmp_path, *small, "--photographs=80", "--batch_size=64")
    (large,) = json.loads((tmp_path / "memory.json").read_text())
    # 60 images of 224x224 in float32 take 34 MiB.
    assert large["mebibytes"] - row["mebibytes"] > 34
