"""The weights that come with the package: a CIFAR-10 network with a trained gate."""

import time

import numpy as np
import pytest
from keras_dsnet.applications import DSMobileNet
from keras_dsnet.applications.ds_mobilenet import (
    CIFAR10_CLASSES,
    CIFAR10_WEIGHTS,
    decode_predictions,
    preprocess_input,
)

from keras_dsnet.data import evaluation_pipeline, load_source


@pytest.fixture(scope="module")
def network():
    return DSMobileNet(weights="cifar10")


def test_the_file_is_small():
    assert CIFAR10_WEIGHTS.stat().st_size < 5e6


def test_loading_takes_seconds_at_most(network):
    times = []
    for _ in range(3):
        start = time.process_time()
        DSMobileNet(weights="cifar10")
        times.append(time.process_time() - start)
    # Processor time does not depend on other programs, but what earlier tests left in this process,
    # such as threads and memory to collect, counts in some of the loads.
    assert min(times) < 2


def test_a_network_of_ten_classes_with_a_trained_gate(network):
    assert network.input_shape == (None, 32, 32, 3)
    assert network.classes == 10
    assert network.gates_trained
    assert len(network.routes) > 1


def test_other_classes_take_all_but_the_classifier(network, caplog):
    other = DSMobileNet(weights="cifar10", classes=3)
    assert "all but the classifier" in caplog.text
    assert (other.routes, other.gates_trained) == (tuple(range(14)), False)
    assert other.class_names is None
    assert other.supernet_layers[0].kernel.numpy().tolist() == (
        network.supernet_layers[0].kernel.numpy().tolist()
    )


@pytest.mark.needs_shared
def test_it_tells_photographs_apart_and_gates_save_work(network, shared_dir):
    source = load_source("cifar10", str(shared_dir / "tfds"), "eval", eval_split="test[:1000]")
    batches = evaluation_pipeline(
        source, image_size=32, batch_size=1000, preprocess=preprocess_input
    )
    images, labels = (array.numpy() for array in next(iter(batches)))
    widest = np.argmax(network(images, path="widest"), 1) == labels
    dynamic = np.argmax(network(images), 1) == labels
    # Accuracy on the first 1,000 test images; docs/results/cifar10.md has that on all.
    assert widest.mean() > 0.88
    assert dynamic.mean() > widest.mean() - 0.02
    widths = network.route(images).numpy()[:, 0]
    assert np.bincount(widths).max() < 900
    madds = np.mean([network.madds(int(width)) for width in widths])
    assert madds < 0.52 * network.madds("widest")


def test_predictions_have_names(network):
    image = preprocess_input(np.zeros((1, 32, 32, 3), "uint8"))
    assert network.class_names == CIFAR10_CLASSES
    probabilities = network(image, path=0).numpy()
    ((best,),) = network.decode_predictions(probabilities, top=1)
    assert best[1] in CIFAR10_CLASSES
    assert 0 < best[2] <= 1
    assert decode_predictions(probabilities, 1, network.class_names) == [[best]]
    with pytest.raises(ValueError, match="`class_names` are needed"):
        decode_predictions(probabilities)
