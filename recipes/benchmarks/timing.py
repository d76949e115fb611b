"""The timing of functions or TFLite files that take turns.

As in an app, a TFLite file runs in a separate process, whose program is `timed_file.py`. A process
of that kind also measures the cost of loading a file. Nothing here imports TensorFlow.
"""

import contextlib
import itertools
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import time

SECONDS_PER_TURN = 0.15
# With this setting malloc of the GNU C library asks for huge pages and takes all memory from one
# heap. A kernel or feature with a separate mapping would be too small for a huge page. Other C
# libraries ignore the setting.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0"}
_PROGRAM = pathlib.Path(__file__).with_name("timed_file.py")


def milliseconds(run, count):
    """Returns the mean time of `count` calls of a function without arguments."""
    start = time.perf_counter()
    for _ in range(count):
        run()
    return 1e3 * (time.perf_counter() - start) / count


def take_turns(runs, rounds, seconds_per_turn=0.0, warm_up=2, measure=milliseconds, group=None):
    """Runs functions in turn and returns the time of a call in each round.

    Every round has a new random order, so that no function always follows the same one.

    Args:
        runs: Dict by name of functions without arguments, or of other objects that `measure` takes.
        rounds: Int, number of rounds.
        seconds_per_turn: Float, approximate length of a turn. Defaults to 0, which means one call.
        warm_up: Int, number of calls of each function beforehand, which trace and allocate.
        measure: Function of one of `runs` and a number of calls that returns mean milliseconds.
        group: Function of a name. Names with equal results are compared with each other and run
            one directly after another in every round. Defaults to a single group.

    Returns:
        Dict from name to the mean milliseconds of a call in every round.
    """
    counts = {}
    for name, run in runs.items():
        measure(run, warm_up)
        once = measure(run, warm_up) if seconds_per_turn else float("inf")
        counts[name] = max(1, round(1e3 * seconds_per_turn / once))
    times = {name: [] for name in runs}
    for _ in range(rounds):
        for name in _shuffled(runs, group):
            times[name].append(measure(runs[name], counts[name]))
    return times


def _shuffled(names, group):
    """Yields names in a random order that keeps each group together."""
    groups = {}
    for name in random.sample(list(names), len(names)):
        groups.setdefault(group and group(name), []).append(name)
    return itertools.chain.from_iterable(groups.values())


def low_and_middle(times):
    """Returns minimum and median of times."""
    return min(times), statistics.median(times)


def ratios(times, base):
    """Returns the ratio of the minima, and the median of the rounds' ratios."""
    return min(times) / min(base), statistics.median(a / b for a, b in zip(times, base))


class TimedProcess:
    """A TFLite file in a separate process, which runs it on request.

    Interpreters in one process share a heap, and a file with many graphs is a few percent slower on
    a fragmented heap. The placement of a process's pages in memory changes the time as much, so a
    comparison starts each file several times.

    Args:
        path: Path of the file.
        huge_pages: Bool, whether to load the file into huge pages, which reduce the effect of the
            placement. They need Linux and the GNU C library. Defaults to False.
        **options: As for `RunOptions` of `timed_file.py`. Pairs of `widths` run before the timing,
            because LiteRT prepares a graph that has not run yet whenever it can be reached. In an
            app this ends with the first images.

    Attributes:
        huge_share: Float from 0 to 1, share in huge pages of the memory that loading took.

    Raises:
        RuntimeError: If the process ended.
    """

    def __init__(self, path, /, huge_pages=False, **options):
        self._path = path
        self._process = subprocess.Popen(
            [sys.executable, _PROGRAM, "serve", str(path), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | (HUGE_PAGES if huge_pages else {}),
        )
        self.huge_share = float(self._read())

    def milliseconds(self, count):
        """Returns the mean time of `count` runs in a row, in milliseconds."""
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return float(self._read())

    def close(self):
        """Ends the process."""
        self._process.communicate()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _read(self):
        line = self._process.stdout.readline()
        if not line:
            _, messages = self._process.communicate()
            last = (messages.strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"{self._path} could not be run: {last}")
        return line


def time_in_turns(files, options, loads, rounds, huge_pages=False, group=None):
    """Times files that take turns, each in separate processes.

    Args:
        files: Dict of filenames.
        options: Dict by the same keys of dicts as for `RunOptions` of `timed_file.py`. A file
            without an entry has the defaults.
        loads: Int, number of times that each file is loaded, one after another.
        rounds: Int, turns of each process.
        huge_pages: Bool, as in `TimedProcess`.
        group: Function of a key, as in `take_turns`.

    Returns:
        Tuple of a dict by the keys of `files`, with the mean milliseconds of a run in every turn,
        and the smallest share of a process's memory that was in huge pages.

    Raises:
        RuntimeError: If a file cannot be run, or `huge_pages` is True and there are no huge pages.
    """
    times, shares = {key: [] for key in files}, []
    for _ in range(loads):
        with contextlib.ExitStack() as stack:
            processes = {
                key: stack.enter_context(TimedProcess(path, huge_pages, **options.get(key, {})))
                for key, path in files.items()
            }
            shares += [process.huge_share for process in processes.values()]
            if huge_pages and not any(shares):
                raise RuntimeError(
                    "no huge pages: they need the GNU C library 2.35 or newer, and `madvise` or "
                    "`always` in /sys/kernel/mm/transparent_hugepage/enabled"
                )
            turns = take_turns(
                processes, rounds, SECONDS_PER_TURN, 3, TimedProcess.milliseconds, group
            )
        for key in files:
            times[key] += turns[key]
    return times, min(shares)


def loading_cost(path, /, **options):
    """Measures time and memory to load and run a file once, in a separate process.

    Args:
        path: Path of the file.
        **options: As for `RunOptions` of `timed_file.py`.

    Returns:
        Dict with "init_ms", the milliseconds that the first run takes more than another one, and
        "rss_mib", the resident memory in MiB that the process has gained after the first run.
    """
    command = [sys.executable, _PROGRAM, "load", str(path), json.dumps(options)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(result.stdout.splitlines()[-1])
