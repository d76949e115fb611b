r"""Writes one width of a trained network as a TFLite file for a phone.

    python recipes/export_mobile.py --model=runs/gate --path=slimmest --output=slimmest.tflite

The file holds builtin operators only and takes preprocessed images, float32 [1, height, width, 3].
It is run once against the network before it takes the place of an older one.
"""

import json
import os
import pathlib
import zipfile

from absl import flags
from start import start

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "model", None, "Work directory of a finished stage, or a .keras file.", required=True
)
flags.DEFINE_string("path", "widest", "slimmest, widest, largest, or a width.")
flags.DEFINE_string("output", None, "The .tflite file to write.", required=True)
flags.DEFINE_integer("image_size", None, "Side of the images; none: the network's.", lower_bound=1)


def find_model():
    """Returns the path of the saved network that --model names."""
    path = pathlib.Path(FLAGS.model)
    candidates = [path / "model.keras", path / "supernet.keras"] if path.is_dir() else [path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f"--model={FLAGS.model} is no .keras file and no work directory with model.keras (stage II)"
        " or supernet.keras (stage I)"
    )


def check_model(filename):
    """Raises a ValueError unless the file holds a network of this package; builds nothing."""
    try:
        with zipfile.ZipFile(filename) as archive:
            saved = json.loads(archive.read("config.json"))["class_name"]
            damaged = archive.testzip()
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError):
        raise ValueError(f"--model: {filename} is no .keras file, or is damaged") from None
    if damaged:
        raise ValueError(f"--model: {filename} is damaged at {damaged}")
    if saved != "DynamicSlimmableNetwork":
        raise ValueError(
            f"--model: {filename} holds a {saved}; name a DynamicSlimmableNetwork, as the recipes "
            "of the two stages save it"
        )


def check_output():
    """Returns --output as a path whose folder exists."""
    output = pathlib.Path(FLAGS.output)
    if not output.parent.is_dir():
        raise FileNotFoundError(f"--output={FLAGS.output}: there is no folder {output.parent}")
    if not os.access(output.parent, os.W_OK):
        raise PermissionError(f"--output={FLAGS.output}: {output.parent} cannot be written")
    if output.is_dir():
        raise IsADirectoryError(f"--output={FLAGS.output} is a folder; name a .tflite file")
    return output


def check_flags():
    """Checks --model and --output."""
    check_model(find_model())
    check_output()


def main(_):
    model_file, output = find_model(), check_output()
    check_model(model_file)
    import keras

    from keras_dsnet.export import export_subnetwork

    network = keras.models.load_model(model_file, compile=False)
    path = int(FLAGS.path) if FLAGS.path.isdecimal() else FLAGS.path
    shape = FLAGS.image_size and (FLAGS.image_size, FLAGS.image_size, 3)
    if not shape and None in network.input_shape[1:]:
        raise ValueError(f"{model_file} takes images of any size: choose one by --image_size")
    report = export_subnetwork(network, path, output, shape)
    print(
        f"{output}: path {report['path']}, {report['madds'] / 1e6:.2f}M MAdds, "
        f"{report['bytes'] / 1e6:.2f} MB, largest difference {report['difference']:.1e}"
    )


if __name__ == "__main__":
    start(main, check_flags)
