"""Compares the runs of routed files on several runtimes.

    make test-runtimes
    make test-runtimes NEWEST=1

A small set of files is exported and run on every runtime of `environments.RUNTIMES`. The table of
the results goes into docs/results/runtimes.md. The exit code is 1 if a file is wrong on a runtime.

With `--newest`, which NEWEST=1 stands for, only the newest runtimes run, at the newest releases
that pip finds, and the table is only printed.
"""

import argparse
import os
import pathlib
import sys
import tempfile

from runtimes.environments import RUNTIMES, NotAvailableError, command_of, newest_runtimes
from runtimes.files import NAMES, make_files
from runtimes.processes import run_all
from runtimes.table import HEADER, is_right, row_of, write_table

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
ENVIRONMENTS = REPOSITORY / "build" / "runtimes"


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m runtimes")
    parser.add_argument("--newest", action="store_true", help="only the newest releases")
    newest = parser.parse_args(arguments).newest
    try:
        runtimes = newest_runtimes() if newest else RUNTIMES
    except NotAvailableError as error:
        print(f"error: the newest releases were not found: {error}", file=sys.stderr)
        return 1
    rows, right = run_runtimes(runtimes)
    if newest:
        print("\n".join((*HEADER, *rows)))
    else:
        write_table(REPOSITORY / "docs" / "results" / "runtimes.md", rows)
    return 0 if right else 1


def run_runtimes(runtimes):
    """Returns the rows of the table, and whether every file was right where it could be run."""
    with tempfile.TemporaryDirectory() as folder:
        print(f"exporting {len(NAMES)} files", flush=True)
        make_files(folder)
        rows, right = [], True
        for runtime in runtimes:
            try:
                command, variables = command_of(runtime, ENVIRONMENTS)
                results = run_all(
                    [*command, str(pathlib.Path(__file__).with_name("run_files.py")), runtime.api],
                    folder,
                    NAMES,
                    {**os.environ, **variables},
                )
            except NotAvailableError as error:
                results = str(error)
            rows.append(row_of(runtime, results))
            print(rows[-1], flush=True)
            right = right and (isinstance(results, str) or all(map(is_right, results.values())))
    return rows, right


if __name__ == "__main__":
    sys.exit(main())
