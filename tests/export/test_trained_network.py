"""The trained CIFAR-10 network as int8 files, on real photographs."""

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras_dsnet.applications import DSMobileNet
from keras_dsnet.applications.ds_mobilenet import preprocess_input

from keras_dsnet.data import evaluation_pipeline, load_source
from keras_dsnet.export import DynamicInterpreter, export_routed, export_subnetwork

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.needs_shared]
ROUTES = (0, 13)


def photographs(folder, split, count):
    # Of the whole split the pipeline would decode more than are taken.
    splits = {"train_split": f"train[:{count}]", "eval_split": f"test[:{count}]"}
    source = load_source("cifar10", str(folder / "tfds"), split, **splits)
    batches = evaluation_pipeline(
        source, image_size=32, batch_size=count, preprocess=preprocess_input
    )
    return next(iter(batches))[0].numpy()


@pytest.fixture(scope="module")
def network():
    return DSMobileNet(weights="cifar10")


@pytest.fixture(scope="module")
def images(shared_dir):
    return photographs(shared_dir, "eval", 1000)


@pytest.fixture(scope="module")
def options(shared_dir):
    ranges = photographs(shared_dir, "train", 32)
    return {"quantize": "int8", "representative_data": ranges}


@pytest.fixture(scope="module")
def classes(network, images):
    """What each width of the network says that the images are."""
    return {width: np.argmax(network(images, path=width), 1) for width in ROUTES}


@pytest.fixture(scope="module")
def static_agreement(network, images, classes, options, tmp_path_factory):
    """The images on which the int8 file of a width alone agrees with the network."""
    agrees = {}
    for width in ROUTES:
        path = tmp_path_factory.mktemp("static") / "m.tflite"
        export_subnetwork(network, width, path, **options)
        runner = Interpreter(str(path)).get_signature_runner("serving_default")
        outputs = np.concatenate([runner(image=image[None])["output"] for image in images])
        agrees[width] = np.argmax(outputs, 1) == classes[width]
    return agrees


@pytest.mark.parametrize("layout", ["shared", "fast"])
def test_int8_agrees_as_often_as_files_of_each_width_alone(
    layout, network, images, classes, options, static_agreement, tmp_path
):
    path = tmp_path / "m.tflite"
    export_routed(network, path, ROUTES, layout=layout, verbose=False, **options)
    interpreter = DynamicInterpreter(path)
    for width in ROUTES:
        outputs = np.stack([interpreter.run(image, width, width)[0] for image in images])
        agrees, alone = np.argmax(outputs, 1) == classes[width], static_agreement[width]
        # Of the images that only one of the files gets right, each has about half.
        chance = 2 * np.sqrt(np.sum(agrees != alone))
        assert agrees.sum() >= alone.sum() - chance, (width, agrees.sum(), alone.sum(), chance)
