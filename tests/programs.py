"""Programs in processes of their own, forked from one that has imported what takes seconds."""

import importlib
import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile

import numpy as np
from absl import flags

_CONTEXT = multiprocessing.get_context("forkserver")
# Neither starts a thread or looks for devices before it is used, so forks are safe.
_CONTEXT.set_forkserver_preload(["tensorflow", "keras"])


def start_program(program, *arguments, folder):
    """Starts a Python file as `python program arguments...`.

    Args:
        program: the file's path.
        *arguments: of its command line, made strings.
        folder: where `stdout` and `stderr` are written.

    Returns:
        `multiprocessing.Process`, started.
    """
    argv = [str(program), *map(str, arguments)]
    process = _CONTEXT.Process(target=_run, args=(argv, str(folder)))
    process.start()
    return process


def run_program(program, *arguments):
    """Runs a Python file to its end.

    Args:
        program: the file's path.
        *arguments: of its command line, made strings.

    Returns:
        `subprocess.CompletedProcess` with exit code, stdout and stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        process = start_program(program, *arguments, folder=folder)
        process.join()
        out, err = (pathlib.Path(folder, name).read_text() for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess([program, *arguments], process.exitcode, out, err)


def import_program(name):
    """Imports a program without keeping its flags, which other programs define too.

    Args:
        name: Str, name of the module.

    Returns:
        The module.
    """
    before = set(flags.FLAGS)
    module = importlib.import_module(name)
    for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)
    return module


def state_of(workdir):
    """Returns the arrays of the variables in the checkpoint of a run."""
    with np.load(workdir / "checkpoint.npz") as archive:
        return {name: archive[name] for name in archive.files if "/" in name}


def _run(argv, folder):
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(pathlib.Path(folder, name), os.O_WRONLY | os.O_CREAT), number)
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")
