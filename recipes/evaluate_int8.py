r"""Measures the accuracy that int8 costs a trained network, on test images.

    python recipes/evaluate_int8.py --model=runs/gate --workdir=runs/gate_int8 --images=1000

The program makes the int8 file of every layout and, for each path, an int8 file of only that path.
A network with one gate has a path for each route. With several gates the paths are those with one
width at every gate, and one path with a different width at each gate.

For each file it prints the top-1 accuracy, and the share of the images that the file and the
float32 network classify alike. It writes int8.json and int8.csv. All these files keep group
normalisation in float. A network with group normalisation gets one more file per path, with its
norms in int8, for comparison. docs/results/cifar10_resnet.md shows such a comparison.

--confidence adds files that route by the confidence steps of the network. Each row is for a share
of the images that goes on from the first step to the last, the least confident ones, so that all
files are compared at equal multiply-adds.

The images come from the data set that the network was trained on, or from --dataset. The ranges of
activations are measured on its training images, and the accuracy on its first test images.
"""

import pathlib

import numpy as np
from absl import flags
from keras_dsnet_recipes.lib import checks, data
from keras_dsnet_recipes.lib import flags as shared
from keras_dsnet_recipes.lib.start import start

FLAGS = flags.FLAGS
# Shares of the images that go on to the last confidence step.
_SHARES = (0.1, 0.2, 0.3, 0.5)
shared.define_saved_model()
shared.define_workdir("Folder that the files and the table are written into.")
shared.define_routes()
shared.define_representative_images()
shared.define_eval_split()
shared.define_crop_fraction()
flags.DEFINE_bool("confidence", False, "Also compare files that route by confidence.")
flags.DEFINE_integer("images", 1000, "Number of test images.", lower_bound=1)


def check_flags():
    """Raises an error for a mistake in the flags or in the files that they name."""
    model_file = checks.find_model(FLAGS.model)
    saved = checks.check_model(model_file)
    saved.check_widths(FLAGS.routes, "routes")
    if None in saved.image_size:
        raise ValueError(f"--model={FLAGS.model} takes images of any size; int8 needs a fixed size")
    if FLAGS.confidence and len(saved.steps) == 1:
        raise ValueError(
            f"--confidence needs two confidence steps. Received: --model={FLAGS.model}, which has "
            f"one, {saved.steps[0]}"
        )
    checks.check_workdir(FLAGS.workdir)
    data.check_representative_flags(model_file.parent, needed=True)


def test_images(network, folder, image_size):
    """Returns preprocessed test images and their labels.

    Returns:
        Tuple of float32 `[images, height, width, 3]` and int `[images]`.
    """
    from keras_dsnet.data import evaluation_pipeline, load_source

    values = data.training_source(folder)
    source = load_source(values["dataset"], values["data_dir"], "eval", eval_split=FLAGS.eval_split)
    data.check_names(network, source)
    data.check_apart(source, values["dataset"])
    count = min(FLAGS.images, source.num_examples)
    print(f"compared on {count} test images of {source.name}", flush=True)
    batches = evaluation_pipeline(
        source,
        image_size=image_size,
        batch_size=1,
        preprocess=network.normalization,
        crop_fraction=data.crop_of_network(network, folder),
    )
    pairs = [(image.numpy()[0], int(label[0])) for image, label in batches.take(count)]
    images, labels = zip(*pairs)
    return np.stack(images), np.array(labels)


