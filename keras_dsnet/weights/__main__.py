"""The command line that writes weights files.

It converts a checkpoint of the authors' PyTorch code, or takes the weights out of a saved network:

python -m keras_dsnet.weights SOURCE.pth.tar TARGET.weights.h5
python -m keras_dsnet.weights SOURCE.keras TARGET.weights.h5 --float16
"""

import contextlib
import importlib
import re
import signal
import sys

import keras
from absl import flags

from keras_dsnet.models import DynamicSlimmableNetwork
from keras_dsnet.utils import UserError
from keras_dsnet.utils.command_line import command_flags, run_command
from keras_dsnet.weights.weights_file import convert_checkpoint, save_compact_weights

_USAGE = "python -m keras_dsnet.weights SOURCE.pth.tar|SOURCE.keras TARGET.weights.h5"

FLAGS = command_flags()
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


def main() -> int:
    """Runs the program and returns its exit code.

    A mistake of the user ends it with one line `error: ...` on stderr and exit code 1.
    """
    for name in ("SIGTERM", "SIGHUP"):
        # An exception, unlike the signal's default, removes a half-written file.
        number = getattr(signal, name)
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    return run_command(FLAGS, str(__doc__), lambda files: print(write_weights(files)))


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
        if FLAGS.ema is not None or not FLAGS.gates_trained:
            name = "--nogates_trained" if FLAGS.ema is None else "--ema"
            raise UserError(f"{name} is for a checkpoint (.pth.tar). Received: {source}")
        model = _load(source)
        if not isinstance(model, DynamicSlimmableNetwork):
            raise UserError(
                "a .keras file must hold a DynamicSlimmableNetwork. "
                f"Received: {source}, a {type(model).__name__}"
            )
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


def _load(source):
    # A detector is named as what it is, where its packages are installed.
    with contextlib.suppress(ImportError):
        importlib.import_module("keras_dsnet.detection")
    try:
        return keras.models.load_model(source, compile=False)
    except TypeError as error:
        # Keras's message has the whole configuration of the file.
        unknown = re.search(r"Could not locate class '[^']*'", str(error))
        reason = unknown[0] if unknown else str(error).splitlines()[0]
        raise UserError(
            f"a .keras file must hold a DynamicSlimmableNetwork. Received: {source} ({reason})"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
