"""A work directory must not lie where the next start takes it for a class of images."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys, types
from absl import flags
from keras_dsnet_recipes.lib import data

flags.DEFINE_string("workdir", None, "")
paths = [f"data/{part}/1.png" for part in sys.argv[2].split()]
source = types.SimpleNamespace(paths=paths, class_names=("cat", "dog"))
data.FLAGS(["program", "--workdir=" + sys.argv[1]])
data.check_apart(source, "data", sys.argv[3:] != ["boxes"])
data.check_apart(types.SimpleNamespace(), "digits")
"""


@pytest.mark.parametrize(
    ("workdir", "is_apart"), [("data/runs/x", True), ("data/JPEGImages/x", False)]
)
def test_folders_of_boxes_have_no_classes_beside_them(workdir, is_apart, tmp_path):
    command = [sys.executable, "-c", PROGRAM, workdir, "JPEGImages", "boxes"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode == 0) == is_apart, done.stderr


@pytest.mark.parametrize(
    ("workdir", "folders", "is_apart"),
    [
        ("data/run", "cat dog", False),
        ("data/runs/x", "cat dog", False),
        ("data", "cat dog", False),
        ("data/cat/run", "cat dog", False),
        ("data/train/run", "train/cat train/dog", False),
        ("data/runs/x", "train/cat train/dog", True),
        ("data/.runs/x", "cat dog", True),
        ("runs/x", "cat dog", True),
        ("data_runs", "cat dog", True),
    ],
)
def test_a_workdir_among_the_images_is_refused(workdir, folders, is_apart, tmp_path):
    command = [sys.executable, "-c", PROGRAM, workdir, folders]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    last = done.stderr.splitlines()[-1:]
    assert (done.returncode == 0) == is_apart, done.stderr
    assert is_apart or f"--workdir={workdir} lies among the images of --dataset=data" in last[0]
