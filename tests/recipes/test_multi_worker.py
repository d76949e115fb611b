"""Training on several workers of this machine, which equals training on one."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from keras_dsnet_recipes.lib.soak.disk import mounted, why_not
from worker_processes import Workers

from keras_dsnet.runs import RunCheckpoint

PROGRAM = """
import hashlib
import pathlib
import time

from absl import flags
from keras_dsnet_recipes.lib import flags as shared
from keras_dsnet_recipes.lib import run, training_flags
from keras_dsnet_recipes.lib.start import start

FLAGS = flags.FLAGS
training_flags.define_machine()
shared.define_workdir()
shared.define_batch_size(16, "Images per step.")
training_flags.define_epochs(1)
flags.DEFINE_integer("stage", 1, "Stage to train.")
flags.DEFINE_integer("steps", 4, "Steps per epoch.")
flags.DEFINE_bool("float64", False, "Whether to train in float64.")
flags.DEFINE_float("evaluation_seconds", 0, "Seconds that an evaluation takes.")


def main(_):
    import keras
    import numpy as np
    import tensorflow as tf

    from keras_dsnet.data import load_source, training_pipeline
    from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, MobileNetStage
    from keras_dsnet.training import L2SGD, GateTrainer, SupernetTrainer

    if FLAGS.float64:
        keras.config.set_floatx("float64")
        keras.config.set_dtype_policy("float64")
    scope = run.prepare_machine()
    source = load_source("digits")
    source.steps_per_epoch = lambda batch_size: FLAGS.steps
    with scope:
        stages = MobileNetStage(1, 2, (8, 12)), MobileNetStage(1, 2, (8, 12, 16), gated=True)
        spec = MobileNetSpec(stem=(8, 12), stages=stages, synchronized=True)
        model = DynamicSlimmableNetwork(spec, input_shape=(16, 16, 3), classes=10)
        trainer = SupernetTrainer(model, num_random=1) if FLAGS.stage == 1 else GateTrainer(model)
        trainer.compile(L2SGD(0.05) if FLAGS.stage == 1 else "sgd")

    def make_dataset(step, **shard):
        options = {"image_size": 16, "batch_size": FLAGS.batch_size, "seed": 0, **shard}
        options |= {"preprocess": lambda images: images / 255, "augmentation": "cifar"}
        return training_pipeline(source, start_step=step, **options)

    def evaluate():
        print("evaluating", flush=True)
        time.sleep(FLAGS.evaluation_seconds)
        return []

    training = run.make_training(
        trainer,
        run.open_workdir(),
        make_dataset,
        source,
        evaluate if FLAGS.evaluation_seconds else None,
    )
    run.fit(training, lambda: None)
    values = [v.numpy() for group in training.variables().values() for v in group]
    name = hashlib.sha1(b"".join(value.tobytes() for value in values)).hexdigest()
    print("state", name, flush=True)
    if training.is_chief:
        np.savez(pathlib.Path(FLAGS.workdir, "state.npz"), *values)


