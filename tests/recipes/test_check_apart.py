"""What lies among the images: a work directory, images of another split, or their data set."""

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
import json, pathlib, sys, types
from absl import flags
from keras_dsnet_recipes.lib import checks, data

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
# Several names of one split, and whether images are shared.
for folder in ("train-images", "training_set"):
    for name in ("cat", "dog"):
        pathlib.Path("photos_" + folder, folder, name).mkdir(parents=True)
shared = [
    data.may_share_images(first, second, 20, dataset)
    for dataset, first, second in json.loads(sys.argv[2])
]
# The data set of a run is known by its name, whatever folder the next program finds here.
pathlib.Path("run").mkdir()
pathlib.Path("digits").mkdir()
pathlib.Path("cifar10/3.0.2").mkdir(parents=True)
pathlib.Path("cifar10/3.0.2/dataset_info.json").touch()
for name in ("dataset", "data_dir", "eval_split"):
    flags.DEFINE_string(name, None, "")
data.FLAGS(["program"])
found = []
for name in ("digits", "cifar10", "data/cat"):
    place = str(pathlib.Path(name).resolve())
    config = {"dataset": name, "places": {"dataset": place}}
    pathlib.Path("data/cat").mkdir(parents=True, exist_ok=True)
    pathlib.Path("run/config.json").write_text(json.dumps(config))
    found.append(checks.source_flags("run", data.EVALUATION_SOURCE, "why")["dataset"] == name)
print(json.dumps([errors, shared, found]))
"""
SPLITS = [
    ("photos_train-images", "train-images", "train[50%:]", True),
    ("photos_train-images", "train-images[:50%]", "train[50%:]", False),
    ("photos_training_set", "training_set", "train[50%:]", True),
    ("photos_training_set", "train", "training_set[50%:]", True),
    ("photos_training_set", "train[:10]", "training_set[10:]", False),
    ("photos_training_set", "training_set", "test", False),
    ("digits", "train", "train[50%:]", True),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    splits = [row[:3] for row in SPLITS]
    command = [sys.executable, "-c", PROGRAM, json.dumps(CASES), json.dumps(splits)]
    folder = tmp_path_factory.mktemp("here")
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", range(len(CASES)), ids=lambda number: "-".join(CASES[number][:2])
)
def test_a_workdir_among_the_images_is_refused(number, found):
    errors = found[0]
    workdir, _, _, is_apart = CASES[number]
    if is_apart:
        assert errors[number] is None
    else:
        begin = f"--workdir={workdir} lies among the images of --dataset=data"
        assert errors[number].startswith(begin)


@pytest.mark.slow
def test_a_split_by_another_name_shares_its_images(found):
    assert found[1] == [row[3] for row in SPLITS]


@pytest.mark.slow
def test_a_data_set_known_by_name_is_no_folder_of_that_name(found):
    assert found[2] == [True, True, False]
