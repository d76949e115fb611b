"""The training recipes as programs: killed and resumed, one after the other, and misused."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from keras_dsnet.applications import DSResNet50
from programs import run_program, start_program, state_of
from routed_networks import SHORT_SPEC, SIZE, small_network

from keras_dsnet.models.routing_settings import ROUTINGS
from keras_dsnet.runs import read_log

RECIPES = pathlib.Path(__file__).resolve().parents[2] / "recipes"
STAGE_1 = (
    "--dataset=digits",
    "--train_split=train[:256]",
    "--eval_split=test[:100]",
    "--alpha=0.25",
    "--batch_size=64",
    "--epochs=2",
    "--evaluate_epochs=2",
    "--checkpoint_steps=2",
    "--learning_rate=0.4",
    "--num_random=1",
    "--deterministic",
)
STAGE_2 = (*STAGE_1[:3], "--batch_size=64", "--epochs=1", "--variant=S")


def run(name, *arguments):
    return run_program(RECIPES / name, *arguments)


@pytest.fixture(scope="module")
def supernet(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("supernet")
    done = run("imagenet_stage1.py", *STAGE_1, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir


def test_a_run_killed_in_the_middle_ends_with_the_same_weights(supernet, tmp_path):
    recipe = RECIPES / "imagenet_stage1.py"
    arguments = (*STAGE_1, f"--workdir={tmp_path}")
    process = start_program(recipe, *arguments, folder=tmp_path)
    while not (tmp_path / "checkpoint.npz").exists() and process.is_alive():
        time.sleep(0.05)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the run ended before it could be killed"
    done = run("imagenet_stage1.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert "resuming" in done.stdout
    expected, state = state_of(supernet), state_of(tmp_path)
    assert expected.keys() == state.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(state[name], values, err_msg=name)


@pytest.mark.slow
def test_stage_2_trains_the_gate_of_stage_1(supernet, tmp_path):
    done = run("imagenet_stage2.py", *STAGE_2, f"--supernet={supernet}", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if "images were easy" in line]
    again = run("imagenet_stage2.py", *STAGE_2, f"--supernet={supernet}", f"--workdir={tmp_path}")
    assert told[0] in again.stdout, "a finished run started again tells the same"
    assert (tmp_path / "model.keras").is_file()
    rows = json.loads((tmp_path / "tables" / "paths.json").read_text())
    assert [row["path"] for row in rows] == [*range(14), *ROUTINGS, "dynamic"]
    assert rows[0]["madds"] < rows[-1]["madds"] <= rows[3]["madds"] + 1000
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        "accuracy_against_madds.png",
        "confidence_curve.png",
        "gallery.png",
        "reliability.png",
        "training_curves.png",
        "width_shares.png",
    }


@pytest.fixture(scope="module")
def small_supernet(tmp_path_factory):
    """The file of a network for images smaller than those of its data set."""
    network = small_network(classes=10, spec=SHORT_SPEC)
    path = tmp_path_factory.mktemp("small") / "supernet.keras"
    network.save(path)
    return path


@pytest.mark.slow
def test_stage_2_takes_images_of_the_supernets_size(small_supernet, tmp_path):
    arguments = (*STAGE_2[:-1], f"--supernet={small_supernet}", f"--workdir={tmp_path}")
    done = run("imagenet_stage2.py", *arguments)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "tables" / "paths.json").read_text())
    network = keras.models.load_model(tmp_path / "model.keras")
    assert rows[0]["madds"] == network.madds(0, (SIZE, SIZE, 3))


def test_another_image_size_than_the_supernets_is_told_before_data_are_loaded(
    small_supernet, tmp_path
):
    arguments = ("--dataset=nowhere", f"--supernet={small_supernet}", "--image_size=32")
    done = run("imagenet_stage2.py", *arguments, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert f"--image_size must fit --supernet={small_supernet}, which takes" in line
    assert "images of (16, 16, 3). Received: --image_size=32" in line
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A network of four gates with random variables, and its file of weights."""
    network = DSResNet50(input_shape=(32, 32, 3), classes=10, alpha=0.25, output_stride=16)
    generator = np.random.default_rng(0)
    for variable in network.variables:
        variable.assign_add(generator.normal(scale=0.1, size=variable.shape))
    path = tmp_path_factory.mktemp("resnet") / "resnet.weights.h5"
    network.save_weights(path)
    return network, path


