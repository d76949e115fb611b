"""Two workers of this machine that are killed at random moments."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
from keras_dsnet_recipes.lib import supervisor
from keras_dsnet_recipes.lib.cluster import free_addresses
from keras_dsnet_recipes.lib.soak.files import damaged_files, differences, make_empty
from keras_dsnet_recipes.lib.soak.kills import KILLS_OF_A_ROUND, kill_at, random_moment
from keras_dsnet_recipes.lib.soak.programs import command_of, make_inputs, processor_seconds

SUBJECTS = ("stage I", "stage II")
WORKERS = 2
# The others must end within a minute.
_LIMIT = 60.0
_LAST_SECONDS = 1800.0
_LOOK_SECONDS = 0.05
# A worker is slow to give a sign of life on a machine that does other work.
_FLAGS = ("--strategy=multi_worker", "--worker_timeout=150", "--start_timeout=45")


def run_worker_kills(results, folder, count, seed, subjects=SUBJECTS):
    """Kills a process of one of two workers several times, and compares the end of the run.

    Args:
        results: `Results`, which keeps the rows.
        folder: Path of a folder for the runs.
        count: Int, number of kills of all programs together.
        seed: Int.
        subjects: Names of the programs.
    """
    folder = pathlib.Path(folder)
    make_inputs(folder / "inputs")
    for number, subject in enumerate(subjects):
        share = count // len(subjects) + (number < count % len(subjects))
        own = folder / subject.replace(" ", "_")
        if share:
            _run_rounds(results, folder / "inputs", own, subject, share, seed)


def _run_rounds(results, inputs, folder, subject, share, seed):
    expected = folder / "expected"
    row = results.find("workers", subject, -1)
    if row is None or not expected.exists():
        make_empty(expected)
        with Workers(subject, inputs, expected, folder / "expected") as workers:
            whole, trainer = 0.0, Victim(workers, 0, "trainer")
            while trainer.poll(_LOOK_SECONDS) is None:
                whole = max(whole, trainer.processor_seconds())
            codes, _ = workers.wait_for_all(_LAST_SECONDS)
        if any(codes):
            raise ValueError(f"{subject} failed without a kill, see {folder}/expected.*.txt")
        row = {"part": "workers", "subject": subject, "round": -1, "kills": 0, "problems": []}
        row["seconds"] = whole
        results.add(row)
    whole, index, killed = row["seconds"], 0, 0
    while killed < share and index < 3 * share:
        row = results.find("workers", subject, index)
        if row is None:
            generator = np.random.default_rng([seed, *subject.encode(), index])
            kills = min(share - killed, KILLS_OF_A_ROUND)
            row = _round(subject, inputs, folder, index, kills, whole, generator)
            results.add(row)
        killed += row["kills"]
        index += 1


def _round(subject, inputs, folder, index, kills, whole, generator):
    """Returns the row of one run of two workers, of which one is killed some times."""
    workdir, output = folder / f"round{index}", folder / f"round{index}"
    make_empty(workdir)
    problems, killed, in_write, longest = [], 0, 0, 0.0
    for number in range(kills):
        victim, of_trainer = int(generator.integers(WORKERS)), bool(generator.integers(2))
        # Only the chief writes files.
        at_write = victim == 0 and bool(generator.integers(2))
        moment = random_moment(generator, whole, number)
        with Workers(subject, inputs, workdir, output) as workers:
            kind = "trainer" if of_trainer else "supervisor"
            process = Victim(workers, victim, kind)
            code, is_writing = kill_at(process, workdir, moment, at_write)
            codes, seconds = workers.wait_for_all(_LIMIT)
            left = workers.processes_left(_LIMIT)
        if not process.was_killed or 0 in codes:
            # It had ended, or the others had, so there was nothing to lose. TensorFlow ends all
            # workers when one stands still, as on a machine that does much else.
            early = code not in (0, None, supervisor.EXIT_LOST)
            problems += [f"worker {victim} ended with {code}"] * early
            continue
        killed += 1
        in_write += is_writing
        longest = max(longest, seconds)
        problems += [f"after the end of worker {index} a process of it ran on" for index in left]
        other = codes[1 - victim]
        if other != supervisor.EXIT_LOST:
            problems.append(f"after the end of the {kind} of {victim} the other ended with {other}")
        problems += damaged_files(workdir)
    with Workers(subject, inputs, workdir, output) as workers:
        codes, _ = workers.wait_for_all(_LAST_SECONDS)
    if any(codes):
        problems.append(f"the same command ended with {codes}, see {output}.*.txt")
    else:
        problems += differences(folder / "expected", workdir)
    if not problems:
        shutil.rmtree(workdir)
    counts = {"kills": killed, "in_write": in_write, "seconds_to_end": longest}
    row = {"part": "workers", "subject": subject, "round": index}
    return {**row, **counts, "problems": problems}


class Workers:
    """The workers of a program, started. A context manager, at whose end none of them runs.

    Args:
        subject: Str, name of the program.
        inputs: Path of the folder of its networks.
        workdir: Path of its work directory.
        output: Path; the lines of worker 0 are appended to this name and `.0.txt`.
    """

    def __init__(self, subject, inputs, workdir, output):
        self.processes = []
        addresses = free_addresses(WORKERS)
        command = [sys.executable, *command_of(subject, inputs, workdir), *_FLAGS]
        for index in range(WORKERS):
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            environment = {
                **os.environ,
                "TF_CONFIG": json.dumps(task),
                "CUDA_VISIBLE_DEVICES": "",
                "TF_NUM_INTRAOP_THREADS": "1",
            }
            with pathlib.Path(f"{output}.{index}.txt").open("ab") as lines:
                process = subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=lines,
                    stderr=lines,
                    start_new_session=True,
                )
            self.processes.append(process)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def wait_for_all(self, seconds):
        """Waits for the workers; returns their exit codes, and the seconds until the last end.

        The code of a worker that still runs after the seconds is None. Time in which this process
        was stopped, as by a debugger, is not counted.
        """
        waited = _wait_until(lambda: None not in [each.poll() for each in self.processes], seconds)
        return [process.poll() for process in self.processes], waited

    def processes_left(self, seconds):
        """Returns the numbers of the workers of which a process still runs after some seconds."""
        _wait_until(lambda: not any(map(is_group, self.processes)), seconds)
        return [index for index, process in enumerate(self.processes) if is_group(process)]


def is_group(process):
    """Returns whether a process of the group of a started process runs."""
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _wait_until(is_over, seconds):
    """Waits until a function returns True, for some seconds at most; returns the seconds."""
    waited = 0.0
    while not is_over() and waited < seconds:
        began = time.monotonic()
        time.sleep(_LOOK_SECONDS)
        waited += min(time.monotonic() - began, 10 * _LOOK_SECONDS)
    return waited


class Victim:
    """A process of a worker that can be killed: its supervisor, or the trainer below that."""

    def __init__(self, workers, index, kind):
        self._supervisor, self._kind = workers.processes[index], kind
        self.was_killed = False

    def poll(self, seconds=0.0):
        """Returns the exit code of the worker, or None if it still runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._supervisor.wait(seconds)
        return self._supervisor.poll()

    def processor_seconds(self):
        """Returns the processor time of the trainer."""
        children = children_of(self._supervisor.pid)
        # The first child filters the lines of native libraries.
        return processor_seconds(children[-1]) if len(children) > 1 else 0.0

    def kill(self):
        """Kills the process, or the supervisor before it has a trainer."""
        pid = self._supervisor.pid
        children = children_of(pid)
        if self._kind == "trainer" and len(children) > 1:
            pid = children[-1]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.was_killed = True
        return self.poll()


def children_of(pid):
    """Returns the process ids of the children of a process, in the order of their start."""
    try:
        text = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:
        return []
    return [int(number) for number in text.split()]
