"""Workers of a run on several machines, as processes of this machine."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from keras_dsnet_recipes.lib.cluster import free_addresses


class Workers:
    """Starts the workers of a program, and kills them at the end of its context.

    Args:
        program: Path of the program.
        folder: Path of a folder for their output.
        count: Int, number of workers.
    """

    def __init__(self, program, folder, count=2):
        self.program, self.folder, self.count = program, pathlib.Path(folder), count
        self.addresses = free_addresses(count)
        self._processes = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def start(self, index, *arguments, addresses=None):
        """Starts a worker with its TF_CONFIG."""
        cluster = {"worker": addresses or self.addresses}
        config = {"cluster": cluster, "task": {"type": "worker", "index": index}}
        environment = {
            **os.environ,
            "TF_CONFIG": json.dumps(config),
            "TF_NUM_INTRAOP_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        command = [sys.executable, str(self.program), "--strategy=multi_worker", *arguments]
        with self._file("out", index).open("w") as out, self._file("err", index).open("w") as err:
            self._processes[index] = subprocess.Popen(
                command, env=environment, stdout=out, stderr=err, start_new_session=True
            )

    def _file(self, name, index):
        return self.folder / f"{name}{index}"

    def start_all(self, *arguments):
        """Starts all workers with the same arguments."""
        for index in range(self.count):
            self.start(index, *arguments)

    def supervisor(self, index):
        """Returns the process id of a worker's supervisor."""
        return self._processes[index].pid

    def trainer(self, index):
        """Returns the process id of the child of a supervisor that trains."""
        return trainer_of(self._processes[index].pid)

    def out(self, index):
        """Returns what a worker has printed."""
        return self._file("out", index).read_text()

    def error(self, index):
        """Returns what a worker has printed on stderr."""
        return self._file("err", index).read_text()

    def wait_for(self, text, *indices, seconds=120):
        """Waits until workers have printed a text on stdout."""
        end = time.monotonic() + seconds
        while not all(text in self.out(index) for index in indices or range(self.count)):
            shown = [(self.out(i), self.error(i)) for i in self._processes]
            assert time.monotonic() < end, f"{text!r} is missing in {shown}"
            time.sleep(0.05)

    def code(self, index, seconds=60):
        """Waits for a worker's end, and returns its exit code."""
        return self._processes[index].wait(timeout=seconds)


def trainer_of(pid):
    """Returns the process id of the training process of a supervisor."""
    # The first child filters the native log.
    return children_of(pid)[-1]


def children_of(pid):
    """Returns the process ids of the children of a process."""
    return list(map(int, pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def is_running(pid):
    """Returns whether a process runs. One that ended may still be in the table of processes."""
    try:
        return "\nState:\tZ" not in pathlib.Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