def file_classes(filename, images, path=None):
    """Returns the classes that a file predicts; `path` forces a routed file onto one path."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(filename))
    bounds = {}
    if path is not None:
        bounds = dict.fromkeys(("min_width", "max_width"), np.array(path, "int32"))
    runner = interpreter.get_signature_runner("bounded" if bounds else "serving_default")
    outputs = [runner(image=image[None], **bounds)["output"][0] for image in images]
    return np.argmax(outputs, -1)


def network_classes(network, images, path, batch=250):
    """Returns the classes that the network predicts on a path."""
    path = path if network.num_gates > 1 else path[0]
    batches = np.split(images, range(batch, len(images), batch))
    return np.concatenate([np.argmax(network(part, path=path), -1) for part in batches])


def make_routed(network, routes, options, workdir):
    """Writes the int8 file of each layout; returns the filenames by layout.

    They route by gates, because only then can each gate be forced to another width.
    """
    from keras_dsnet.export import export_routed

    files = {layout: workdir / f"{layout}.tflite" for layout in shared.LAYOUTS}
    for layout, filename in files.items():
        export_routed(network, filename, routes, layout=layout, routing="gate", **options)
    return files


def make_static(network, path, options, workdir):
    """Writes the int8 files of one path; returns the filenames by their names in the table."""
    from keras_dsnet.export import export_subnetwork
    from keras_dsnet.layers import SlicedGroupNormalization

    name = f"static_{'_'.join(map(str, path))}"
    files = {"static int8": workdir / f"{name}.tflite"}
    if any(isinstance(layer, SlicedGroupNormalization) for layer in network.supernet_layers):
        files["static int8, norms too"] = workdir / f"{name}_int8_norms.tflite"
    for kind, filename in files.items():
        norms = {"float_norms": kind == "static int8"}
        export_subnetwork(network, path if len(path) > 1 else path[0], filename, **options, **norms)
    return files


def compare(network, routes, options, images, labels, workdir):
    """Yields the rows of the table.

    Each path has a row for the network, for each file of only that path, and for each routed file.
    """
    from keras_dsnet.export.export_routed import checked_paths

    routed = make_routed(network, routes, options, workdir)
    for path in checked_paths(routes, network.num_gates):
        expected = network_classes(network, images, path)
        static = make_static(network, path, options, workdir)
        classes = {"float32": expected}
        classes |= {name: file_classes(file, images) for name, file in static.items()}
        classes |= {f"{n} int8": file_classes(file, images, path) for n, file in routed.items()}
        for name, predicted in classes.items():
            top1, agreement = np.mean(predicted == labels), np.mean(predicted == expected)
            yield {"path": path, "file": name, "top1": top1, "agreement": agreement}


def compare_confidence(network, options, images, labels, workdir):
    """Yields rows of routing by confidence, at equal shares of images that go on."""
    from keras_dsnet.export import export_routed
    from keras_dsnet.models.costs import worst_case_madds

    steps = network.confidence_steps[0], network.confidence_steps[-1]
    runs = {"float32": network_steps(network, images, steps)}
    for layout in shared.LAYOUTS:
        filename = workdir / f"confidence_{layout}.tflite"
        routing = {"routing": "confidence", "steps": steps}
        export_routed(network, filename, layout=layout, **routing, **options)
        runs[f"{layout} int8"] = file_steps(filename, images)
    first, both = (worst_case_madds(network, "confidence", each) for each in (steps[:1], steps))
    for share in _SHARES:
        count = round(share * len(images))
        madds, expected = first + count / len(images) * (both - first), None
        for name, (classes, confidence) in runs.items():
            goes_on = np.argsort(confidence, kind="stable")[:count]
            predicted = classes[0].copy()
            predicted[goes_on] = classes[1][goes_on]
            expected = predicted if expected is None else expected
            top1, agreement = np.mean(predicted == labels), np.mean(predicted == expected)
            row = {"path": "confidence", "file": name, "top1": top1, "agreement": agreement}
            yield {**row, "share": share, "madds": madds}


def network_steps(network, images, steps, batch=250):
    """Returns the classes of the network at both steps, and the confidence of the first."""
    from keras_dsnet.models.routing import confidence_of

    batches = np.split(images, range(batch, len(images), batch))
    first, last = (
        np.concatenate([network.run_routed(part, "confidence", steps, (t,))[0] for part in batches])
        for t in (0.0, 1.0)
    )
    return [first.argmax(-1), last.argmax(-1)], confidence_of(first).numpy()


def file_steps(filename, images):
    """Returns the classes of a file at both steps, and the confidence of the first."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(filename)).get_signature_runner("tuned")
    runs = [
        [runner(image=image[None], thresholds=np.float32([limit])) for image in images]
        for limit in (0, 1)
    ]
    classes = [np.array([run["output"][0].argmax() for run in each]) for each in runs]
    return classes, np.array([run["confidence"][0] for run in runs[0]])


def main(_):
    import keras

    from keras_dsnet.runs import write_table

    workdir = pathlib.Path(FLAGS.workdir)
    model_file = checks.find_model(FLAGS.model)
    network = keras.models.load_model(model_file, compile=False)
    shape = network.input_shape[1:]
    ranges = data.representative_data(network, model_file.parent, shape[:2], "float32")
    # Loading the test images first finds their mistakes before the ranges are measured.
    images, labels = test_images(network, model_file.parent, shape[:2])
    workdir.mkdir(parents=True, exist_ok=True)
    options = {"quantize": "int8", "representative_data": list(ranges)}
    routes = tuple(FLAGS.routes or network.routes)
    rows = list(compare(network, routes, options, images, labels, workdir))
    if FLAGS.confidence:
        rows += compare_confidence(network, options, images, labels, workdir)
    print(write_table(rows, workdir, "int8"))


if __name__ == "__main__":
    start(main, check_flags)
