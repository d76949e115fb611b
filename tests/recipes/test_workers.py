"""What the supervisors of several workers do, with a program that trains nothing."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest
from keras_dsnet_recipes.lib.cluster import read_cluster
from keras_dsnet_recipes.lib.membership import _listen
from light_programs import run_light_program
from worker_processes import Workers, children_of, is_running, trainer_of

RECIPES = pathlib.Path(__file__).resolve().parents[2] / "recipes"

PROGRAM = """
import os
import time

from absl import flags
from keras_dsnet_recipes.lib import flags as shared
from keras_dsnet_recipes.lib import supervisor, training_flags
from keras_dsnet_recipes.lib.cluster import read_cluster
from keras_dsnet_recipes.lib.start import start

FLAGS = flags.FLAGS
training_flags.define_machine()
shared.define_workdir()
shared.define_batch_size(2, "Images per step.")
flags.DEFINE_float("seconds", 60, "Seconds that the training takes.")
flags.DEFINE_string("end", "", "The end of worker 1.")


def main(_):
    print("training", flush=True)
    end = FLAGS.end if read_cluster().index else ""
    time.sleep(0.2 if end else FLAGS.seconds)
    if end == "error":
        raise OSError(28, "No space left on device", "checkpoint.npz")
    if end in ("connection", "bug"):
        line = "Collective ops is aborted by: heartbeats" if end == "connection" else "a bug"
        supervisor.report_failure(line)
    if end == "abort":
        os.abort()
    print("trained", flush=True)


