"""Keeps TensorFlow's notes about the machine off the terminal; its warnings and errors stay."""

import os
import pathlib
import re
import sys

# Notes of the level "info" in the formats of absl and TensorFlow, and lines that mean nothing to
# the user of a program.
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
    # Images that do not decode: the programs name them.
    rb".*Local rendezvous is aborting with status: INVALID_ARGUMENT: (Unknown image|jpeg::)",
)
# An error only where there is a GPU that could have been used.
_WITHOUT_GPU = (rb".*cuInit", rb".*CUDA_ERROR_NO_DEVICE", rb".*Cannot dlopen some GPU libraries")


def filter_native_log():
    """Filters from now on what native libraries write to stderr; Python's stderr is untouched.

    A child process filters, so that the last words of a process that aborts are shown too. It ends
    with this process and those that inherit its stderr.
    """
    patterns = _NOISE if any(pathlib.Path("/dev").glob("nvidia*")) else _NOISE + _WITHOUT_GPU
    noise = re.compile(rb"(?:" + b"|".join(patterns) + rb")")
    try:
        terminal = os.dup(2)
        reader, writer = os.pipe()
        child = os.fork()
    except OSError:
        # More lines are better than no program.
        return
    if not child:
        _filter(reader, writer, terminal, noise)
    os.close(reader)
    sys.stderr.flush()
    os.dup2(writer, 2)
    os.close(writer)
    sys.stderr = os.fdopen(terminal, "w", buffering=1, encoding="utf-8", errors="backslashreplace")


def _filter(reader, writer, terminal, noise):
    """Copies lines until nobody can write any more; ends the process."""
    import signal

    try:
        # Ctrl-C reaches all processes of a terminal; the program ends by itself.
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        os.close(writer)
        # A pipe of the caller must not stay open because of this process.
        for descriptor in (0, 1, 2):
            os.close(descriptor)
        with os.fdopen(reader, "rb") as lines:
            for line in lines:
                if not noise.match(line):
                    os.write(terminal, line)
    finally:
        os._exit(0)
