r"""Writes one width of a trained network as a TFLite file for a phone.

    python recipes/export_mobile.py --model=runs/gate --path=slimmest --output=slimmest.tflite

The file holds builtin operators only and takes preprocessed images, float32 [1, height, width, 3].
It is run once against the network before it takes the place of an older one.
"""

import pathlib

from absl import flags

from keras_dsnet.utils.cli import run

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "model", None, "Work directory of a finished stage, or a .keras file.", required=True
)
flags.DEFINE_string("path", "widest", "slimmest, widest, largest, or a width.")
flags.DEFINE_string("output", None, "The .tflite file to write.", required=True)


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


def check_output():
    """Returns --output as a path whose folder exists."""
    output = pathlib.Path(FLAGS.output)
    if not output.parent.is_dir():
        raise FileNotFoundError(f"--output={FLAGS.output}: there is no folder {output.parent}")
    if output.is_dir():
        raise IsADirectoryError(f"--output={FLAGS.output} is a folder; name a .tflite file")
    return output


def main(_):
    model_file, output = find_model(), check_output()
    import keras

    from keras_dsnet.export import export_subnetwork
    from keras_dsnet.models import DynamicSlimmableNetwork

    network = keras.models.load_model(model_file)
    if not isinstance(network, DynamicSlimmableNetwork):
        raise ValueError(f"{model_file} is a {type(network).__name__}, no dynamic network")
    path = int(FLAGS.path) if FLAGS.path.isdigit() else FLAGS.path
    report = export_subnetwork(network, path, output)
    print(
        f"{output}: path {report['path']}, {report['madds'] / 1e6:.2f}M MAdds, "
        f"{report['bytes'] / 1e6:.2f} MB, largest difference {report['difference']:.1e}"
    )


if __name__ == "__main__":
    run(main)
