"""Compares the runs of routed files on several runtimes.

    make test-runtimes

A small set of files is exported and run on every runtime of `environments.RUNTIMES`. The table of
the results goes into docs/results/runtimes.md. The exit code is 1 if a file is wrong on a runtime.
"""

import os
import pathlib
import sys
import tempfile

from runtimes.environments import RUNTIMES, NotAvailableError, command_of
from runtimes.files import NAMES, make_files
from runtimes.processes import run_all
from runtimes.table import is_right, row_of, write_table

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
ENVIRONMENTS = REPOSITORY / "build" / "runtimes"


def main():
    page = REPOSITORY / "docs" / "results" / "runtimes.md"
    with tempfile.TemporaryDirectory() as folder:
        print(f"exporting {len(NAMES)} files", flush=True)
        make_files(folder)
        rows, right = [], True
        for runtime in RUNTIMES:
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
    write_table(page, rows)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