start(main)
"""


@pytest.fixture
def workers(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    with Workers(tmp_path / "program.py", tmp_path) as started:
        yield started


def begin(workers, *arguments):
    workers.start_all("--workdir=run", *arguments)
    workers.wait_for("training")


# The process and the worker that are killed, and what the line of the other worker says of it.
@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(
    ("process", "reason"),
    [
        ("trainer", "its training process was killed by SIGKILL"),
        ("supervisor", "its connection has ended"),
    ],
)
def test_a_worker_that_is_killed_ends_the_others_with_a_line_that_names_it(
    workers, process, index, reason
):
    # The other one would go on for a minute in native code.
    begin(workers)
    trainer = workers.trainer(index)
    os.kill(getattr(workers, process)(index), signal.SIGKILL)
    assert workers.code(index) in (-signal.SIGKILL, 128 + signal.SIGKILL)
    assert workers.code(1 - index) == 75
    name = f"worker {index} ({workers.addresses[index]})"
    assert workers.error(1 - index) == f"error: {name} was lost: {reason}\n"
    # A training process does not outlive its supervisor.
    end = time.monotonic() + 20
    while is_running(trainer):
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize("process", ["trainer", pytest.param("supervisor", marks=pytest.mark.long)])
def test_a_worker_that_is_stopped_is_lost_after_the_timeout(workers, process):
    begin(workers, "--worker_timeout=3")
    os.kill(getattr(workers, process)(0), signal.SIGSTOP)
    assert workers.code(1) == 75
    assert f"error: worker 0 ({workers.addresses[0]}) was lost: " in workers.error(1)
    assert workers.error(1).endswith("gave no sign of life for 3 seconds\n")


@pytest.mark.long
def test_an_error_of_one_worker_ends_the_others_with_a_line_that_names_it(workers):
    begin(workers, "--end=error")
    assert [workers.code(1), workers.code(0)] == [1, 75]
    assert workers.error(1) == "error: No space left on device: checkpoint.npz\n"
    name = f"worker 1 ({workers.addresses[1]})"
    assert workers.error(0) == f"error: {name} ended with exit code 1, see its error\n"


@pytest.mark.long
@pytest.mark.parametrize(
    ("end", "codes", "own", "told"),
    [
        ("connection", [75, 75], "lost its connection to the others for a while", None),
        ("bug", [75, 1], "a bug", "ended with exit code 1, see its error"),
    ],
)
def test_a_failure_of_tensorflow_is_told_by_its_reason(workers, end, codes, own, told):
    begin(workers, f"--end={end}", "--worker_timeout=3")
    assert [workers.code(0), workers.code(1)] == codes
    name = f"worker 1 ({workers.addresses[1]})"
    prefix = f"{name} " if end == "connection" else ""
    assert workers.error(1) == f"error: {prefix}{own}\n"
    assert workers.error(0) == f"error: {name} {told or own}\n"


def test_a_worker_that_native_code_aborts_names_the_one_that_was_lost(workers):
    begin(workers, "--end=abort", "--worker_timeout=20")
    time.sleep(0.5)
    os.kill(workers.trainer(0), signal.SIGKILL)
    assert workers.code(1) == 75
    assert f"worker 0 ({workers.addresses[0]}) was lost" in workers.error(1).splitlines()[-1]


@pytest.mark.slow
def test_a_worker_that_is_late_is_waited_for_and_all_end_with_worker_0(workers):
    arguments = "--workdir=run", "--seconds=1"
    workers.start(0, *arguments)
    workers.wait_for(f"waiting for worker 1 ({workers.addresses[1]})\n", 0)
    workers.start(1, *arguments)
    assert [workers.code(0), workers.code(1)] == [0, 0]
    assert workers.out(1) == "training\ntrained\n"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_worker_0_is_reached_over_either_protocol(host):
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    try:
        with socket.create_server((host, 0), family=family_of(host)):
            pass
    except OSError:
        pytest.skip(f"this machine has no address {host}")
    with (
        _listen(f"[::1]:{port}") as listener,
        socket.create_connection((host, port), timeout=5) as connection,
    ):
        accepted, _ = listener.accept()
        accepted.close()
        assert connection.getpeername()[1] == port


def family_of(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET


@pytest.mark.parametrize("index", [0, 1])
def test_a_worker_that_never_comes_is_named(workers, index):
    workers.start(index, "--workdir=run", "--start_timeout=1")
    assert workers.code(index) == 75
    name = f"worker {1 - index} ({workers.addresses[1 - index]})"
    line = f"error: {name} has not come within --start_timeout=1 seconds\n"
    assert workers.error(index) == line


def test_workers_that_differ_in_a_flag_end_with_the_same_line(workers):
    workers.start(0, "--workdir=run", "--checkpoint_steps=5")
    workers.start(1, "--workdir=elsewhere", "--seed=3")
    assert [workers.code(0), workers.code(1)] == [1, 1]
    line = "--seed must be the same on all workers. Received: --seed=0 on worker 0, --seed=3 on "
    assert workers.error(0) == workers.error(1) == f"error: {line}worker 1\n"
    assert "training" not in workers.out(0) + workers.out(1)


def test_workers_of_different_clusters_end_with_the_same_line(workers):
    workers.start(0, "--workdir=run")
    workers.start(1, "--workdir=run", addresses=[workers.addresses[0], "127.0.0.1:9"])
    assert [workers.code(0), workers.code(1)] == [1, 1]
    assert "All workers must have the same cluster in TF_CONFIG" in workers.error(0)
    assert workers.error(0) == workers.error(1)


def test_launch_starts_workers_with_numbered_lines_and_ctrl_c_ends_them(workers, tmp_path):
    command = [sys.executable, str(RECIPES / "launch.py"), "--workers=2", "--"]
    arguments = [str(tmp_path / "program.py"), f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(
        [*command, *arguments, "--seconds=0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [f"[worker {index}] {word}" for index in (0, 1) for word in ("trained", "training")]
    assert sorted(done.stdout.splitlines()) == lines

    # What runs in the background inherits that SIGINT is ignored; Ctrl-C of a terminal is not.
    def take_sigint():
        signal.signal(signal.SIGINT, signal.default_int_handler)

    options = {"stdout": subprocess.PIPE, "preexec_fn": take_sigint}
    with subprocess.Popen([*command, *arguments], **options) as launch:
        for _ in range(2):
            launch.stdout.readline()
        supervisors = [pid for pid in children_of(launch.pid) if children_of(pid)]
        processes = [*supervisors, *map(trainer_of, supervisors)]
        assert len(processes) == 4
        launch.send_signal(signal.SIGINT)
        assert launch.wait(timeout=30) == 130
    assert not any(map(is_running, processes))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: The command of a worker is missing"),
        (["nothing.py"], "error: There is no program nothing.py"),
        (
            [__file__, "--strategy=mirrored"],
            "error: Workers need --strategy=multi_worker",
        ),
    ],
    ids=["nothing", "no program", "another strategy"],
)
def test_launch_refuses_what_is_no_command_in_one_line(arguments, message):
    done = run_light_program(RECIPES / "launch.py", "--", *arguments)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith(message)


def config(worker=("a:1", "b:1"), kind="worker", index=0, **jobs):
    task = {"type": kind, "index": index}
    return json.dumps({"cluster": {"worker": list(worker), **jobs}, "task": task})


def test_the_chief_of_tf_config_is_worker_0(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config(chief=["c:1"], index=1))
    assert read_cluster() == (["c:1", "a:1", "b:1"], 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs the environment variable TF_CONFIG"),
        ("{", "TF_CONFIG must be such as"),
        ("[]", "TF_CONFIG must be such as"),
        ('{"cluster": {}}', "TF_CONFIG must be such as"),
        (config(index=2), "must be from 0 to 1. Received: 2"),
        (config(kind="ps"), "TF_CONFIG must be such as"),
        (config(ps=["c:1"]), "Received: a job 'ps'"),
        (config(worker=["a"]), "its own address host:port. Received: 'a'"),
        (config(worker=["a:1", "a:1"]), "its own address host:port. Received: 'a:1'"),
    ],
    ids=range(9),
)
def test_a_wrong_cluster_is_one_clear_line(monkeypatch, text, message):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        read_cluster()
    assert message in str(caught.value)


@pytest.mark.slow
def test_the_variables_of_slurm_name_the_cluster(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.setenv("SLURM_PROCID", "2")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[1-2]")
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "2,1")
    assert read_cluster() == (["node1:8888", "node1:8889", "node2:8888"], 2)
    # TensorFlow reads it in the training process.
    assert json.loads(os.environ["TF_CONFIG"])["task"] == {"type": "worker", "index": 2}
