"""The command line that writes weights files.

It converts a checkpoint of the authors' PyTorch code, or takes the weights out of a saved network:

python -m keras_dsnet.weights SOURCE.pth.tar TARGET.weights.h5
python -m keras_dsnet.weights SOURCE.keras TARGET.weights.h5 --float16
"""

import signal
import sys

import keras
from absl import flags

from keras_dsnet.utils import UserError
from keras_dsnet.weights.weights_file import convert_checkpoint, save_compact_weights

_USAGE = "python -m keras_dsnet.weights SOURCE.pth.tar|SOURCE.keras TARGET.weights.h5"
_EXIT_ERROR, _EXIT_INTERRUPTED = 1, 130

# A separate set of flags: programs that import this module keep their own.
FLAGS = flags.FlagValues()
flags.DEFINE_bool(
    "ema",
    None,
    "Read the moving average of a checkpoint's weights instead of the weights themselves. By "
    "default the average is read if the checkpoint has one.",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "gates_trained", True, "Whether the gate of a checkpoint was trained.", flag_values=FLAGS
)
flags.DEFINE_bool(
    "float16",
    False,
    "Store the weights of a .keras file in half precision, at half the size.",
    flag_values=FLAGS,
)
flags.DEFINE_bool("debug", False, "Show the traceback of an error.", flag_values=FLAGS)
flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=FLAGS)


def main() -> int:
    """Runs the program and returns its exit code.

    A mistake of the user ends it with one line `error: ...` on stderr and exit code 1.
    """
    for name in ("SIGTERM", "SIGHUP"):
        # An exception, unlike the signal's default, removes a half-written file.
        number = getattr(signal, name)
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        files = FLAGS(sys.argv)[1:]
        if FLAGS.help:
            print(f"{__doc__}\n{FLAGS.get_help(include_special_flags=False)}")
            return 0
        print(write_weights(files))
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return _EXIT_INTERRUPTED
    except (flags.Error, ValueError, OSError) as error:
        if FLAGS.is_parsed() and FLAGS.debug:
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return _EXIT_ERROR
    return 0


def write_weights(files: list[str]) -> str:
    """Writes a weights file as the flags ask for.

    Args:
        files: List of str, the source's file name followed by the target's.

    Returns:
        One line that describes the target.

    Raises:
        UserError: There are not two file names, or a flag does not fit the source.
        OSError: A file cannot be opened or written.
    """
    if len(files) != 2:
        raise UserError(f"expected two file names; usage: {_USAGE}. Received: {len(files)}")
    source, target = files
    if source.endswith(".keras"):
        model = keras.models.load_model(source, compile=False)
        if FLAGS.float16:
            save_compact_weights(model, target)
        else:
            model.save_weights(target)
    elif FLAGS.float16:
        raise UserError(f"--float16 is for a .keras file. Received: {source}")
    else:
        model = convert_checkpoint(source, target, FLAGS.ema, FLAGS.gates_trained)
    return (
        f"{target}: {model.name}, {model.num_widths} widths, {model.classes} classes, "
        f"routes {model.routes}"
    )


def _one_line(error):
    """Returns the first line of an error's message, or the system's reason with the file's name."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
