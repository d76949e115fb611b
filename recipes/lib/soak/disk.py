"""A disk that is full while a program writes: a small file system in memory."""

import contextlib
import os
import pathlib
import shutil
import subprocess

import numpy as np
from keras_dsnet_recipes.lib import supervisor
from keras_dsnet_recipes.lib.soak import writes
from keras_dsnet_recipes.lib.soak.files import damaged_files, differences
from keras_dsnet_recipes.lib.soak.programs import Programs, command_of, make_inputs
from keras_dsnet_recipes.lib.soak.workers import Workers
from keras_dsnet_recipes.lib.soak.writes import WRITES, Disk

TOOLS = ("unshare", "mount")
SUBJECTS = ("stage I", "stage II", "detection", "export")
_LAST_SECONDS = 1800.0
_FULL_LINE = "No space left on device"
_PAGE = 4096
_ROOM = 64 * 2**20
# The share of a file's size that is free when it is written again.
SHARES = (0.0, 0.5)


def run_full_disks(results, folder, count, seed, subjects=SUBJECTS):
    """Fills a disk at each kind of write, and limits the disk of each program at random.

    Args:
        results: `Results`, which keeps the rows.
        folder: Path of a folder for the runs.
        count: Int, number of sizes of the disk for each program, and of the cluster.
        seed: Int.
        subjects: Names of the programs.
    """
    folder = pathlib.Path(folder)
    make_inputs(folder / "inputs")
    with Programs() as programs:
        for name in WRITES:
            _check_write(results, programs, folder, name)
        for subject in subjects:
            _limit_program(results, programs, folder, subject, count, seed)
    _limit_cluster(results, folder, "stage I", count, seed)


def _check_write(results, programs, folder, name):
    """Writes one kind of file on a disk that is full, and on one with half of the space."""
    for index, share in enumerate(SHARES):
        if results.find("disk", name, index) is not None:
            continue
        output = folder / f"write_{name.replace(' ', '_')}_{index}.txt"
        output.unlink(missing_ok=True)
        with mounted(folder / "disk", _ROOM) as disk:
            command = [writes.__file__, name, disk.path, share]
            code, _ = programs.run(command, output)
        lines = output.read_text(errors="replace").splitlines()
        problems = [line for line in lines if line.startswith("problem: ")]
        if code:
            problems.append(f"ended with exit code {code}, see {output}")
        row = {"part": "disk", "subject": name, "round": index, "failed_writes": 1}
        results.add({**row, "problems": problems})


def _limit_program(results, programs, folder, subject, count, seed):
    """Runs a program on disks that are too small, which are enlarged when it has failed."""
    expected, output = folder / subject.replace(" ", "_"), folder / f"{subject[:7]}.txt"

    def run(workdir):
        return programs.run(command_of(subject, folder / "inputs", workdir), output)[0]

    for index in range(count):
        if results.find("disk", subject, index) is not None:
            continue
        if not _is_complete(expected):
            _run_unlimited(expected, run)
        generator = np.random.default_rng([seed, *subject.encode(), index])
        size = int(generator.uniform(0.02, 0.98) * size_of(expected))
        with mounted(folder / "disk", size) as disk:
            workdir = disk.path
            before = output.stat().st_size if output.exists() else 0
            code = run(workdir)
            problems = _ending_problems(code, output, before)
            problems += damaged_files(workdir)
            disk.enlarge()
            code = run(workdir)
            if code:
                problems.append(f"the same command ended with exit code {code}, see {output}")
            else:
                problems += differences(expected, workdir)
        row = {"part": "disk", "subject": subject, "round": index, "failed_writes": 1}
        results.add({**row, "disk_bytes": size, "problems": problems})


def _limit_cluster(results, folder, subject, count, seed):
    """Runs two workers of which the chief writes on a disk that is too small."""
    name, inputs, output = "chief of two workers", folder / "inputs", folder / "chief"
    expected = folder / "chief_expected"

    def run(workdir):
        with Workers(subject, inputs, workdir, output) as workers:
            return workers.wait_for_all(_LAST_SECONDS)[0]

    for index in range(count):
        if results.find("disk", name, index) is not None:
            continue
        if not _is_complete(expected):
            _run_unlimited(expected, lambda workdir: int(any(code != 0 for code in run(workdir))))
        generator = np.random.default_rng([seed, *name.encode(), index])
        size = int(generator.uniform(0.02, 0.98) * size_of(expected))
        lines = pathlib.Path(f"{output}.0.txt")
        with mounted(folder / "disk", size) as disk:
            before = lines.stat().st_size if lines.exists() else 0
            codes = run(disk.path)
            problems = _ending_problems(codes[0], lines, before)
            if codes[1] != supervisor.EXIT_LOST:
                problems.append(f"the other worker ended with exit code {codes[1]}")
            problems += damaged_files(disk.path)
            disk.enlarge()
            codes = run(disk.path)
            if any(codes):
                problems.append(f"the same command ended with {codes}, see {output}.*.txt")
            else:
                problems += differences(expected, disk.path)
        row = {"part": "disk", "subject": name, "round": index, "failed_writes": 1}
        results.add({**row, "disk_bytes": size, "problems": problems})


def _run_unlimited(expected, run):
    shutil.rmtree(expected, ignore_errors=True)
    expected.mkdir(parents=True)
    if code := run(expected):
        raise ValueError(f"{expected.name} failed on a disk with space, with exit code {code}")
    (expected / ".complete").touch()


def _is_complete(expected):
    return (expected / ".complete").exists()


def _ending_problems(code, output, before):
    """Returns what is wrong with the end of a program whose disk was full."""
    if code == 0:
        return ["the disk was too small and the program ended with exit code 0"]
    text = output.read_bytes()[before:].decode(errors="replace")
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    problems = []
    if code != 1:
        problems.append(f"ended with exit code {code}")
    if len(lines) != 1 or _FULL_LINE not in lines[0]:
        problems.append(f"the lines of the error were {lines}")
    if "Traceback" in text:
        problems.append("a traceback was shown")
    return problems


def size_of(folder):
    """Returns the bytes that the files of a folder take on a disk."""
    sizes = (path.stat().st_size for path in pathlib.Path(folder).rglob("*") if path.is_file())
    return sum(-(-size // _PAGE) * _PAGE for size in sizes)


@contextlib.contextmanager
def mounted(path, size):
    """Mounts a file system in memory of some bytes; yields a `Disk`."""
    path.mkdir(parents=True, exist_ok=True)
    pages = max(1, size // _PAGE)
    options = f"size={pages * _PAGE}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "soak", str(path)], check=True)
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def why_not():
    """Returns why this process cannot mount a file system, or None if it can."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"there is no {missing[0]}"
    done = subprocess.run([*namespace(), "true"], capture_output=True, text=True, check=False)
    return done.stderr.strip().splitlines()[-1] if done.returncode else None


def namespace():
    """Returns the command that runs another one where it may mount file systems."""
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", *as_root, "--mount"]
