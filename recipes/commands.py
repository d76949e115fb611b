"""The programs by the names of their commands, and how to write a command that runs one."""

import pathlib
import runpy
import shlex
import sys

FOLDER = pathlib.Path(__file__).resolve().parent
COMMAND = "keras-dsnet"
PROGRAMS = {
    "stage1": ("imagenet_stage1.py", "train a supernet"),
    "stage2": ("imagenet_stage2.py", "train the gates of a supernet"),
    "evaluate": ("evaluate.py", "measure a saved network on a data set"),
    "export": ("export_mobile.py", "write a saved network as a TFLite file"),
    "evaluate-int8": ("evaluate_int8.py", "measure what int8 costs a saved network"),
    "benchmark": ("benchmark_mobile.py", "time TFLite files, write latency tables"),
    "demo": ("demo.py", "run the whole way on handwritten digits, in minutes"),
}
# Set where a program runs as a sub-command.
_as_command = False


def dispatch(arguments):
    """Runs the program of a sub-command as `python recipes/program.py` does.

    Args:
        arguments: those of the command line, the sub-command first.

    Raises:
        SystemExit: with the program's exit code; 1 where there is no such sub-command.
    """
    global _as_command
    name = arguments[0] if arguments else "help"
    if name in ("help", "-h", "--help", "-?"):
        print(_usage())
        sys.exit(0)
    if name not in PROGRAMS:
        known = ", ".join(PROGRAMS)
        print(f"error: {COMMAND} has no command {name!r}: it has {known}", file=sys.stderr)
        sys.exit(1)
    _as_command = True
    program = str(FOLDER / PROGRAMS[name][0])
    sys.argv = [program, *arguments[1:]]
    runpy.run_path(program, run_name="__main__")


def command(name, *arguments):
    """Returns the command line that runs a program, as the user started this one.

    Args:
        name: of the sub-command.
        *arguments: of the program; those that are None are left out.
    """
    if _as_command:
        words = [COMMAND, name]
    else:
        words = ["python", str(pathlib.Path(sys.argv[0]).with_name(PROGRAMS[name][0]))]
    return shlex.join([*words, *(str(word) for word in arguments if word is not None)])


def flag(name, value):
    """Returns `--name=value`, or None where the value is None.

    Args:
        name: str.
        value: str, number, list, or None.
    """
    if isinstance(value, (list, tuple)):
        value = ",".join(map(str, value))
    return None if value is None else f"--{name}={value}"


def print_end(written, next_step, following):
    """Prints what a program has written, and the command that comes next.

    Args:
        written: paths, of files and folders.
        next_step: what the command does, in words.
        following: str, the command.
    """
    names = [str(path) for path in written if pathlib.Path(path).exists()]
    print(f"\nwritten: {', '.join(names)}\nnext, to {next_step}:\n    {following}", flush=True)


def _usage():
    width = max(map(len, PROGRAMS))
    lines = [f"  {name.ljust(width)}  {about}" for name, (_, about) in PROGRAMS.items()]
    lines = [f"usage: {COMMAND} COMMAND --flag=value ...", "", "commands:", *lines, ""]
    return "\n".join([*lines, f"{COMMAND} COMMAND --help lists the flags of a command."])
