"""Starts a recipe: help, and whatever is wrong with flags alone, before TensorFlow is loaded."""

import logging
import os
import pathlib
import re
import sys

from absl import app, flags
from absl import logging as absl_logging
from native_log import filter_native_log

FLAGS = flags.FLAGS
# TensorFlow's notes on the machine it runs on; warnings and errors still show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
_EXIT_ERROR = 1
# How absl tells of a required flag that is missing.
_MISSING = re.compile(r"Flag --(\w+) must have a value other than None")


class _ShortHelp(app.HelpFlag):
    """`-h`, beside absl's `-?` and `--help`."""

    NAME = "h"
    SHORT_NAME = None


def start(main, check=None, arguments=False):
    """Runs `main` as the whole program; see `keras_dsnet.utils.cli.run`.

    Args:
        main: a function of the command line's remaining arguments.
        check: a function that raises a ValueError or an OSError for a mistake that can be seen
            without TensorFlow. With `arguments` it takes the remaining arguments, else nothing.
        arguments: bool: whether the program takes arguments that are not flags.

    Raises:
        SystemExit: always.
    """
    flags.DEFINE_bool("debug", False, "Show the traceback of an error.")
    app.define_help_flags()
    flags.DEFINE_flag(_ShortHelp())
    _list_in_help()
    _check_early(check, arguments)
    filter_native_log()

    # The package loads TensorFlow: seconds.
    from keras_dsnet.utils.cli import run

    run(main)


def _list_in_help():
    """Makes --help show the flags that the files of this folder define."""
    folder = pathlib.Path(__file__).resolve().parent
    for name, defined in FLAGS.flags_by_module_dict().items():
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and pathlib.Path(file).resolve().parent == folder:
            for flag in defined:
                FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def _check_early(check, takes_arguments):
    try:
        remaining = _parsed(sys.argv)[1:]
    except flags.Error as error:
        line = [line for line in str(error).splitlines() if line.strip()][-1]
        missing = _MISSING.search(line)
        _exit_with(f"--{missing[1]} must be given" if missing else line)
    if remaining and not takes_arguments:
        _exit_with(f"unexpected argument {remaining[0]!r}: a flag is written --name=value")
    try:
        if check:
            check(*[remaining] if takes_arguments else [])
    except (ValueError, OSError) as error:
        if FLAGS.debug:
            raise
        _exit_with(next(line for line in _message(error).splitlines() if line.strip()))
    # absl logs while it unparses: without a handler, Python would add one that prints all twice.
    absl_logging.use_absl_handler()
    plain = logging.Formatter("{levelname}: {message}", style="{")
    absl_logging.get_absl_handler().setFormatter(plain)
    # `run` parses once more, into flags that may gather their values.
    for name in FLAGS:
        FLAGS[name].unparse()
    FLAGS.unparse_flags()


def _parsed(argv):
    """Parses the flags and returns what else the command line has; exits where it asks for help."""
    try:
        try:
            return FLAGS(argv)
        except SystemExit:
            # Only the help flags exit while flags are parsed, and absl gives them exit code 1.
            sys.stdout.flush()
            sys.exit(0)
    except BrokenPipeError:
        # Nobody reads on, as in `--help | head`; Python must not try to write the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _message(error):
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or repr(error)


def _exit_with(line):
    print(f"error: {line.strip()}", file=sys.stderr)
    sys.exit(_EXIT_ERROR)
