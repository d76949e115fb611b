"""The programs of detection: a detector is trained, killed, resumed; then its gate is trained."""

import json
import pathlib
import re
import signal
import time

import keras
import numpy as np
import pytest
from detection_data import write_voc, xml
from detection_squares import CLASSES, SIZE, make_classifier, scenes
from programs import run_program, start_program, state_of
from worker_processes import Workers

from keras_dsnet.runs import read_log

RECIPES = pathlib.Path(__file__).resolve().parents[2] / "recipes"
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder in VOC form of squares in two colours, and a trained backbone."""
    folder = tmp_path_factory.mktemp("data")
    images, target = scenes(48)
    pixels = np.clip(images * 50 + 128, 0, 255).astype("uint8")
    annotations = {}
    for index, (boxes, classes) in enumerate(
        zip(target["boxes"] * SIZE, target["classes"].astype(int), strict=True)
    ):
        objects = [
            (CLASSES[label], (left + 1, top + 1, right, bottom))
            for (top, left, bottom, right), label in zip(boxes, classes, strict=True)
            if label >= 0
        ]
        annotations[f"{index:02}"] = xml(*objects, size=(SIZE, SIZE))
    names = list(annotations)
    write_voc(folder / "squares", annotations, {"train": names[:40], "val": names[40:]})
    for name, image in zip(names, pixels, strict=True):
        keras.utils.save_img(folder / "squares" / "JPEGImages" / f"{name}.jpg", image, scale=False)
    # A classifier with gates, which the detector's training makes useless.
    classifier = make_classifier()
    classifier.gates_trained, classifier.routes = True, (0, 2)
    classifier.save(folder / "supernet.keras")
    return folder


@pytest.fixture(scope="module")
def command(data):
    return (
        f"--dataset={data / 'squares'}",
        f"--backbone={data / 'supernet.keras'}",
        f"--image_size={SIZE}",
        "--head_channels=8",
        "--pyramid=16",
        "--batch_size=8",
        "--eval_batch_size=8",
        "--epochs=2",
        "--learning_rate=0.4",
        "--num_random=1",
        "--target=ema",
        "--checkpoint_steps=2",
        "--recalibration_steps=2",
        "--deterministic",
    )


def run(name, *arguments):
    done = run_program(RECIPES / name, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(command, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    output = run("voc_fssd.py", *command, f"--workdir={workdir}")
    assert "training on folder" in output
    assert "multiply-adds at 3 widths" in output
    assert "note: the gates of --backbone=" in output
    return workdir


def test_the_gates_of_the_backbone_are_not_those_of_the_detector(trained):
    detector = keras.models.load_model(trained / "detector.keras")
    assert (detector.gates_trained, detector.routes) == (False, (0, 1, 2))
    rows = json.loads((trained / "tables" / "paths.json").read_text())
    assert [row["path"] for row in rows] == [0, 1, 2]


def test_a_run_writes_its_detector_tables_and_plots(trained):
    detector = keras.models.load_model(trained / "detector.keras")
    assert detector.class_names == ("green", "red")
    assert (trained / "labels.txt").read_text() == "green\nred\n"
    rows = json.loads((trained / "tables" / "paths.json").read_text())
    assert [row["path"] for row in rows] == [0, 1, 2]
    assert rows[0]["madds"] == detector.madds(0) < rows[2]["madds"]
    classes = json.loads((trained / "tables" / "classes.json").read_text())
    assert {row["class"] for row in classes} == {"green", "red", "mean"}
    log = read_log(trained / "log.csv")
    assert [row["epoch"] for row in log] == [1, 2]
    assert log[1]["loss"] < log[0]["loss"]
    assert {"val_map_0", "val_map_2", "widest_box_loss", "slimmest_loss"} <= set(log[1])
    assert {path.name for path in (trained / "plots").iterdir()} == {
        "detections.png",
        "precision_against_madds.png",
        "precision_recall.png",
        "training_curves.png",
    }


def test_a_run_killed_in_the_middle_ends_with_the_same_weights(command, trained, tmp_path):
    arguments = (*command, f"--workdir={tmp_path}")
    process = start_program(RECIPES / "voc_fssd.py", *arguments, folder=tmp_path)
    while not (tmp_path / "checkpoint.npz").exists() and process.is_alive():
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the run ended before it could be killed"
    assert "resuming" in run("voc_fssd.py", *arguments)
    expected, state = state_of(trained), state_of(tmp_path)
    assert expected.keys() == state.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(state[name], values, err_msg=name)


def test_the_gate_of_a_detector_is_trained(command, trained, tmp_path):
    detector = keras.models.load_model(trained / "detector.keras")
    detector.routing, detector.class_names = "confidence", None
    detector.save(tmp_path / "routed.keras")
    output = run(
        "voc_fssd_gates.py",
        command[0],
        f"--detector={tmp_path / 'routed.keras'}",
        f"--workdir={tmp_path / 'run'}",
        "--batch_size=8",
        "--eval_batch_size=8",
        "--epochs=1",
        "--mixed_precision=bfloat16",
    )
    assert "the slimmest route found every box of " in output
    assert "routed.keras routes by confidence. The detector of this run routes by its" in output
    rows = json.loads((tmp_path / "run" / "tables" / "paths.json").read_text())
    assert [row["path"] for row in rows] == [0, 2, "dynamic"]
    detector = keras.models.load_model(tmp_path / "run" / "detector.keras")
    assert (detector.gates_trained, detector.routing) == (True, "gate")
    assert (detector.routes, detector.class_names) == ((0, 2), tuple(sorted(CLASSES)))
    policies = {detector.dtype_policy.name, detector.backbone.dtype_policy.name}
    assert policies == {"mixed_bfloat16"}


def test_the_confidence_of_a_detector_is_chosen(command, trained, tmp_path):
    detector = keras.models.load_model(trained / "detector.keras")
    slimmest, widest = detector.madds("slimmest"), detector.madds("widest")
    flags = (command[0], f"--detector={trained}", f"--workdir={tmp_path}")
    done = run_program(RECIPES / "voc_fssd_confidence.py", *flags, f"--max_madds={slimmest // 2}")
    assert (done.returncode, done.stderr.count("error: `max_madds` must be ")) == (1, 1)
    assert not list(tmp_path.iterdir())
    budget = slimmest + widest / 2
    output = run("voc_fssd_confidence.py", *flags, f"--max_madds={budget:.0f}")
    share, madds = re.search(r"([\d.]+)% of the images go on .* at ([\d.]+)M", output).groups()
    assert float(share) < 100
    assert float(madds) <= budget / 1e6 + 0.05
    rows = json.loads((tmp_path / "tables" / "confidences.json").read_text())
    assert {row["confidence"] for row in rows} == {"largest_score", "clear_scores", "low_entropy"}
    assert "of the images go on from width 0" in output
    detector = keras.models.load_model(tmp_path / "detector.keras")
    assert (detector.routing, detector.confidence) == ("confidence", rows[0]["confidence"])


def test_the_confidence_is_not_chosen_on_a_data_set_of_other_classes(trained, tmp_path):
    detector = keras.models.load_model(trained / "detector.keras")
    detector.class_names = None
    detector.save(tmp_path / "nameless.keras")
    write_voc(tmp_path / "pets", dict.fromkeys("ab", xml(("cat", (2, 5, 22, 35)))))
    program = RECIPES / "voc_fssd_confidence.py"
    flags = [f"--dataset={tmp_path / 'pets'}", f"--workdir={tmp_path / 'run'}"]
    done = run_program(program, f"--detector={tmp_path / 'nameless.keras'}", *flags)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "has the classes cat, and --detector=" in line
    assert not (tmp_path / "run" / "tables").exists()


def test_two_workers_train_a_detector_and_its_gate(command, trained, tmp_path):
    gates = [f"--detector={trained}", "--routes=0,2", "--epochs=1", "--batch_size=8"]
    gates += [argument for argument in command if argument.startswith("--dataset")]
    for name, arguments in (("voc_fssd", command), ("voc_fssd_gates", gates)):
        folder = tmp_path / name
        folder.mkdir()
        with Workers(RECIPES / f"{name}.py", folder) as workers:
            workers.start_all(*arguments, f"--workdir={folder / 'run'}")
            codes = [workers.code(index, seconds=300) for index in (0, 1)]
            assert codes == [0, 0], workers.error(0) + workers.error(1)
        assert (folder / "run" / "detector.keras").exists()
        assert "written: " in workers.out(0)
        assert "written: " not in workers.out(1)


def test_one_width_is_trained_alone(command, tmp_path):
    # Two thirds and five sixths of four steps round to the same step.
    short = ("--batch_size=10", "--epochs=1")
    output = run("voc_fssd.py", *command, f"--workdir={tmp_path}", "--alone=1", *short)
    assert "width_1" in output
    rows = json.loads((tmp_path / "tables" / "paths.json").read_text())
    assert [row["path"] for row in rows] == [1]
