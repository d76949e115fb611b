"""The frame of the commands of the package, such as `python -m keras_dsnet.weights`."""

import sys
from collections.abc import Callable

from absl import flags

EXIT_ERROR, EXIT_INTERRUPTED = 1, 130


def command_flags() -> flags.FlagValues:
    """Returns a separate set of flags for a command, so that importers keep their own.

    It has `--debug` and `--help`.
    """
    values = flags.FlagValues()
    flags.DEFINE_bool("debug", False, "Show the traceback of an error.", flag_values=values)
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=values)
    return values


def run_command(values: flags.FlagValues, description: str, run: Callable) -> int:
    """Runs a command on the arguments of the process and returns its exit code.

    A mistake of the user ends it with one line `error: ...` on stderr and exit code 1, and Ctrl+C
    with exit code 130.

    Args:
        values: Flags of the command, of `command_flags`.
        description: String that `--help` shows above the flags.
        run: Function of the list of the other arguments.

    Raises:
        Exception: With `--debug`, what `run` raised.
    """
    try:
        arguments = values(sys.argv)[1:]
        if values.help:
            print(f"{description}\n{values.get_help(include_special_flags=False)}")
            return 0
        run(arguments)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (flags.Error, ValueError, OSError) as error:
        if values.is_parsed() and values.debug:
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return EXIT_ERROR
    return 0


def _one_line(error):
    """Returns the first line of an error's message, or the system's reason with the file's name."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
