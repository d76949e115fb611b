"""The start of every program: one parse of its flags, one check of them.

The flags are parsed once and checked once, before TensorFlow or keras_dsnet is imported. A user's
mistake then ends the program within a second, with one line and exit code 1.
"""

import functools
import logging
import os
import pathlib
import re
import runpy
import signal
import sys
import traceback

from absl import app, flags
from absl import logging as absl_logging
from keras_dsnet_recipes.lib import supervisor
from keras_dsnet_recipes.lib.cluster import read_cluster
from keras_dsnet_recipes.lib.run_flags import PACKAGE, own_modules, shared_configuration

FLAGS = flags.FLAGS
# Hides TensorFlow's notes about the machine; warnings and errors are still shown.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
_EXIT_ERROR, _EXIT_INTERRUPTED = 1, 130
# Sent by `kill`, by batch systems and by a terminal that closes. As after Ctrl-C, half-written
# files are removed.
_ENDING_SIGNALS = ("SIGTERM", "SIGHUP")
# The state of a run in its work directory; without it, a run starts from the beginning.
_CHECKPOINT = "checkpoint.npz"
_MISSING_FLAG = re.compile(r"Flag --(\w+) must have a value other than None")
_MISSING_FLAGFILE = re.compile(r"Unable to open flagfile: \[Errno \d+\] (.*): '(.*)'")
# TensorFlow's bindings turn what a signal raises in a function that they call into an error with
# this text.
_SIGNAL_IN_NATIVE_CODE = re.compile(r"(?:KeyboardInterrupt|_Ended: (\d+))\b[^\n]*\n+At:\n")
_ANSI_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_GRAPH_NODE = re.compile(r"^\{\{.*?\}\}\s*")
# TensorFlow's form of an exception of a Python function inside a graph or a data pipeline. The
# name is that of `keras_dsnet.utils.UserError`.
_FROM_GRAPH = re.compile(r"\bUserError: (.+)")


class _ShortHelp(app.HelpFlag):
    """`-h`, in addition to absl's `-?` and `--help`."""

    NAME = "h"
    SHORT_NAME = None


class _Ended(BaseException):
    """A signal asked the program to end."""


def start(main, check=None, arguments=False):
    """Runs `main` as the whole program.

    A user's mistake ends the program with one line `error: ...` on stderr and exit code 1. These
    are mistakes: wrong flags, a `ValueError`, an `OSError`, TensorFlow's errors of a missing file,
    a missing permission and exhausted resources, and a `UserError` inside a data pipeline. The flag
    `--debug` shows the traceback instead. Ctrl-C ends the program with exit code 130, SIGTERM with
    143; the message explains how to resume where `--workdir` has a checkpoint.

    Args:
        main: Function of the command line's remaining arguments, the program's name first. Its
            return value is the exit code; None means 0.
        check: Function that raises a `ValueError` or an `OSError` for each mistake that can be
            found without TensorFlow. It takes the remaining arguments if `arguments` is True, and
            nothing otherwise.
        arguments: Bool, whether the program takes arguments that are not flags.

    Raises:
        SystemExit: Always, unless `main` has a bug, whose exception is not caught.
    """
    flags.DEFINE_bool("debug", False, "Show the traceback of an error.")
    app.define_help_flags()
    flags.DEFINE_flag(_ShortHelp())
    _show_own_flags_in_help()
    try:
        remaining = _parse(sys.argv)
        _check(check, remaining[1:], arguments)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(_EXIT_INTERRUPTED)
    filter_native_log()
    _set_up_logging()
    app.run(functools.partial(_run_guarded, main), argv=remaining, flags_parser=lambda argv: argv)


def ended_by(number):
    """Returns the exception that ends the program as the signal of this number does."""
    return _Ended(number)


def run_moved_program(path):
    """Runs the program of the same name in `benchmarks/` after a deprecation warning on stderr.

    Args:
        path: Str, path of the program at its old place.
    """
    old = pathlib.Path(path).resolve()
    new = old.parent / "benchmarks" / old.name
    print(
        f"warning: recipes/{old.name} is deprecated: use recipes/benchmarks/{old.name}",
        file=sys.stderr,
    )
    sys.argv[0] = str(new)
    runpy.run_path(str(new), run_name="__main__")


def _show_own_flags_in_help():
    modules = FLAGS.flags_by_module_dict()
    for name in own_modules():
        for flag in modules[name]:
            FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def _parse(argv):
    """Parses the flags; returns the remaining arguments, the program's name first."""
    try:
        return FLAGS(argv)
    except flags.Error as error:
        _exit_with(_flag_message(error))
    except UnicodeDecodeError as error:
        # absl reads flag files as text and does not name the file that is none.
        _exit_with(f"--flagfile must be a text file in UTF-8: {error}")
    except BrokenPipeError:
        _end_without_reader()
    except SystemExit:
        # Only help flags exit while flags are parsed, and absl gives them exit code 1.
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _end_without_reader()
        sys.exit(0)