@pytest.mark.long
@pytest.mark.slow
def test_both_stages_of_a_network_of_four_gates_that_starts_from_weights(resnet, tmp_path):
    network, weights = resnet
    data = (*STAGE_1[:3], "--epochs=1", "--batch_size=128")
    model = ("--model=ds_resnet50", f"--weights={weights}", "--num_random=0", "--learning_rate=0")
    supernet, gates = tmp_path / "supernet", tmp_path / "gates"
    done = run("imagenet_stage1.py", *data, *model, f"--workdir={supernet}")
    assert done.returncode == 0, done.stderr
    # Steps of no length: what stage I saves is what it started from.
    trained = keras.models.load_model(supernet / "supernet.keras")
    assert trained.spec == network.spec
    for value, expected in zip(trained.get_weights(), network.get_weights(), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    arguments = (f"--supernet={supernet}", f"--workdir={gates}", "--variant=S")
    arguments = (*arguments, "--mixed_precision=bfloat16")
    done = run("imagenet_stage2.py", *data, *arguments)
    assert done.returncode == 0, done.stderr
    assert "gate 3" in done.stdout
    model = keras.models.load_model(gates / "model.keras")
    assert model.dtype_policy.name == "mixed_bfloat16", "of the flag, not of the supernet's file"
    rows = json.loads((gates / "tables" / "paths.json").read_text())
    assert [row["path"] for row in rows] == [0, 1, 2, 3, *ROUTINGS, "dynamic"]
    assert (gates / "plots" / "width_shares.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        ("imagenet_stage1.py", ["--dataset=cifar11"], "cifar11"),
        ("imagenet_stage1.py", ["--dataset=digits", "--batch_size=5000"], "5000"),
        ("imagenet_stage1.py", ["--dataset=digits", "--alpha=0.1", "--batch_size=64"], "alpha=0.1"),
        (
            "imagenet_stage1.py",
            ["--dataset=digits", "--weights=cifar10", "--alpha=0.5", "--batch_size=64"],
            "other channels; leave these",
        ),
        ("imagenet_stage2.py", ["--dataset=digits", "--supernet=nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(recipe, arguments, message, tmp_path):
    done = run(recipe, *arguments, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in done.stderr


FAILING = """
import runpy, sys
import keras_dsnet.training

def fail(*args, **kwargs):
    raise OSError(28, "No space left on device", "the disk")

setattr(keras_dsnet.training, sys.argv[1], fail)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.long
@pytest.mark.slow
def test_what_fails_after_the_last_epoch_leaves_the_network_and_is_done_again(supernet, tmp_path):
    """A run that had ended trains longer, and its recalibration fails."""
    workdir = tmp_path / "run"
    shutil.copytree(supernet, workdir)
    (workdir / "supernet.keras").unlink()
    (tmp_path / "failing.py").write_text(FAILING)
    program, arguments = RECIPES / "imagenet_stage1.py", (*STAGE_1, f"--workdir={workdir}")
    command = (tmp_path / "failing.py", "recalibrate_batch_norm", program, *arguments)
    done = run_program(*command, "--epochs=3", "--recalibration_steps=3")
    assert done.returncode == 1
    assert "supernet.keras did not end: the same command does it again" in done.stdout
    assert (workdir / "supernet.keras").is_file()
    assert len(read_log(workdir / "log.csv")) == 3
    rest = ("--epochs=3", "--recalibration_steps=1", "--evaluate_epochs=1")
    done = run("imagenet_stage1.py", *arguments, *rest)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip().startswith("python ")
    assert f"--supernet={workdir}" in done.stdout
    assert (workdir / "labels.txt").read_text().split() == list("0123456789")
    network = keras.models.load_model(workdir / "supernet.keras")
    assert network.class_names == tuple("0123456789")
    shrunk = run("imagenet_stage1.py", *arguments)
    assert shrunk.returncode == 1
    assert "--epochs=3, which may grow" in shrunk.stderr


@pytest.mark.long
def test_a_saved_network_is_evaluated_as_the_run_did(supernet, tmp_path):
    done = run("evaluate.py", f"--model={supernet}", f"--workdir={tmp_path}", "--paths=0,5,13")
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "tables" / "paths.json").read_text())
    rows = json.loads((supernet / "tables" / "paths.json").read_text())
    # The last row is the routing by confidence.
    assert measured == [rows[0], rows[5], rows[13], rows[-1]]
    assert (tmp_path / "plots" / "accuracy_against_madds.png").is_file()
    again = run("evaluate.py", f"--model={supernet}", f"--workdir={supernet}")
    assert again.returncode == 1
    assert "is the folder of --model, which keeps its own tables" in again.stderr


@pytest.mark.slow
def test_a_workdir_of_another_configuration_is_refused(supernet):
    before = state_of(supernet)
    done = run("imagenet_stage1.py", *STAGE_1, f"--workdir={supernet}", "--alpha=0.5")
    assert done.returncode == 1
    assert "alpha" in done.stderr
    for name, values in state_of(supernet).items():
        np.testing.assert_array_equal(before[name], values)


ON_TWO_REPLICAS = """
import functools, runpy, sys
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
devices = ["CPU:0", "CPU:1"]
tf.distribute.MirroredStrategy = functools.partial(tf.distribute.MirroredStrategy, devices)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_folder_of_the_supernet_is_no_folder_of_stage_2(small_supernet):
    arguments = (f"--supernet={small_supernet}", f"--workdir={small_supernet.parent}/.")
    done = run("imagenet_stage2.py", *STAGE_2, *arguments)
    assert done.returncode == 1
    assert "is the folder of --supernet, which keeps its own run" in done.stderr


@pytest.mark.long
@pytest.mark.slow
def test_stage_2_on_two_replicas(supernet, tmp_path):
    (tmp_path / "on_two_replicas.py").write_text(ON_TWO_REPLICAS)
    command = (tmp_path / "on_two_replicas.py", RECIPES / "imagenet_stage2.py", *STAGE_2)
    command = (*command, "--strategy=mirrored", f"--supernet={supernet}")
    odd = run_program(*command, "--batch_size=63", f"--workdir={tmp_path / 'odd'}")
    assert odd.returncode == 1
    assert "63" in odd.stderr
    assert "multiple of the 2 replicas" in odd.stderr
    done = run_program(*command, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model.keras").is_file()


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        ("imagenet_stage1.py", ["--dataset=./nowhere"], "--dataset=./nowhere"),
        ("imagenet_stage1.py", ["--dataset=cifar10", "--data_dir=/nowhere"], "--data_dir=/nowhere"),
        (
            "imagenet_stage1.py",
            ["--weights=nowhere.weights.h5"],
            "--weights=nowhere.weights.h5: there is no such file",
        ),
        (
            "imagenet_stage1.py",
            [f"--weights={RECIPES}"],
            f"--weights={RECIPES} is a folder without supernet.keras or model.keras: name the ",
        ),
        (
            "imagenet_stage1.py",
            [f"--dataset={RECIPES / 'demo.py'}"],
            "demo.py is a file: name a folder; an archive must be unpacked first",
        ),
        ("imagenet_stage1.py", ["--batch_size=0"], "positive integer"),
        ("imagenet_stage1.py", ["--lerning_rate=1"], "Did you mean: learning_rate"),
        ("imagenet_stage2.py", ["--supernet=nowhere"], "--supernet=nowhere"),
        (
            "imagenet_stage2.py",
            [f"--supernet={RECIPES / 'demo.py'}"],
            f"--supernet: {RECIPES / 'demo.py'} is no .keras file, or is damaged",
        ),
    ],
)
def test_what_flags_alone_show_is_told_before_tensorflow_is_loaded(
    recipe, arguments, message, tmp_path
):
    program = (
        "import runpy, sys; sys.modules['tensorflow'] = None; sys.argv = sys.argv[1:];"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", program, str(RECIPES / recipe), *arguments]
    command.append(f"--workdir={tmp_path / 'run'}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "run").exists()
