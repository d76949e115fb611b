r"""Writes a trained network as a TFLite file for a phone.

    python recipes/export_mobile.py --model=runs/gate --quantize=int8 --output=m.tflite
    python recipes/export_mobile.py --model=runs/gate --path=slimmest --output=slimmest.tflite
    python recipes/export_mobile.py --weights=imagenet --output=m.tflite
    python recipes/export_mobile.py --model=runs/pets --quantize=int8 --output=pets.tflite

The first command writes a file with all routes and the gate that chooses a route for each image, as
`keras_dsnet.export.export_routed` describes. Of a network that routes by confidence (calibrate.py)
it writes a file that does so too. The second command writes a file of one sub-network. The third
command makes a dynamic file of the weights that the authors released for DS-MobileNet. Their gate
is not trained, so the file routes by confidence, with thresholds of 0.7 that nobody calibrated.
The last command writes the file of a detector, trained by voc_fssd.py.

All files use only builtin operators. Each new file is compared with the network before it replaces
an older one. docs/results/mobile.md has the measured sizes and latencies.

For int8 the ranges of activations are measured on training images, preprocessed as for evaluation.
By default these are images that the network was trained on.
"""

import json
import pathlib
import warnings

from absl import flags
from keras_dsnet_recipes.lib import checks, data, report, run
from keras_dsnet_recipes.lib import flags as shared
from keras_dsnet_recipes.lib.start import start

FLAGS = flags.FLAGS
shared.define_saved_model(required=False)
_SAVED = ("model.keras", "supernet.keras", "detector.keras")
shared.define_path(
    "weights",
    None,
    "Weights of DS-MobileNet instead of --model: imagenet, cifar10, tiny_imagenet, a .weights.h5 "
    "or a .pth.tar file. If their gate is not trained, the file routes by confidence.",
)
shared.define_path("output", None, "Name of the .tflite file to write.", required=True)
shared.define_routes()
shared.define_routing()
shared.define_confidence()
shared.define_path_through(
    "path",
    "Path of a sub-network to export instead of all routes: slimmest, widest, largest, a width, or "
    "one width per gate such as 0,2,1.",
)
shared.define_quantize()
flags.DEFINE_enum(
    "input_type",
    "float32",
    ["float32", "uint8"],
    "Type of the input: float32 takes preprocessed images, uint8 takes raw pixels, which the file "
    "normalises.",
)
shared.define_image_size("Side of the images in pixels. Defaults to that of the network.")
shared.define_crop_fraction()
shared.define_representative_images()


def check_flags():
    """Raises an error for a mistake in the flags or in the files that they name."""
    checks.check_output(FLAGS.output)
    if (FLAGS.model is None) == (FLAGS.weights is None):
        raise ValueError(
            "exactly one of --model and --weights must be given. "
            f"Received: --model={FLAGS.model}, --weights={FLAGS.weights}"
        )
    folder, saved = None, checks.SavedNetwork({}, "weights")
    if FLAGS.model is not None:
        model_file = checks.find_model(FLAGS.model, filenames=_SAVED)
        folder, saved = model_file.parent, checks.check_model(model_file, detectors=True)
    for name in ("routes", "layout", "routing", "steps", "thresholds"):
        if FLAGS.path is not None and FLAGS[name].value != FLAGS[name].default:
            raise ValueError(
                f"--{name} is for a file with routes; --path={FLAGS.path} asks for one sub-network"
            )
    saved.check_widths(FLAGS.routes, "routes")
    steps = FLAGS.steps
    if steps is None and FLAGS.routes and not set(saved.steps or ()) <= set(FLAGS.routes):
        # What the export tries where --routes lack a step of the network.
        steps = list(dict.fromkeys((FLAGS.routes[0], FLAGS.routes[-1])))
    saved.check_confidence(steps, FLAGS.thresholds)
    routing = FLAGS.routing or saved.routing
    if FLAGS.path is None and routing == "gate" and (FLAGS.steps or FLAGS.thresholds):
        name = "steps" if FLAGS.steps else "thresholds"
        whose = "--routing" if FLAGS.routing else f"the routing of --model={FLAGS.model}"
        raise ValueError(
            f"--{name} is for routing by confidence, which --routing=confidence asks for. "
            f"Received: {whose} is 'gate'"
        )
    if isinstance(FLAGS.path, (int, tuple)):
        path = FLAGS.path if isinstance(FLAGS.path, tuple) else (FLAGS.path,)
        saved.check_path(path, "path", separator=",")
    if FLAGS.image_size is None and FLAGS.model is not None:
        saved.check_image_size(None)
    unused = FLAGS.path is not None and FLAGS.quantize != "int8"
    if FLAGS.crop_fraction and (saved.is_detector or unused):
        why = "detectors see whole images"
        if not saved.is_detector:
            why = "the file of one --path does not name it, and only int8 is measured on images"
        raise ValueError(
            f"--crop_fraction does not apply: {why}. "
            f"Received: --crop_fraction={FLAGS.crop_fraction:g}"
        )
    data.check_representative_flags(folder, FLAGS.quantize == "int8", saved.is_detector)


