"""Converts a checkpoint of the authors' PyTorch code, without PyTorch.

python -m keras_dsnet.checkpoints SOURCE.pth.tar TARGET.weights.h5
"""

from absl import flags

from keras_dsnet.checkpoints.convert import convert_checkpoint
from keras_dsnet.utils import UserError, cli

FLAGS = flags.FLAGS
flags.DEFINE_bool("ema", None, "The moving average of the weights; none: where there is one.")
flags.DEFINE_bool("gates_trained", True, "Whether the slimming head was trained.")


def main(argv):
    """Converts the file that the command line names."""
    if len(argv) != 3:
        raise UserError(
            f"{len(argv) - 1} file names were given; usage: "
            "python -m keras_dsnet.checkpoints SOURCE.pth.tar TARGET.weights.h5"
        )
    model = convert_checkpoint(argv[1], argv[2], FLAGS.ema, FLAGS.gates_trained)
    print(
        f"{argv[2]}: DS-MobileNet, {model.num_widths} widths, {model.classes} classes, "
        f"routes {model.routes}"
    )


if __name__ == "__main__":
    cli.run(main)
