"""Starts a recipe: what its flags alone show to be wrong is told before TensorFlow is loaded."""

import os
import sys

from absl import flags

FLAGS = flags.FLAGS
# TensorFlow's notes on the machine it runs on; warnings and errors still show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
_LEFT_TO_RUN = ("debug", "help", "h", "?")


def start(main, check=None):
    """Runs `main` as the whole program; see `keras_dsnet.utils.cli.run`.

    Args:
        main: a function of the command line's remaining arguments.
        check: a function without arguments that raises a ValueError or an OSError for a mistake
            that can be seen without TensorFlow.

    Raises:
        SystemExit: always.
    """
    names = {argument.lstrip("-").split("=")[0] for argument in sys.argv[1:]}
    if not any(name.startswith(_LEFT_TO_RUN) for name in names):
        _check_early(check)

    # The package loads TensorFlow: seconds.
    from keras_dsnet.utils.cli import run

    run(main)


def _check_early(check):
    try:
        FLAGS(sys.argv)
        if check:
            check()
    except (flags.Error, ValueError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        print(f"error: {lines[-1 if isinstance(error, flags.Error) else 0]}", file=sys.stderr)
        sys.exit(1)
    # `run` parses once more, into flags that may gather their values.
    for name in FLAGS:
        FLAGS[name].unparse()
    FLAGS.unparse_flags()