def routing_options():
    """Returns the flags of routing as arguments of `export_routed`."""
    return {name: FLAGS[name].value for name in ("routing", "steps", "thresholds")}


def input_shape(network):
    """Returns the shape of the images that the file takes."""
    if FLAGS.image_size:
        return (FLAGS.image_size, FLAGS.image_size, 3)
    return network.input_shape[1:]


def warn_of_gates(network, folder):
    """Warns of gates that are not trained for the routes, and of better widths outside them."""
    routes = tuple(FLAGS.routes or network.routes)
    named = f"--model={FLAGS.model}" if FLAGS.model else f"--weights={FLAGS.weights}"
    by_gate = (FLAGS.routing or network.routing) != "confidence"
    if by_gate and not network.gates_trained:
        print(
            f"warning: the gates of {named} are not trained: the choices of the "
            "file mean nothing. Train the gates by stage II, export with --routing=confidence, or "
            "force widths by the signature 'bounded'",
            flush=True,
        )
    elif by_gate and routes != network.routes:
        names = ",".join(map(str, network.routes))
        print(
            f"warning: the gates were trained to choose among {names}, not among "
            f"--routes={','.join(map(str, routes))}: train them for these by stage II",
            flush=True,
        )
    if folder is None:
        return
    try:
        rows = json.loads((folder / "tables" / "paths.json").read_text("utf-8"))
        how = "stage II with --routes that include it makes it a route"
        report.warn_of_better_widths(rows, routes, None, how)
    except (OSError, ValueError, KeyError, TypeError):
        # A folder without an evaluation has no figures of the other widths.
        return


def load_network():
    """Returns the network of --model or --weights, and the folder of --model or None."""
    import keras
    from keras_dsnet.applications import DSMobileNet

    if FLAGS.model is not None:
        # Keras finds a class by its name only after an import.
        import keras_dsnet.detection  # noqa: F401

        model_file = checks.find_model(FLAGS.model, filenames=_SAVED)
        return keras.models.load_model(model_file, compile=False), model_file.parent
    size = FLAGS.image_size
    shape = (size, size, 3) if size else None
    network = DSMobileNet(weights=FLAGS.weights, input_shape=shape)
    if not network.gates_trained:
        # The routes of a gate that is not trained mean nothing.
        network.confidence_steps = (0, network.num_widths - 1)
        network.routing = "confidence"
        tell_of_confidence(network)
    return network, None


def tell_of_confidence(network):
    """Prints that the file routes by confidence because --weights have no trained gate."""
    if FLAGS.path is not None or FLAGS.routing not in (None, "confidence"):
        return
    from keras_dsnet.export.options import plan_routing

    _, plan = plan_routing(network, FLAGS.routes, "confidence", FLAGS.steps, FLAGS.thresholds)
    names = ", ".join(map(str, plan.thresholds))
    advice = "" if FLAGS.thresholds else ". Calibrate the thresholds on your own labelled images"
    print(
        f"--weights={FLAGS.weights} has no trained gate: the file routes by confidence, with the "
        f"steps {plan.steps} and the thresholds {names}{advice}",
        flush=True,
    )


def main(_):
    from keras_dsnet.export import export_routed, export_subnetwork
    from keras_dsnet.utils.atomic_file import remove_leftovers_of_the_dead

    remove_leftovers_of_the_dead(pathlib.Path(FLAGS.output).parent)
    network, folder = load_network()
    shape = input_shape(network)
    options = {"input_shape": shape, "input_type": FLAGS.input_type}
    if FLAGS.quantize != "none":
        options["quantize"] = FLAGS.quantize
    crop = None if hasattr(network, "anchors") else data.crop_of_network(network, folder)
    if FLAGS.quantize == "int8":
        options["representative_data"] = data.representative_data(
            network, folder, shape[:2], FLAGS.input_type, crop
        )
    if FLAGS.path is None:
        warn_of_gates(network, folder)
        options |= {"layout": FLAGS.layout, "crop_fraction": crop}
        with warnings.catch_warnings():
            # `warn_of_gates` has printed this warning in one line.
            warnings.filterwarnings("ignore", "The gate of this network (is not|was) trained")
            options |= routing_options()
            export_routed(network, FLAGS.output, FLAGS.routes, **options)
    else:
        made = export_subnetwork(network, FLAGS.path, FLAGS.output, **options)
        print(
            f"{FLAGS.output}: path {made['path']}, {made['madds'] / 1e6:.2f}M MAdds, "
            f"{made['bytes'] / 1e6:.2f} MB, largest difference {made['difference']:.1e}"
        )
    print_end()


def print_end():
    """Prints the file that was written and the next command."""
    # The benchmark runs files that choose routes themselves.
    if FLAGS.path is not None or FLAGS.layout == "staged":
        print(f"\nwritten: {FLAGS.output}", flush=True)
        return
    workdir = pathlib.Path(FLAGS.output).with_suffix("")
    following = run.command(
        "benchmark",
        FLAGS.output,
        # Static files to compare with need a saved network.
        run.flag("model", FLAGS.model),
        f"--workdir={workdir}_benchmark",
        "--baseline=none",
    )
    run.print_end([FLAGS.output], "time every route on this machine", following)


if __name__ == "__main__":
    start(main, check_flags)
