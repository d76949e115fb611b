"""The command that writes a weights file, from a PyTorch checkpoint or from a saved network.

python -m keras_dsnet.checkpoints SOURCE.pth.tar TARGET.weights.h5
python -m keras_dsnet.checkpoints SOURCE.keras TARGET.weights.h5 --float16
"""

import sys

import keras
from absl import app, flags

from keras_dsnet.checkpoints.compact_weights import save_compact_weights
from keras_dsnet.checkpoints.convert import convert_checkpoint
from keras_dsnet.utils import UserError

FLAGS = flags.FLAGS
flags.DEFINE_bool("ema", None, "Take the moving average of the weights. None: if there is one.")
flags.DEFINE_bool("gates_trained", True, "Whether the gate of a checkpoint was trained.")
flags.DEFINE_bool("float16", False, "Store a .keras file's weights in float16: half the size.")
flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def main(argv):
    """Converts the file that the command line names.

    Args:
        argv: the command line without its flags, the program's name first.

    Raises:
        UserError: the command line does not name two files, or names the wrong kind.
    """
    if len(argv) != 3:
        raise UserError(
            f"{len(argv) - 1} file names were given; usage: "
            "python -m keras_dsnet.checkpoints SOURCE.pth.tar|SOURCE.keras TARGET.weights.h5"
        )
    source, target = argv[1:]
    if source.endswith(".keras"):
        model = keras.models.load_model(source, compile=False)
        save_compact_weights(model, target) if FLAGS.float16 else model.save_weights(target)
    elif FLAGS.float16:
        raise UserError(f"--float16 is for a .keras file. Received: {source}")
    else:
        model = convert_checkpoint(source, target, FLAGS.ema, FLAGS.gates_trained)
    print(
        f"{target}: {model.name}, {model.num_widths} widths, {model.classes} classes, "
        f"routes {model.routes}"
    )


def _run(argv):
    """Runs `main`; a user's mistake is one line and exit code 1."""
    try:
        main(argv)
    except (ValueError, OSError) as error:
        if FLAGS.debug:
            raise
        return _report(error)
    return None


def _parse_flags(argv):
    try:
        remaining = FLAGS(argv)
    except flags.Error as error:
        sys.exit(_report(error))
    if FLAGS["verbosity"].using_default_value:
        # absl would show the info lines of every library.
        FLAGS.verbosity = -1
    return remaining


def _report(error):
    """Prints one line about an error; returns the exit code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        line = f"{error.strerror}: {error.filename}"
    print(f"error: {line}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    app.run(_run, flags_parser=_parse_flags)
