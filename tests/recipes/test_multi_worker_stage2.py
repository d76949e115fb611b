"""`imagenet_stage2.py` on two workers of this machine, which equals training on one."""

import os
import pathlib
import signal
import time

import numpy as np
import pytest
from programs import run_program, state_of
from routed_networks import SHORT_SPEC, small_network
from worker_processes import Workers

PROGRAM = pathlib.Path(__file__).resolve().parents[2] / "recipes" / "imagenet_stage2.py"
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    path = tmp_path_factory.mktemp("supernet") / "supernet.keras"
    network = small_network(classes=10, spec=SHORT_SPEC)
    network.gates_trained = False
    network.save(path)
    data = "--dataset=digits", "--eval_split=test[:64]", "--batch_size=64", "--deterministic"
    return (*data, f"--supernet={path}", "--checkpoint_steps=2")


@pytest.fixture
def workers(tmp_path):
    with Workers(PROGRAM, tmp_path) as started:
        yield started


def check_end(workers):
    codes = [workers.code(index, seconds=200) for index in (0, 1)]
    assert codes == [0, 0], workers.error(0) + workers.error(1)


def test_one_step_of_two_workers_equals_that_of_one(arguments, workers, tmp_path):
    arguments = (*arguments, "--train_split=train[:64]", "--epochs=1")
    workers.start_all(f"--workdir={tmp_path / 'two'}", *arguments)
    check_end(workers)
    done = run_program(PROGRAM, f"--workdir={tmp_path / 'one'}", *arguments)
    assert done.returncode == 0, done.stderr
    one, two = state_of(tmp_path / "one"), state_of(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=0, atol=1e-5, err_msg=name)


def test_a_run_whose_worker_is_killed_ends_as_one_that_was_not(arguments, workers, tmp_path):
    arguments = (*arguments, "--train_split=train[:512]", "--epochs=2")
    workers.start_all(f"--workdir={tmp_path / 'whole'}", *arguments)
    check_end(workers)
    killed = tmp_path / "killed"
    workers.start_all(f"--workdir={killed}", *arguments)
    end = time.monotonic() + 120
    while not (killed / "checkpoint.npz").exists():
        assert time.monotonic() < end, workers.out(0) + workers.error(0)
        time.sleep(0.02)
    os.kill(workers.trainer(1), signal.SIGKILL)
    assert [workers.code(0), workers.code(1)] == [75, 137]
    workers.start_all(f"--workdir={killed}", *arguments)
    check_end(workers)
    assert "resuming" in workers.out(0)
    whole, state = state_of(tmp_path / "whole"), state_of(killed)
    assert whole.keys() == state.keys()
    for name, values in whole.items():
        np.testing.assert_array_equal(state[name], values, err_msg=name)
