r"""Writes a trained network as a TFLite file for a phone.

    python recipes/export_mobile.py --model=runs/gate --quantize=int8 --output=m.tflite
    python recipes/export_mobile.py --model=runs/gate --path=slimmest --output=slimmest.tflite

The first command's file holds all routes and the gate that chooses one for every image; see
`keras_dsnet.export.export_routed`. The second's holds one sub-network. Both have builtin operators
only and are run against the network before they take the place of an older one.

For int8 the ranges of activations are measured on training images, prepared as for evaluation: by
default those that the network was trained on.
"""

import os
import pathlib

import representative_data
from absl import flags
from start import start
from trained_model import check_model, find_model, parse_routes

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "model", None, "Work directory of a finished stage, or a .keras file.", required=True
)
flags.DEFINE_string("output", None, "The .tflite file to write.", required=True)
flags.DEFINE_list("routes", None, "Widths to choose from, as 0,4,8,13; none: the network's.")
flags.DEFINE_string(
    "path",
    None,
    "One sub-network instead: slimmest, widest, largest, a width, or one per gate, as 0,2,1.",
)
flags.DEFINE_enum(
    "quantize",
    "none",
    ["none", "float16", "dynamic", "int8"],
    "float16 and dynamic (int8): weights; int8: weights and activations.",
)
flags.DEFINE_enum(
    "layout",
    "shared",
    ["shared", "fast"],
    "shared: one copy of the weights; fast: one for each route.",
)
flags.DEFINE_enum(
    "input_type",
    "float32",
    ["float32", "uint8"],
    "float32: preprocessed images; uint8: raw pixels, which the file normalises.",
)
flags.DEFINE_integer("image_size", None, "Side of the images; none: the network's.", lower_bound=1)
representative_data.define_flags()


def check_output():
    """Raises an OSError unless --output can be written."""
    output = pathlib.Path(FLAGS.output)
    if not output.parent.is_dir():
        raise FileNotFoundError(f"--output={FLAGS.output}: there is no folder {output.parent}")
    if not os.access(output.parent, os.W_OK):
        raise PermissionError(f"--output={FLAGS.output}: {output.parent} cannot be written")
    if output.is_dir():
        raise IsADirectoryError(f"--output={FLAGS.output} is a folder; name a .tflite file")


def check_flags():
    """Raises an error for what is wrong with the flags or the files that they name."""
    model_file = find_model(FLAGS.model)
    check_model(model_file)
    check_output()
    parse_routes(FLAGS.routes)
    for name in ("routes", "layout", "input_type"):
        if FLAGS.path is not None and FLAGS[name].value != FLAGS[name].default:
            raise ValueError(
                f"--{name} is for a file with routes; --path={FLAGS.path} asks for one sub-network"
            )
    representative_data.check_flags(model_file.parent, needed=FLAGS.quantize == "int8")


def input_shape(network):
    """Returns the shape of the images that the file takes."""
    if FLAGS.image_size:
        return (FLAGS.image_size, FLAGS.image_size, 3)
    shape = network.input_shape[1:]
    if None in shape:
        raise ValueError(
            f"--model={FLAGS.model} takes images of any size: choose one by --image_size"
        )
    return shape


def parse_path():
    """Returns the path of --path as a call of the network takes it."""
    widths = FLAGS.path.split(",")
    if not all(width.isdecimal() for width in widths):
        return FLAGS.path
    return tuple(map(int, widths)) if len(widths) > 1 else int(FLAGS.path)


def main(_):
    check_flags()
    import keras

    from keras_dsnet.export import export_routed, export_subnetwork

    folder = find_model(FLAGS.model).parent
    network = keras.models.load_model(find_model(FLAGS.model), compile=False)
    shape = input_shape(network)
    options = {"input_shape": shape}
    if FLAGS.quantize != "none":
        options["quantize"] = FLAGS.quantize
    if FLAGS.quantize == "int8":
        options["representative_data"] = representative_data.representative_data(
            folder, shape[:2], FLAGS.input_type
        )
    if FLAGS.path is None:
        options |= {"layout": FLAGS.layout, "input_type": FLAGS.input_type}
        export_routed(network, FLAGS.output, parse_routes(FLAGS.routes), **options)
        return
    report = export_subnetwork(network, parse_path(), FLAGS.output, **options)
    print(
        f"{FLAGS.output}: path {report['path']}, {report['madds'] / 1e6:.2f}M MAdds, "
        f"{report['bytes'] / 1e6:.2f} MB, largest difference {report['difference']:.1e}"
    )


if __name__ == "__main__":
    start(main, check_flags)