start(main)
"""


@pytest.fixture
def program(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path / "program.py"


@pytest.fixture
def workers(program, tmp_path):
    with Workers(program, tmp_path) as started:
        yield started


def train_on_one(program, *arguments):
    """Trains in one process without a strategy; returns the state and the process."""
    folder = program.parent / "one"
    done = subprocess.run(
        [sys.executable, str(program), f"--workdir={folder}", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return load_state(folder)


def load_state(folder):
    with np.load(folder / "state.npz") as file:
        return list(file.values())


def check_equal(workers, folder, one, tolerance):
    """Checks that the workers ended with the same bits, and close to one process."""
    assert [workers.code(0), workers.code(1)] == [0, 0], workers.error(0) + workers.error(1)
    states = [workers.out(index).splitlines()[-1] for index in (0, 1)]
    assert states[0] == states[1]
    assert states[0].startswith("state ")
    for ours, theirs in zip(load_state(folder), one, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


def wait_for_checkpoint(workers, folder, seconds=120):
    end = time.monotonic() + seconds
    while not (folder / "checkpoint.npz").exists():
        assert time.monotonic() < end, workers.out(0) + workers.error(0) + workers.error(1)
        time.sleep(0.05)


@pytest.mark.slow
def test_two_workers_equal_one_also_after_one_was_killed_in_a_step(workers, program, tmp_path):
    folder = tmp_path / "two"
    arguments = "--float64", "--steps=50", "--checkpoint_steps=10"
    workers.start_all(f"--workdir={folder}", *arguments)
    wait_for_checkpoint(workers, folder)
    os.kill(workers.trainer(1), signal.SIGKILL)
    assert [workers.code(0), workers.code(1)] == [75, 137]
    name = f"worker 1 ({workers.addresses[1]})"
    line = f"error: {name} was lost: its training process was killed by SIGKILL\n"
    assert workers.error(0) == line
    workers.start_all(f"--workdir={folder}", *arguments)
    one = train_on_one(program, *arguments)
    check_equal(workers, folder, one, 1e-9)
    assert "resuming" in workers.out(0)


@pytest.mark.long
@pytest.mark.parametrize("stage", [1, 2])
def test_two_workers_equal_one_in_float32_after_one_step(workers, program, tmp_path, stage):
    arguments = f"--stage={stage}", "--steps=1"
    workers.start_all(f"--workdir={tmp_path / 'two'}", *arguments)
    check_equal(workers, tmp_path / "two", train_on_one(program, *arguments), 1e-5)


@pytest.mark.long
def test_gates_draw_the_noise_of_one_worker(workers, program, tmp_path):
    arguments = "--stage=2", "--steps=50", "--float64"
    workers.start_all(f"--workdir={tmp_path / 'two'}", *arguments)
    check_equal(workers, tmp_path / "two", train_on_one(program, *arguments), 1e-9)


@pytest.mark.long
@pytest.mark.parametrize("index", [0, 1])
def test_sigterm_saves_the_step_at_hand_and_another_number_of_workers_goes_on(
    workers, program, tmp_path, index
):
    folder = tmp_path / "two"
    arguments = "--float64", "--steps=80", "--checkpoint_steps=1000"
    workers.start_all(f"--workdir={folder}", *arguments)
    end = time.monotonic() + 120
    while not (folder / "tensorboard").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    # The first step is being traced.
    os.kill(workers.supervisor(index), signal.SIGTERM)
    assert [workers.code(0), workers.code(1)] == [143, 143]
    assert "goes on from the last checkpoint" in workers.error(0)
    assert (folder / "checkpoint.npz").exists()
    with Workers(program, tmp_path, count=1) as single:
        single.start_all(f"--workdir={folder}", *arguments)
        assert single.code(0, seconds=200) == 0, single.error(0)
        assert "resuming" in single.out(0)
    one = train_on_one(program, *arguments)
    for ours, theirs in zip(load_state(folder), one, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.long
@pytest.mark.parametrize("index", [0, 1])
def test_a_worker_that_is_killed_in_an_evaluation_ends_the_others(workers, tmp_path, index):
    workers.start_all(f"--workdir={tmp_path / 'two'}", "--epochs=2", "--evaluation_seconds=120")
    workers.wait_for("evaluating", 0)
    os.kill(workers.supervisor(index), signal.SIGKILL)
    assert workers.code(1 - index) == 75
    name = f"worker {index} ({workers.addresses[index]})"
    assert workers.error(1 - index) == f"error: {name} was lost: its connection has ended\n"


def _stop_and_expect_the_other_to_end(workers, index):
    os.kill(workers.trainer(index), signal.SIGSTOP)
    assert workers.code(1 - index) == 75
    name = f"worker {index} ({workers.addresses[index]})"
    line = "its training process gave no sign of life for 12 seconds"
    assert workers.error(1 - index) == f"error: {name} was lost: {line}\n"


@pytest.mark.long
@pytest.mark.parametrize("index", [0, 1])
def test_a_stopped_worker_ends_the_others(workers, tmp_path, index):
    folder = tmp_path / "two"
    workers.start_all(f"--workdir={folder}", "--steps=80", "--epochs=10000", "--worker_timeout=12")
    workers.wait_for("", 0)
    end = time.monotonic() + 120
    while not (folder / "tensorboard").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    _stop_and_expect_the_other_to_end(workers, index)


@pytest.mark.long
@pytest.mark.parametrize("index", [0, 1])
def test_a_worker_that_is_stopped_in_an_evaluation_ends_the_others(workers, tmp_path, index):
    arguments = "--epochs=2", "--evaluation_seconds=120", "--worker_timeout=12"
    workers.start_all(f"--workdir={tmp_path / 'two'}", *arguments)
    workers.wait_for("evaluating", 0)
    _stop_and_expect_the_other_to_end(workers, index)


@pytest.mark.long
def test_a_chief_that_is_killed_while_it_writes_leaves_the_last_checkpoint(
    workers, program, tmp_path
):
    folder = tmp_path / "two"
    arguments = "--float64", "--steps=50", "--checkpoint_steps=1"
    workers.start_all(f"--workdir={folder}", *arguments)
    wait_for_checkpoint(workers, folder)
    end = time.monotonic() + 120
    while not list(folder.glob("partial-*-checkpoint.npz")):
        assert time.monotonic() < end
    os.kill(workers.trainer(0), signal.SIGKILL)
    assert [workers.code(0), workers.code(1)] == [137, 75]
    before = step_of(folder)
    workers.start_all(f"--workdir={folder}", *arguments)
    check_equal(workers, folder, train_on_one(program, *arguments), 1e-9)
    assert f"resuming {folder} at step {before} of 50" in workers.out(0)


def step_of(folder):
    return RunCheckpoint(folder / "checkpoint.npz", is_reader=True).read_meta()["step"]


@pytest.mark.long
@pytest.mark.skipif(why_not() is not None, reason="a file system of a limited size needs root")
def test_a_full_disk_of_the_chief_is_one_line_and_the_run_goes_on(workers, program, tmp_path):
    arguments = "--float64", "--steps=50", "--checkpoint_steps=10"
    with mounted(tmp_path / "disk", 2**20) as disk:
        folder = disk.path / "two"
        workers.start_all(f"--workdir={folder}", *arguments)
        wait_for_checkpoint(workers, folder)
        disk.fill(0)
        assert [workers.code(0), workers.code(1)] == [1, 75]
        line = workers.error(0)
        assert line.count("\n") == 1
        assert line.startswith("error: The checkpoint of step ")
        assert line.endswith("No space left on device; the last checkpoint is unchanged\n")
        name = f"worker 0 ({workers.addresses[0]})"
        assert workers.error(1) == f"error: {name} ended with exit code 1, see its error\n"
        disk.clear()
        workers.start_all(f"--workdir={folder}", *arguments)
        check_equal(workers, folder, train_on_one(program, *arguments), 1e-9)
        assert "resuming" in workers.out(0)


@pytest.mark.long
def test_a_batch_that_does_not_divide_is_one_line_on_every_worker(workers, tmp_path):
    workers.start_all(f"--workdir={tmp_path / 'two'}", "--batch_size=17")
    assert [workers.code(0), workers.code(1)] == [1, 1]
    line = "--batch_size must be a multiple of the 2 workers. Received: --batch_size=17"
    assert workers.error(0) == workers.error(1) == f"error: {line}\n"