def _end_without_reader():
    # The reader has ended, as in `--help | head`, so Python must not write the rest.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def _flag_message(error):
    line = [line for line in str(error).splitlines() if line.strip()][-1]
    if missing := _MISSING_FLAG.search(line):
        return f"--{missing[1]} must be given"
    if missing := _MISSING_FLAGFILE.search(line):
        return f"--flagfile={missing[2]} cannot be read: {missing[1]}"
    return line


def _check(check, remaining, takes_arguments):
    if remaining and not takes_arguments:
        _exit_with(f"unexpected argument {remaining[0]!r}: a flag is written --name=value")
    try:
        if check:
            check(*[remaining] if takes_arguments else [])
        if supervisor.is_wanted():
            _check_cluster()
    except (ValueError, OSError) as error:
        if FLAGS.debug:
            raise
        _exit_with(_one_line(error))


def _check_cluster():
    workers = len(read_cluster().workers)
    if "batch_size" in FLAGS and FLAGS.batch_size % workers:
        raise ValueError(
            f"--batch_size must be a multiple of the {workers} workers. "
            f"Received: --batch_size={FLAGS.batch_size}"
        )


def _set_up_logging():
    """Prints warnings of all libraries on stderr and the log of keras_dsnet on stdout."""
    # Without absl's handler Python would add a second one, which prints all lines twice.
    absl_logging.use_absl_handler()
    plain = logging.Formatter("{levelname}: {message}", style="{")
    absl_logging.get_absl_handler().setFormatter(plain)
    # `filter_native_log` has given Python another stderr, which is not filtered.
    absl_logging.get_absl_handler().python_handler.setStream(sys.stderr)
    if FLAGS["verbosity"].using_default_value:
        # absl would show the info lines of every library.
        FLAGS.verbosity = -1
    log = logging.StreamHandler(sys.stdout)
    log.setFormatter(_PackageFormatter())
    package = logging.getLogger("keras_dsnet")
    package.addHandler(log)
    package.setLevel(logging.INFO)
    package.propagate = False


class _PackageFormatter(logging.Formatter):
    """Prints the progress of the package unchanged, and puts the level before its warnings."""

    def format(self, record):
        line = super().format(record)
        return line if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {line}"


def _exit_with(line):
    _print_error(line.strip())
    sys.exit(_EXIT_ERROR)


def _print_error(line):
    print(f"error: {line}", file=sys.stderr)


def _run_guarded(main, argv):
    for name in _ENDING_SIGNALS:
        number = getattr(signal, name)
        # A program that was started by `nohup` ignores SIGHUP and must keep ignoring it.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)
    if not supervisor.is_wanted():
        return _guard(main, argv)
    return _guard(lambda _: _supervise(main, argv), argv)


def _supervise(main, argv):
    return supervisor.supervise(lambda: _guard(main, argv), shared_configuration())


def _guard(main, argv):
    try:
        return main(argv)
    except KeyboardInterrupt:
        return _stop("interrupted", _EXIT_INTERRUPTED)
    except _Ended as ended:
        return _stop("terminated", 128 + ended.args[0])
    except Exception as error:
        if inside := _SIGNAL_IN_NATIVE_CODE.match(str(error)):
            number = int(inside[1] or signal.SIGINT)
            return _stop("terminated" if inside[1] else "interrupted", 128 + number)
        from_graph = _FROM_GRAPH.search(str(error)) if _is_tensorflows(error) else None
        is_mistake = from_graph or isinstance(error, _mistakes())
        if supervisor.is_child() and not is_mistake and _is_tensorflows(error):
            # A collective fails in many ways when another worker is lost.
            if FLAGS.debug:
                traceback.print_exc()
            supervisor.report_failure(f"{_one_line(error)} (--debug shows where)")
        if FLAGS.debug or not is_mistake:
            raise
        line = from_graph[1] if from_graph else _one_line(error)
        _print_error(line + ("" if from_graph or _is_ours(error) else " (--debug shows where)"))
        return _EXIT_ERROR


def _stop(word, code):
    print(f"\n{word}{_how_to_resume()}", file=sys.stderr)
    return code


def _end(number, _):
    raise _Ended(number)


def _is_tensorflows(error):
    tensorflow = sys.modules.get("tensorflow")
    is_op_error = tensorflow is not None and isinstance(error, tensorflow.errors.OpError)
    return is_op_error or isinstance(error, (ValueError, OSError))


def _mistakes():
    """Returns the exceptions that a user can cause and correct; any other exception is a bug."""
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None:
        return ValueError, OSError
    errors = tensorflow.errors
    own = errors.NotFoundError, errors.PermissionDeniedError, errors.ResourceExhaustedError
    return ValueError, OSError, *own


def _how_to_resume():
    workdir = FLAGS["workdir"].value if "workdir" in FLAGS else None
    # Some programs with a --workdir save no state, and a new run has no checkpoint yet.
    if not workdir or not (pathlib.Path(workdir) / _CHECKPOINT).is_file():
        return ""
    return f": the same command goes on from the last checkpoint in {workdir}"


