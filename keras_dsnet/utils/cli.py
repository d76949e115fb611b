"""Starts a command-line program: flags, exit codes, and one line instead of a traceback."""

import functools
import pathlib
import re
import signal
import sys

import tensorflow as tf
from absl import app, flags

from keras_dsnet.utils.argument_checks import UserError

# What a user can cause and mend. Every other exception is a bug and keeps its traceback.
_USER_ERRORS = (
    ValueError,
    OSError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.ResourceExhaustedError,
)
_EXIT_ERROR, _EXIT_INTERRUPTED = 1, 130
# Sent by `kill`, batch systems and a terminal that closes: as by Ctrl-C, half-written files are
# removed.
_ENDING_SIGNALS = ("SIGTERM", "SIGHUP")
# By its name in `keras_dsnet.training.WorkDir`, which lies on a higher floor.
_CHECKPOINT = "checkpoint.npz"
_ANSI_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_GRAPH_NODE = re.compile(r"^\{\{.*?\}\}\s*")
# How TensorFlow tells of an exception of a Python function inside a graph or a data pipeline.
_FROM_GRAPH = re.compile(rf"\b{UserError.__name__}: (.+)")


def run(main):
    """Parses the command line by absl flags and runs `main` as the whole program.

    A user's mistake ends the program with one line `error: ...` on stderr and exit code 1: wrong
    flags, a `ValueError`, an `OSError`, TensorFlow's not found, permission denied and resource
    exhausted errors, a `UserError` inside a data pipeline. The flag `--debug`, added here, shows
    the traceback instead. Ctrl-C ends it with exit code 130, SIGTERM with 143, and either says how
    to go on where the folder of the flag `--workdir` has a checkpoint.

    Args:
        main: a function of the command line's remaining arguments, the program's name first. What
            it returns is the exit code; None means 0.

    Raises:
        SystemExit: always; with an exception of another kind if `main` has a bug.
    """
    if "debug" not in flags.FLAGS:
        flags.DEFINE_bool("debug", False, "Show the traceback of an error.")
    _list_in_help(__file__, *pathlib.Path(sys.argv[0]).resolve().parent.glob("*.py"))
    app.run(functools.partial(_run_guarded, main), flags_parser=_parse_flags)


def _list_in_help(*files):
    """Makes --help show the flags defined in these files; by itself it shows the program's own."""
    files = {pathlib.Path(file).resolve() for file in files}
    for name, defined in flags.FLAGS.flags_by_module_dict().items():
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and pathlib.Path(file).resolve() in files:
            for flag in defined:
                flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def _parse_flags(argv):
    try:
        remaining = flags.FLAGS(argv)
    except flags.Error as error:
        _print_error(_one_line(error))
        sys.exit(_EXIT_ERROR)
    except SystemExit:
        # Only the help flags exit while flags are parsed, and absl gives them exit code 1.
        sys.exit(0)
    if flags.FLAGS["verbosity"].using_default_value:
        # absl would turn on the info lines of every library.
        flags.FLAGS.verbosity = -1
    return remaining


class _Ended(BaseException):
    """A signal asked the program to end."""


def _run_guarded(main, argv):
    for name in _ENDING_SIGNALS:
        number = getattr(signal, name)
        # What was started by `nohup` ignores SIGHUP, and goes on to.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)
    try:
        return main(argv)
    except KeyboardInterrupt:
        print(f"\ninterrupted{_how_to_resume()}", file=sys.stderr)
        return _EXIT_INTERRUPTED
    except _Ended as ended:
        print(f"\nterminated{_how_to_resume()}", file=sys.stderr)
        return 128 + ended.args[0]
    except (*_USER_ERRORS, tf.errors.OpError) as error:
        from_graph = _FROM_GRAPH.search(str(error))
        if flags.FLAGS.debug or not (from_graph or isinstance(error, _USER_ERRORS)):
            raise
        line = from_graph[1] if from_graph else _one_line(error)
        _print_error(line + ("" if from_graph or _is_ours(error) else " (--debug shows where)"))
        return _EXIT_ERROR


def _end(number, _):
    raise _Ended(number)


def _print_error(line):
    print(f"error: {line}", file=sys.stderr)


def _how_to_resume():
    workdir = flags.FLAGS["workdir"].value if "workdir" in flags.FLAGS else None
    # Programs that save no state have a --workdir too, and a run has no checkpoint at first.
    if not workdir or not (pathlib.Path(workdir) / _CHECKPOINT).is_file():
        return ""
    return f": the same command goes on from the last checkpoint in {workdir}"


def _one_line(error):
    """Returns the first line of an error's message that says what is wrong."""
    if isinstance(error, OSError) and error.strerror:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return ": ".join([error.strerror, " -> ".join(names)] if names else [error.strerror])
    lines = [line.strip() for line in _ANSI_STYLE.sub("", str(error)).splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        return type(error).__name__
    if lines[0] == "in user code:":
        # An error inside a traced function: a traceback as text, the message behind it.
        lines = [line.split(": ", 1)[1] for line in lines if re.match(r"\w+: ", line)] or lines
    if lines[0].startswith("Exception encountered when calling"):
        lines = lines[1:] or lines
    return _GRAPH_NODE.sub("", lines[0])


def _is_ours(error):
    """Whether the message was written for the user: by this package, its programs, or the system.

    A ValueError that a library raised may be a bug of ours that only looks like a user's mistake.
    """
    if isinstance(error, UserError) or not isinstance(error, ValueError):
        return True
    trace = error.__traceback__
    while trace.tb_next:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "")
    beside = pathlib.Path(trace.tb_frame.f_code.co_filename).resolve().parent
    own_folder = beside == pathlib.Path(sys.argv[0]).resolve().parent
    return own_folder or module.split(".")[0] in ("keras_dsnet", "__main__")
