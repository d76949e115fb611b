"""Processes that run files and may crash at any of them."""

import json
import signal
import subprocess

TIMEOUT_S = 600
# A runtime that always crashes need not start for every file.
MOST_CRASHES = 3


def run_all(command, folder, names, variables=None):
    """Runs files in processes, a new one after each file at which one ended.

    Args:
        command: list of words, to which the folder and the names are appended.
        folder: of the files.
        names: of the files.
        variables: dict of environment variables. Defaults to those of this process.

    Returns:
        Dict from the name of each file to its row of `run_files.py`. A file that ended its process
        has an "error". After three of them in a row all others have it too.
    """
    rows, left, crashes = {}, list(names), 0
    while left:
        started, new, end = _run(command, folder, left, variables)
        rows.update({row["file"]: row for row in new})
        left = [name for name in left if name not in rows]
        if not started:
            rows.update({name: {"file": name, "error": f"does not start: {end}"} for name in left})
            break
        crashes = crashes + 1 if left and not new else 1
        if left:
            ended = left if crashes == MOST_CRASHES else left[:1]
            rows.update({name: {"file": name, "error": end} for name in ended})
            left = left[len(ended) :]
    return {name: rows[name] for name in names}


def _run(command, folder, names, variables):
    """Returns whether the runtime started, the rows of the files that ran, and how it ended."""
    process = subprocess.Popen(
        [*command, str(folder), *names],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=variables,
    )
    try:
        printed, errors = process.communicate(timeout=TIMEOUT_S)
        end = _end_of(process.returncode, errors)
    except subprocess.TimeoutExpired:
        process.kill()
        printed, _ = process.communicate()
        end = f"no result after {TIMEOUT_S} s"
    # Runtimes print lines of their own.
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith('{"')]
    started = any("started" in line for line in lines)
    return started, [line for line in lines if "file" in line], end


def _end_of(code, errors):
    if code < 0:
        return f"crash ({signal.Signals(-code).name})"
    # QEMU returns the signal of its process as shells do.
    if code > 128:
        return f"crash ({signal.Signals(code - 128).name})"
    return (errors.strip().splitlines() or [f"exit code {code}"])[-1][:200]
