"""The training recipes as programs: killed and resumed, one after the other, and misused."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

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


def command(name, *arguments):
    return [sys.executable, str(RECIPES / name), *map(str, arguments)]


def run(name, *arguments):
    return subprocess.run(command(name, *arguments), capture_output=True, text=True, check=False)


def state_of(workdir):
    with np.load(workdir / "checkpoint.npz") as archive:
        return {name: archive[name] for name in archive.files if "/" in name}


@pytest.fixture(scope="module")
def supernet(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("supernet")
    done = run("imagenet_stage1.py", *STAGE_1, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.slow
def test_a_run_killed_in_the_middle_ends_with_the_same_weights(supernet, tmp_path):
    arguments = (*STAGE_1, f"--workdir={tmp_path}")
    process = subprocess.Popen(
        command("imagenet_stage1.py", *arguments),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (tmp_path / "checkpoint.npz").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
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
    assert [row["path"] for row in rows] == [*range(14), "dynamic"]
    assert rows[0]["madds"] < rows[-1]["madds"] <= rows[3]["madds"] + 1000
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        "accuracy_against_madds.png",
        "training_curves.png",
        "width_shares.png",
    }


@pytest.mark.slow
def test_both_stages_of_a_network_of_four_gates(tmp_path):
    data = (*STAGE_1[:3], "--epochs=1", "--batch_size=128")
    model = ("--model=ds_resnet50", "--alpha=0.25", "--output_stride=16", "--num_random=0")
    supernet, gates = tmp_path / "supernet", tmp_path / "gates"
    done = run("imagenet_stage1.py", *data, *model, f"--workdir={supernet}")
    assert done.returncode == 0, done.stderr
    arguments = (f"--supernet={supernet}", f"--workdir={gates}", "--variant=S")
    done = run("imagenet_stage2.py", *data, *arguments)
    assert done.returncode == 0, done.stderr
    assert "gate 3" in done.stdout
    rows = json.loads((gates / "tables" / "paths.json").read_text())
    assert [row["path"] for row in rows] == [0, 1, 2, 3, "dynamic"]
    assert (gates / "plots" / "width_shares.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        ("imagenet_stage1.py", ["--dataset=cifar11"], "cifar11"),
        ("imagenet_stage1.py", ["--dataset=digits", "--batch_size=5000"], "5000"),
        ("imagenet_stage1.py", ["--dataset=digits", "--alpha=0.1", "--batch_size=64"], "alpha=0.1"),
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
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_on_two_replicas(name, *arguments):
    program = [sys.executable, "-c", ON_TWO_REPLICAS, *command(name, *arguments)[1:]]
    return subprocess.run(program, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_stage_2_on_two_replicas(supernet, tmp_path):
    arguments = (*STAGE_2, "--strategy=mirrored", f"--supernet={supernet}")
    odd = run_on_two_replicas(
        "imagenet_stage2.py", *arguments, "--batch_size=63", f"--workdir={tmp_path / 'odd'}"
    )
    assert odd.returncode == 1
    assert "63" in odd.stderr
    assert "multiple of the 2 replicas" in odd.stderr
    done = run_on_two_replicas("imagenet_stage2.py", *arguments, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model.keras").is_file()


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        ("imagenet_stage1.py", ["--dataset=./nowhere"], "--dataset=./nowhere"),
        ("imagenet_stage1.py", ["--dataset=cifar10", "--data_dir=/nowhere"], "--data_dir=/nowhere"),
        ("imagenet_stage1.py", ["--batch_size=0"], "positive integer"),
        ("imagenet_stage1.py", ["--lerning_rate=1"], "Did you mean: learning_rate"),
        ("imagenet_stage2.py", ["--supernet=nowhere"], "--supernet=nowhere"),
    ],
)
def test_what_flags_alone_show_is_told_before_tensorflow_is_loaded(
    recipe, arguments, message, tmp_path
):
    program = (
        "import runpy, sys; sys.modules['tensorflow'] = None; sys.argv = sys.argv[1:];"
        "sys.path.insert(0, sys.argv[0].rpartition('/')[0]);"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    arguments = [*command(recipe, *arguments)[1:], f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "run").exists()
