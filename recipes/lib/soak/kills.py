"""Programs that are killed at random moments until they end."""

import pathlib
import shutil

import numpy as np
from keras_dsnet_recipes.lib.soak import save
from keras_dsnet_recipes.lib.soak.files import (
    damaged_files,
    differences,
    make_empty,
    temporary_files,
)
from keras_dsnet_recipes.lib.soak.programs import SUBJECTS, Programs, command_of, make_inputs

KILLED = -9
# The kills of one run before it may go on to its end.
KILLS_OF_A_ROUND = 5
# The share of the processor time of a whole run within which it is killed, first and once it goes
# on from a checkpoint.
_LATEST, _LATEST_OF_REST = 0.95, 0.6
_LOOK_SECONDS, _WRITE_LOOK_SECONDS = 0.02, 0.001


def run_kills(results, folder, count, seed, subjects=None):
    """Kills each program several times, and compares how it ends with a run that was not killed.

    Half of the kills come at a random moment, and half at the next write of a file after a random
    moment. Moments are processor times, which do not depend on what else the machine does.

    Args:
        results: `Results`, which keeps the rows.
        folder: Path of a folder for the runs.
        count: Int, number of kills of all programs together.
        seed: Int.
        subjects: Names of the programs. Defaults to all of `SUBJECTS`.
    """
    folder = pathlib.Path(folder)
    make_inputs(folder / "inputs")
    subjects = list(subjects or SUBJECTS)
    shares = [count // len(subjects) + (i < count % len(subjects)) for i in range(len(subjects))]
    with Programs() as programs:
        rounds = [
            _Rounds(programs, subject, folder, results, share, seed)
            for subject, share in zip(subjects, shares, strict=True)
        ]
        # A kill can come too late, so there may be more rounds.
        for index in range(3 * max(shares)):
            for each in rounds:
                each.run(index)


class _Rounds:
    """The rounds of one program."""

    def __init__(self, programs, subject, folder, results, share, seed):
        self.programs, self.subject, self.results = programs, subject, results
        self.inputs = folder / "inputs"
        self.folder = folder / subject.replace(" ", "_")
        self.expected = self.folder / "expected"
        self.left, self.seed = share, seed

    def run(self, index):
        """Runs a round, unless the program was killed often enough."""
        if not self.left:
            return
        row = self.results.find("kills", self.subject, index)
        if row is None:
            generator = np.random.default_rng([self.seed, *self.subject.encode(), index])
            row = self._round(index, min(self.left, KILLS_OF_A_ROUND), self._expect(), generator)
            self.results.add(row)
        self.left -= row["kills"]

    def _expect(self):
        """Runs the program to its end without a kill, and returns its processor time."""
        row = self.results.find("kills", self.subject, -1)
        if row is None or not self.expected.exists():
            make_empty(self.expected)
            output = self.folder / "expected.txt"
            code, seconds = self.programs.run(self._command(self.expected), output)
            if code:
                raise ValueError(f"{self.subject} failed without a kill, see {output}")
            row = {"part": "kills", "subject": self.subject, "round": -1, "kills": 0}
            self.results.add({**row, "seconds": seconds, "problems": []})
            row["seconds"] = seconds
        return row["seconds"]

    def _command(self, workdir):
        return command_of(self.subject, self.inputs, workdir)

    def _round(self, index, kills, whole, generator):
        """Returns the row of one run that is killed some times."""
        workdir, output = self.folder / f"round{index}", self.folder / f"round{index}.txt"
        make_empty(workdir)
        problems, killed, in_write = [], 0, 0
        for number in range(kills):
            at_write = bool(generator.random() < 0.5)
            moment = random_moment(generator, whole, number)
            running = self.programs.start(self._command(workdir), output)
            code, is_writing = kill_at(running, workdir, moment, at_write)
            if code == 0:
                continue
            killed += code == KILLED
            in_write += is_writing and code == KILLED
            if code != KILLED:
                problems.append(f"ended with exit code {code}, see {output}")
            problems += damaged_files(workdir)
            if self.subject == "save":
                problems += save.mixed_files(workdir)
        code, _ = self.programs.run(self._command(workdir), output)
        if code:
            problems.append(f"the same command ended with exit code {code}, see {output}")
        else:
            problems += differences(self.expected, workdir)
        if not problems:
            shutil.rmtree(workdir)
        return {
            "part": "kills",
            "subject": self.subject,
            "round": index,
            "kills": killed,
            "in_write": in_write,
            "problems": problems,
        }


def random_moment(generator, whole, number):
    """Returns the processor time of a kill, in seconds.

    Args:
        generator: NumPy generator.
        whole: Float, the processor time of a run that is not killed.
        number: Int, the kills of this run so far.
    """
    return float(generator.uniform(0, whole * (_LATEST_OF_REST if number else _LATEST)))


def kill_at(running, workdir, moment, at_write):
    """Kills a program when it has taken some processor time.

    Args:
        running: Has `poll`, `processor_seconds` and `kill`, as `Running` has.
        workdir: Path of the folder that the program writes into.
        moment: Float, seconds.
        at_write: Bool, whether to wait then until a file is being written.

    Returns:
        `(code, is_writing)`: the exit code, and whether a file was being written when the program
        was killed.
    """
    # An earlier kill may have left files, until the program that was started again removes them.
    before = set(temporary_files(workdir))
    code = running.poll()
    while code is None and running.processor_seconds() < moment:
        code = running.poll(_LOOK_SECONDS)
    while code is None and at_write and not set(temporary_files(workdir)) - before:
        code = running.poll(_WRITE_LOOK_SECONDS)
    if code is None:
        code = running.kill()
    return code, bool(set(temporary_files(workdir)) - before)
