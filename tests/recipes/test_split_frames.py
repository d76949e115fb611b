"""The program that splits frames, from a folder to its report."""

import pathlib
import subprocess
import sys

import pytest
from detection_data import write_voc, xml

from keras_dsnet.detection import load_detection_source

PROGRAM = pathlib.Path(__file__).resolve().parents[2] / "recipes" / "split_frames.py"


@pytest.mark.slow
def test_ranges_are_made_reported_and_read(tmp_path):
    names = [f"{number:03}" for number in range(60)]
    contents = dict.fromkeys(names[:40], xml(("cat", (1, 2, 20, 30))))
    contents |= dict.fromkeys(names[40:], xml(("dog", (1, 2, 20, 30))))
    # An empty frame in a list.
    contents["060"] = xml()
    folder = write_voc(
        tmp_path / "pets", contents, {"trainval": names[::2], "test": [*names[1::2], "060"]}
    )
    flags = [f"--dataset={folder}", f"--workdir={tmp_path / 'run'}", "--block=8", "--gap=2"]
    done = subprocess.run(
        [sys.executable, PROGRAM, *flags], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "ranges: 36 frames to train on, 18 to test on; 0.0 % of these have" in done.stdout
    assert "lists of the data set: 30 frames to train on, 30 to test on; 100.0 %" in done.stdout
    ranges = tmp_path / "run" / "ranges.txt"
    assert load_detection_source(folder, ranges=ranges).class_counts == (28, 8)
    assert load_detection_source(folder, split="eval", ranges=ranges).class_counts == (10, 8)
