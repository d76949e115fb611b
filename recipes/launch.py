r"""Starts a program as several workers on this machine, to try --strategy=multi_worker.

    python recipes/launch.py --workers=2 -- recipes/imagenet_stage1.py --dataset=digits \
        --batch_size=64 --epochs=2 --workdir=runs/two

Everything after `--` is the command of each worker. The flag --strategy=multi_worker is added, and
each worker has its own TF_CONFIG with free ports of this machine. Each line of their output begins
with the number of the worker. Ctrl-C ends all of them, and so does SIGTERM.

The workers share the cores of this machine, so this does not train faster than one process. On a
cluster, the batch system starts one worker on each machine instead (docs/guides/cluster.md).

The exit code is 0 if all workers end with 0, or else the first other code, where 75 means that
another worker was lost.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

from absl import flags
from keras_dsnet_recipes.lib import supervisor
from keras_dsnet_recipes.lib.cluster import free_addresses
from keras_dsnet_recipes.lib.start import start

FLAGS = flags.FLAGS
_LAST_SECONDS = 30.0
flags.DEFINE_integer("workers", 2, "Number of workers.", lower_bound=1)


def check_arguments(arguments):
    """Raises an error unless the arguments are the command of a program."""
    if not arguments:
        raise ValueError(
            "The command of a worker is missing: launch.py --workers=2 -- "
            "recipes/imagenet_stage1.py --workdir=runs/two"
        )
    if not pathlib.Path(arguments[0]).is_file():
        raise FileNotFoundError(f"There is no program {arguments[0]}")
    for argument in arguments[1:]:
        name, _, value = argument.lstrip("-").partition("=")
        if name == "strategy" and value != supervisor.STRATEGY:
            raise ValueError(f"Workers need --strategy={supervisor.STRATEGY}. Received: {argument}")


def start_worker(command, addresses, index):
    """Returns the started process of a worker, whose lines are copied with its number."""
    task = {"type": "worker", "index": index}
    config = json.dumps({"cluster": {"worker": addresses}, "task": task})
    # Several workers share a GPU only if none takes all of its memory.
    environment = {"TF_FORCE_GPU_ALLOW_GROWTH": "true", **os.environ, "TF_CONFIG": config}
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    copies = [
        threading.Thread(target=copy_lines, args=(*streams, index), daemon=True)
        for streams in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
    ]
    for copy in copies:
        copy.start()
    return process, copies


def copy_lines(source, target, index):
    """Copies the lines of a worker, each with the number of the worker before it."""
    for line in source:
        text = line.decode(errors="backslashreplace")
        target.write(f"[worker {index}] {text if text.endswith(chr(10)) else text + chr(10)}")
        target.flush()


def send_all(processes, number):
    """Sends a signal to all workers and to their children."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def main(arguments):
    command = [sys.executable, *arguments[1:], f"--strategy={supervisor.STRATEGY}"]
    addresses = free_addresses(FLAGS.workers)
    started = []
    ended_by = signal.SIGINT
    try:
        for index in range(FLAGS.workers):
            started.append(start_worker(command, addresses, index))
        codes = wait_for_all([process for process, _ in started])
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt):
            ended_by = signal.SIGTERM
        processes = [process for process, _ in started]
        send_all(processes, ended_by)
        end = time.monotonic() + _LAST_SECONDS
        while time.monotonic() < end and any(process.poll() is None for process in processes):
            time.sleep(0.1)
        send_all(processes, signal.SIGKILL)
        raise
    finally:
        for _, copies in started:
            for copy in copies:
                copy.join(timeout=1)
    return codes[0]


def wait_for_all(processes):
    """Returns the exit codes, those that are not 0 first, in the order in which they came."""
    codes, running = [], list(processes)
    while running:
        for process in [each for each in running if each.poll() is not None]:
            running.remove(process)
            code = process.returncode
            codes.append(code if code >= 0 else 128 - code)
        time.sleep(0.1)
    return sorted(codes, key=lambda code: code == 0)


if __name__ == "__main__":
    start(main, check_arguments, arguments=True)
