"""A work directory must not lie where the next start takes it for a class of images."""

import json
import subprocess
import sys

import pytest

# (--workdir, folders of images in data, whether they are boxes, whether it lies apart).
CASES = [
    ("data/run", "cat dog", False, False),
    ("data/runs/x", "cat dog", False, False),
    ("data", "cat dog", False, False),
    ("data/cat/run", "cat dog", False, False),
    ("data/train/run", "train/cat train/dog", False, False),
    ("data/runs/x", "train/cat train/dog", False, True),
    ("data/.runs/x", "cat dog", False, True),
    ("runs/x", "cat dog", False, True),
    ("data_runs", "cat dog", False, True),
    # Folders of boxes have no classes beside them.
    ("data/runs/x", "JPEGImages", True, True),
    ("data/JPEGImages/x", "JPEGImages", True, False),
]
# One process for all, since the flags of a program are defined once in a process.
PROGRAM = """
import json, sys, types
from absl import flags
from keras_dsnet_recipes.lib import data

flags.DEFINE_string("workdir", None, "")
errors = []
for workdir, folders, is_boxes, _ in json.loads(sys.argv[1]):
    paths = [f"data/{part}/1.png" for part in folders.split()]
    source = types.SimpleNamespace(paths=paths, class_names=("cat", "dog"))
    data.FLAGS(["program", "--workdir=" + workdir])
    data.check_apart(types.SimpleNamespace(), "digits")
    try:
        data.check_apart(source, "data", not is_boxes)
        errors.append(None)
    except ValueError as error:
        errors.append(str(error))
print(json.dumps(errors))
"""


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    command = [sys.executable, "-c", PROGRAM, json.dumps(CASES)]
    folder = tmp_path_factory.mktemp("here")
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", range(len(CASES)), ids=lambda number: "-".join(CASES[number][:2])
)
def test_a_workdir_among_the_images_is_refused(number, errors):
    workdir, _, _, is_apart = CASES[number]
    if is_apart:
        assert errors[number] is None
    else:
        begin = f"--workdir={workdir} lies among the images of --dataset=data"
        assert errors[number].startswith(begin)
