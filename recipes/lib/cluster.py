"""The cluster of a run on several machines: the addresses of its workers.

Nothing here imports TensorFlow into this process.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
from typing import NamedTuple

_VARIABLE = "TF_CONFIG"
_EXAMPLE = (
    '{"cluster": {"worker": ["host0:12345", "host1:12345"]}, '
    '"task": {"type": "worker", "index": 0}}'
)
_SLURM = (
    "SLURM_PROCID",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_STEP_NODELIST",
    "SLURM_STEP_TASKS_PER_NODE",
)
# The GPUs are those that SLURM gives the task, so the resolver need not count them.
_RESOLVE = """
import json
import tensorflow as tf
resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
    gpus_per_node=1024, gpus_per_task=1, auto_set_gpu=False
)
cluster = resolver.cluster_spec().as_dict()
kind, index = resolver.get_task_info()
print(json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}}))
"""


class Cluster(NamedTuple):
    """The workers of a run.

    Args:
        workers: List of addresses `host:port`. The first is the chief.
        index: Int, the number of this worker.
    """

    workers: list
    index: int

    def name(self, index):
        """Returns the name of a worker for messages."""
        return f"worker {index} ({self.workers[index]})"


def read_cluster():
    """Returns the `Cluster` of TF_CONFIG, or else of SLURM, for which it sets TF_CONFIG.

    Raises:
        ValueError: If neither describes a cluster with this process in it.
    """
    text = os.environ.get(_VARIABLE)
    if not text and all(name in os.environ for name in _SLURM):
        text = os.environ[_VARIABLE] = _of_slurm()
    if not text:
        raise ValueError(
            f"--strategy=multi_worker needs the environment variable {_VARIABLE}, such as "
            f"{_EXAMPLE}, or a step of SLURM; recipes/launch.py starts workers on this machine"
        )
    try:
        config = json.loads(text)
        jobs, task = config["cluster"], config["task"]
        workers = [*jobs.get("chief", []), *jobs.get("worker", [])]
        kind, index = task["type"], int(task["index"])
        names = [name for name in ("chief", "worker") for _ in jobs.get(name, [])]
        first = names.index(kind)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{_VARIABLE} must be such as {_EXAMPLE}. Received: {text!r}") from error
    if set(jobs) - {"chief", "worker"}:
        other = min(set(jobs) - {"chief", "worker"})
        raise ValueError(
            f'{_VARIABLE} must have only the jobs "chief" and "worker". Received: a job {other!r}'
        )
    if not 0 <= index < names.count(kind):
        raise ValueError(
            f"The index of the task in {_VARIABLE} must be from 0 to {names.count(kind) - 1}. "
            f"Received: {index}"
        )
    for worker in workers:
        _, port = split_address(worker)
        if not 0 < port < 65536 or workers.count(worker) > 1:
            raise ValueError(
                f"Each worker in {_VARIABLE} must have its own address host:port. "
                f"Received: {worker!r}"
            )
    return Cluster(workers, first + index)


def split_address(address):
    """Returns host and port of `host:port`; the port is 0 if there is none."""
    host, _, port = str(address).rpartition(":")
    return host.strip("[]"), int(port) if host and port.isdecimal() else 0


def free_addresses(count):
    """Returns addresses of this machine that no process listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


def _of_slurm():
    done = subprocess.run(
        [sys.executable, "-c", _RESOLVE], capture_output=True, text=True, check=False
    )
    if done.returncode:
        line = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"TensorFlow cannot read the variables of SLURM: {line}")
    return done.stdout.strip().splitlines()[-1]
