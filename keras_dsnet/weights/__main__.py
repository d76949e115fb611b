"""Writes weights files: of a checkpoint of the authors' PyTorch code, or of a saved network.

python -m keras_dsnet.weights SOURCE.pth.tar TARGET.weights.h5
python -m keras_dsnet.weights SOURCE.keras TARGET.weights.h5 --float16
"""

import keras
from absl import flags

from keras_dsnet.utils import UserError, cli
from keras_dsnet.weights.weights_file import convert_checkpoint, save_compact_weights

FLAGS = flags.FLAGS
flags.DEFINE_bool("ema", None, "The moving average of the weights; none: where there is one.")
flags.DEFINE_bool("gates_trained", True, "Whether a checkpoint's gate was trained.")
flags.DEFINE_bool("float16", False, "Of a .keras file: half the size.")


def main(argv):
    """Converts the file that the command line names."""
    if len(argv) != 3:
        raise UserError(
            f"{len(argv) - 1} file names were given; usage: "
            "python -m keras_dsnet.weights SOURCE.pth.tar|SOURCE.keras TARGET.weights.h5"
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


if __name__ == "__main__":
    cli.run(main)
