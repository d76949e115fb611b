"""The weights that come with the package: a DS-ResNet-50 for CIFAR-10, four gates untrained."""

import keras
import numpy as np
import pytest
from keras_dsnet.applications import DSResNet50
from keras_dsnet.applications.ds_mobilenet import CIFAR10_WEIGHTS as MOBILENET_WEIGHTS
from keras_dsnet.applications.ds_mobilenet import TINY_IMAGENET_WEIGHTS
from keras_dsnet.applications.ds_resnet50 import (
    CIFAR10_CLASSES,
    CIFAR10_WEIGHTS,
    preprocess_input,
)
from keras_dsnet_recipes.lib.reproduction.shipped import save_shipped

from keras_dsnet.data import evaluation_pipeline, load_source
from keras_dsnet.training import evaluate_paths


@pytest.fixture(scope="module")
def network():
    return DSResNet50(weights="cifar10")


def test_the_files_are_small():
    assert CIFAR10_WEIGHTS.stat().st_size < 5e6
    files = (CIFAR10_WEIGHTS, MOBILENET_WEIGHTS, TINY_IMAGENET_WEIGHTS)
    # The wheel stays under 15 MB.
    assert sum(file.stat().st_size for file in files) < 14e6


def test_a_network_of_ten_named_classes_with_a_threshold_and_untrained_gates(network):
    assert (network.routing, network.confidence_steps) == ("confidence", (0, 3))
    assert 0 < network.thresholds[0] < 1
    assert network.input_shape == (None, 32, 32, 3)
    assert network.class_names == CIFAR10_CLASSES
    assert (network.num_gates, network.gates_trained) == (4, False)
    assert network.routes == (0, 1, 2, 3)


@pytest.mark.long
@pytest.mark.needs_shared
def test_it_tells_photographs_apart_at_all_widths(network, shared_dir):
    source = load_source("cifar10", str(shared_dir / "tfds"), "eval", eval_split="test[:1000]")
    batches = evaluation_pipeline(
        source, image_size=32, batch_size=500, preprocess=preprocess_input
    )
    rows = {row["path"]: row for row in evaluate_paths(network, batches, paths=(0, 3))}
    # Accuracy on the first 1,000 test images; docs/results/cifar10_resnet.md has that on all.
    assert rows[0]["top1"] > 0.74
    assert rows[3]["top1"] > 0.79
    assert rows["dynamic"]["top1"] > rows[0]["top1"]
    assert rows["dynamic"]["madds"] < 0.6 * rows[3]["madds"]


@pytest.mark.long
def test_gates_start_from_it(network, tmp_path):
    model = keras.models.load_model(save_shipped("DSResNet50", "cifar10", tmp_path))
    assert (model.gates_trained, model.routing) == (False, "gate")
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    for path in ("slimmest", "widest", (0, 2, 3, 1)):
        np.testing.assert_array_equal(model(images, path=path), network(images, path=path))
