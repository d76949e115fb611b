"""The program that calibrates routing by confidence, and the programs that use what it saves."""

import json
import pathlib
import types

import keras
import pytest
from programs import import_program, run_program
from routed_networks import small_network

from keras_dsnet.data import evaluation_pipeline, load_source
from keras_dsnet.training import evaluate_paths

calibrate = import_program("keras_dsnet_recipes.calibrate")
RECIPES = pathlib.Path(__file__).resolve().parents[2] / "recipes"
DIGITS = ("--dataset=digits", "--eval_split=test[:120]")
PLOTS = {"confidence_curve.png", "gallery.png", "reliability.png"}


@pytest.fixture(scope="module")
def network():
    """A network whose widths 0 and 3 differ on the digits, without training: its gate is not."""
    network = small_network(classes=10)
    network.gates_trained = False
    return network


@pytest.fixture(scope="module")
def saved(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("supernet") / "supernet.keras"
    network.save(path)
    return path


@pytest.fixture(scope="module")
def calibrated(saved, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("calibrated")
    arguments = (f"--model={saved}", f"--workdir={workdir}", "--max_drop=1")
    done = run_program(RECIPES / "calibrate.py", *arguments, *DIGITS)
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


@pytest.mark.slow
def test_the_saved_network_routes_by_the_chosen_thresholds(calibrated, saved):
    workdir, told = calibrated
    network = keras.models.load_model(workdir / "model.keras")
    assert (network.routing, network.confidence_steps) == ("confidence", (0, 3))
    curve = json.loads((workdir / "tables" / "curve.json").read_text())
    (chosen,) = [row for row in curve if row["chosen"]]
    # The cheapest point meets a drop of 1.
    assert network.thresholds == tuple(chosen["thresholds"]) == (0.0,)
    assert chosen["madds"] == curve[0]["madds"] == network.madds(0, (16, 16, 3))
    assert "other images show what these are worth" in told
    # The test images of the next command include those that chose the thresholds.
    assert "next, to measure it on other images (name them by --dataset" in told
    assert "calibrating on digits" in told
    assert {path.name for path in (workdir / "plots").iterdir()} == PLOTS
    # The network that was calibrated is as it was.
    assert keras.models.load_model(saved).routing == "gate"


@pytest.mark.slow
def test_an_evaluation_measures_the_calibrated_network(calibrated, tmp_path):
    workdir, _ = calibrated
    arguments = (f"--model={workdir}", f"--workdir={tmp_path}", "--thresholds=0.9")
    done = run_program(RECIPES / "evaluate.py", *arguments, *DIGITS)
    assert done.returncode == 0, done.stderr
    rows = {row["path"]: row for row in json.loads((tmp_path / "tables/paths.json").read_text())}
    assert [*rows] == [0, 1, 2, 3, "confidence", "dynamic"]
    network = keras.models.load_model(workdir / "model.keras")
    network.thresholds = (0.9,)
    source = load_source("digits", split="eval", eval_split="test[:120]")
    batches = evaluation_pipeline(
        source, image_size=16, batch_size=60, preprocess=network.normalization
    )
    expected = evaluate_paths(network, batches, [0])[-1]
    for name in ("madds", "top1", "madds_worst"):
        assert rows["dynamic"][name] == pytest.approx(expected[name])
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert names == PLOTS | {"accuracy_against_madds.png", "width_shares.png"}


@pytest.mark.long
@pytest.mark.parametrize(
    ("flags", "steps"), [(["--steps=1,2"], (1, 2)), (["--propose_steps=3"], None)]
)
def test_steps_can_be_given_or_proposed(flags, steps, saved, tmp_path):
    arguments = (f"--model={saved}", f"--workdir={tmp_path}", "--max_madds=1e9", *flags)
    done = run_program(RECIPES / "calibrate.py", *arguments, *DIGITS)
    assert done.returncode == 0, done.stderr
    found = keras.models.load_model(tmp_path / "model.keras").confidence_steps
    assert found == steps if steps else len(found) == 3


@pytest.mark.parametrize(
    ("trained", "split", "warned"),
    [
        (None, "train[45000:]", True),
        ("train[:45000]", "train[45000:]", False),
        ("train[:90%]", "train[80%:]", True),
        ("train[:90%]", "train[90%:]", False),
        # Of the 50,000 images, 90 % are as many as 45,000.
        ("train[:45000]", "train[80%:]", True),
        ("train[:45000]", "train[90%:]", False),
        ("train[:90%]", "train[46000:]", False),
        ("train[:90%]", "train[44000:]", True),
        ("train[:-5000]", "train[45000:]", False),
        ("train[:45000]", "train[-6000:]", True),
        ("train[:90%]", "test", False),
        ("train[:90%]", None, False),
    ],
)
def test_images_that_trained_the_network_are_warned_of(
    trained, split, warned, tmp_path, capsys, monkeypatch
):
    (tmp_path / "config.json").write_text(
        json.dumps({"dataset": "cifar10", "train_split": trained})
    )
    monkeypatch.setattr(calibrate, "FLAGS", types.SimpleNamespace(model="runs/x"))
    values = {"dataset": "cifar10", "eval_split": split}
    size = 10_000 if split in ("test", None) else 50_000
    source = types.SimpleNamespace(split=split or "test", split_size=size)
    calibrate.warn_of_training_images(values, tmp_path, source)
    assert ("warning: --model=runs/x was trained on" in capsys.readouterr().out) == warned


@pytest.mark.parametrize("place", ["supernet", "supernet/supernet.keras"])
@pytest.mark.parametrize(
    ("split", "warned"), [("train[:5000]", True), ("train[40000:45000]", False)]
)
def test_gates_are_judged_by_the_images_of_their_supernet(
    place, split, warned, tmp_path, capsys, monkeypatch
):
    gate, supernet = tmp_path / "gate", tmp_path / "supernet"
    for folder, trained in ((gate, "train[40000:45000]"), (supernet, "train[:40000]")):
        folder.mkdir()
        config = {"dataset": "cifar10", "train_split": trained}
        if folder == gate:
            config |= {"supernet": place, "places": {"supernet": str(tmp_path / place)}}
        (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(calibrate, "FLAGS", types.SimpleNamespace(model="runs/x"))
    source = types.SimpleNamespace(split=split, split_size=50_000)
    values = {"dataset": "cifar10", "eval_split": split}
    calibrate.warn_of_training_images(values, gate, source)
    assert ("was trained on train[:40000]" in capsys.readouterr().out) == warned
    # Where the supernet is gone, the images of the gates are all that is known.
    (supernet / "config.json").unlink()
    calibrate.warn_of_training_images(values, gate, source)
    assert ("was trained on train[40000:45000]" in capsys.readouterr().out) == (not warned)


def test_training_images_of_a_folder_are_known_by_its_place(tmp_path, capsys, monkeypatch):
    photos = tmp_path / "photos"
    for name in ("cat", "dog"):
        (photos / "training_set" / name).mkdir(parents=True)
    config = {"dataset": "photos", "train_split": None, "places": {"dataset": str(photos)}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(calibrate, "FLAGS", types.SimpleNamespace(model="runs/x"))
    for dataset, split, warned in (
        (photos, "train[20:]", True),
        (f"{photos}/", "train[20:]", True),
        # Another name of the same split.
        (photos, "training_set[20:]", True),
        (photos, "test[20:]", False),
        (tmp_path / "others", "train[20:]", False),
    ):
        source = types.SimpleNamespace(split=split, split_size=30)
        values = {"dataset": str(dataset), "eval_split": split}
        calibrate.warn_of_training_images(values, tmp_path, source)
        assert ("warning: --model=runs/x was trained on" in capsys.readouterr().out) == warned


def test_training_images_leave_the_default_images_to_the_next_command():
    assert calibrate.purpose_of_evaluation("train[45000:]") == "measure it on other images"
    for split in (None, "test", "test[:120]", "validation"):
        assert "images that chose the thresholds" in calibrate.purpose_of_evaluation(split)


def test_a_limit_that_nothing_meets_is_one_line_and_writes_nothing(saved, tmp_path):
    workdir = tmp_path / "run"
    arguments = (f"--model={saved}", f"--workdir={workdir}", "--max_madds=10")
    done = run_program(RECIPES / "calibrate.py", *arguments, *DIGITS)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "`max_madds` must be at least" in line
    assert not (workdir / "model.keras").exists()


def test_a_network_of_one_step_and_the_folder_of_a_run_are_refused(network, tmp_path):
    one = small_network(classes=10)
    one.routes = (2,)
    one.save(tmp_path / "one.keras")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    network.save(tmp_path / "all.keras")
    for model, workdir, message in (
        ("one.keras", tmp_path / "new", "has one confidence step, 2, and no threshold to choose"),
        ("all.keras", run, f"--workdir={run} is the folder of a training run"),
    ):
        arguments = (f"--model={tmp_path / model}", f"--workdir={workdir}", "--max_drop=1")
        done = run_program(RECIPES / "calibrate.py", *arguments, *DIGITS)
        assert done.returncode == 1
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    assert [path.name for path in run.iterdir()] == ["config.json"]
