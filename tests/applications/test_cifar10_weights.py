"""The weights that come with the package: a CIFAR-10 network that routes by confidence."""

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
from keras_dsnet.training import evaluate_paths


@pytest.fixture(scope="module")
def network():
    return DSMobileNet(weights="cifar10")


def test_the_file_is_small():
    assert CIFAR10_WEIGHTS.stat().st_size < 5e6


@pytest.mark.slow
def test_loading_takes_seconds_at_most(network):
    times = []
    for _ in range(3):
        start = time.process_time()
        DSMobileNet(weights="cifar10")
        times.append(time.process_time() - start)
    # Processor time does not depend on other programs, but what earlier tests left in this process,
    # such as threads and memory to collect, counts in some of the loads.
    assert min(times) < 2


def test_a_network_of_ten_classes_with_a_threshold_and_a_trained_gate(network):
    assert network.routing == "confidence"
    assert network.confidence_steps == (0, 13)
    assert 0.7 < network.thresholds[0] < 1
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


@pytest.mark.slow
@pytest.mark.needs_shared
def test_it_tells_photographs_apart_with_half_of_the_work(network, shared_dir):
    source = load_source("cifar10", str(shared_dir / "tfds"), "eval", eval_split="test[:1000]")
    batches = evaluation_pipeline(
        source, image_size=32, batch_size=1000, preprocess=preprocess_input
    )
    rows = {row["path"]: row for row in evaluate_paths(network, batches, paths=(0, 13))}
    # Accuracy on the first 1,000 test images; docs/results/cifar10.md has that on all.
    assert rows[13]["top1"] > 0.9
    assert rows["dynamic"]["top1"] > rows[13]["top1"] - 0.01
    assert rows["dynamic"]["madds"] < 0.5 * rows[13]["madds"]
    # The gate is trained too: both of its routes are taken.
    assert min(rows["gate"]["shares"][0].values()) > 0.1


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