def _one_line(error):
    """Returns the first line of an error's message that describes the mistake."""
    if isinstance(error, OSError) and error.strerror:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return ": ".join([error.strerror, " -> ".join(names)] if names else [error.strerror])
    lines = [line.strip() for line in _ANSI_STYLE.sub("", str(error)).splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        return type(error).__name__
    if lines[0] == "in user code:":
        # An error inside a traced function: a traceback as text, then the message.
        lines = [line.split(": ", 1)[1] for line in lines if re.match(r"\w+: ", line)] or lines
    if lines[0].startswith("Exception encountered when calling"):
        lines = lines[1:] or lines
    return _GRAPH_NODE.sub("", lines[0])


def _is_ours(error):
    """Returns whether this package, its programs or the system wrote the message for the user.

    A ValueError that a library raised may be a bug of ours that only looks like a user's mistake.
    """
    if not isinstance(error, ValueError) or type(error).__name__ == "UserError":
        return True
    trace = error.__traceback__
    while trace.tb_next:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "")
    beside = pathlib.Path(trace.tb_frame.f_code.co_filename).resolve().parent
    own_folder = beside == pathlib.Path(sys.argv[0]).resolve().parent
    return own_folder or module.split(".")[0] in ("keras_dsnet", PACKAGE, "__main__")


# Lines of the level "info" in the formats of absl and TensorFlow, and lines that do not help the
# user of a program.
_NOISE = (
    rb"WARNING: All log messages before absl::InitializeLog",
    rb"I\d{4} ",
    rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: I ",
    rb"INFO: ",
    rb"To enable the following instructions: ",
    rb".*tf_tfl_flatbuffer_helpers",
    rb".*Skipping runtime version metadata in the model",
    rb"fully_quantize: \d+, inference_type: ",
    rb".*Unable to register cu\w+ factory",
    rb".*computation placer already registered",
    rb".*Skipping loop optimization for Merge node",
    rb"fully_quantize: \d",
    rb"Improper call to JPEG library",
    rb".*Skipping runtime version metadata in the model",
    rb".*oneDNN supports DT_INT32 only on platforms with AVX-512",
    rb".*Local rendezvous is aborting with status: OUT_OF_RANGE",
    # The programs report images that do not decode themselves.
    rb".*Local rendezvous is aborting with status: INVALID_ARGUMENT: (Unknown image|jpeg::)",
    rb".*Input of GeneratorDatasetOp::Dataset will not be optimized",
    # The error of TensorBoard's files on a full disk, which a program reports in one line.
    rb".*OP_REQUIRES failed at summary_kernels",
    rb".*Local rendezvous is aborting with status: RESOURCE_EXHAUSTED: .*events\.out\.",
    rb"\t(Failed to flush \d+ events to|Could not flush events file)",
    # The supervisor of a worker reports another one that was lost, in one line.
    rb".*(ring_alg|collective_executor|coordination_service\w*)\.cc:\d+\] ",
    rb".*Local rendezvous is aborting with status: (UNAVAILABLE|DEADLINE_EXCEEDED|CANCELLED)",
    rb"(/job:worker/|The tasks have crashed|RPC: /tensorflow\.Coordination|\n)",
    rb"Additional GRPC error information",
    rb":UNKNOWN:Error received from peer",
    rb"The error could be from a previous operation",
    rb"\t \[\[\{\{node .*Collective",
)
# These lines are errors only on a machine with a GPU.
_WITHOUT_GPU = (rb".*cuInit", rb".*CUDA_ERROR_NO_DEVICE", rb".*Cannot dlopen some GPU libraries")


def filter_native_log():
    """Filters the lines that native libraries write to stderr; Python's stderr is not filtered.

    The filter is a child process, so that the last lines of a process that aborts are shown too. It
    ends with this process and the processes that inherit its stderr.
    """
    patterns = _NOISE if any(pathlib.Path("/dev").glob("nvidia*")) else _NOISE + _WITHOUT_GPU
    noise = re.compile(rb"(?:" + b"|".join(patterns) + rb")")
    try:
        terminal = os.dup(2)
        reader, writer = os.pipe()
        child = os.fork()
    except OSError:
        # Without the filter the program only prints more lines.
        return
    if not child:
        _filter(reader, writer, terminal, noise)
    os.close(reader)
    sys.stderr.flush()
    os.dup2(writer, 2)
    os.close(writer)
    sys.stderr = os.fdopen(terminal, "w", buffering=1, encoding="utf-8", errors="backslashreplace")


def _filter(reader, writer, terminal, noise):
    """Copies lines until no process can write any more; then ends the child process."""
    import signal

    try:
        # Ctrl-C reaches all processes of a terminal; the filter ends after the program.
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        os.close(writer)
        # This process must not keep a pipe of the caller open.
        for descriptor in (0, 1, 2):
            os.close(descriptor)
        with os.fdopen(reader, "rb") as lines:
            for line in lines:
                if not noise.match(line):
                    os.write(terminal, line)
    finally:
        os._exit(0)
