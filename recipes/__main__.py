"""The command `keras-dsnet`, which runs the programs of this folder as sub-commands."""

import pathlib
import runpy
import sys

from keras_dsnet_recipes.lib import run

FOLDER = pathlib.Path(__file__).resolve().parent


def main():
    """Runs the program of a sub-command as `python recipes/program.py` does.

    Raises:
        SystemExit: Always, with the exit code of the program, or with 1 for an unknown sub-command.
    """
    arguments = sys.argv[1:]
    name = arguments[0] if arguments else "help"
    if name in ("help", "-h", "--help", "-?"):
        print(_usage())
        sys.exit(0)
    if name not in run.PROGRAMS:
        known = ", ".join(run.PROGRAMS)
        print(f"error: {run.COMMAND} has no command {name!r}: it has {known}", file=sys.stderr)
        sys.exit(1)
    run.started_as_command = True
    program = str(FOLDER / run.PROGRAMS[name][0])
    sys.argv = [program, *arguments[1:]]
    runpy.run_path(program, run_name="__main__")


def _usage():
    width = max(map(len, run.PROGRAMS))
    lines = [f"  {name.ljust(width)}  {about}" for name, (_, about) in run.PROGRAMS.items()]
    lines = [f"usage: {run.COMMAND} COMMAND --flag=value ...", "", "commands:", *lines, ""]
    return "\n".join([*lines, f"{run.COMMAND} COMMAND --help lists the flags of a command."])


if __name__ == "__main__":
    main()
