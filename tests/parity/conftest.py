"""The numbers of the authors' code, and a network with their weights."""

import numpy as np
import pytest
from tiny_mobilenet import TINY_SPEC

from keras_dsnet.models import DynamicSlimmableNetwork
from keras_dsnet.weights import load_checkpoint


@pytest.fixture(scope="session")
def shared_parity(shared_dir):
    """The folder of the authors' numbers."""
    return shared_dir / "parity"


@pytest.fixture(scope="session")
def shared_numbers(shared_parity):
    """Reads one of the authors' `.npz` files as a dictionary."""

    def read(name):
        with np.load(shared_parity / f"{name}.npz") as arrays:
            return {key: arrays[key] for key in arrays.files}

    return read


@pytest.fixture
def new_tiny_network(shared_parity):
    """Makes the tiny network with the authors' weights, the average or the trained ones."""

    def make(size=64, ema=False, **options):
        model = DynamicSlimmableNetwork(
            TINY_SPEC, (size, size, 3), 10, classifier_activation=None, **options
        )
        load_checkpoint(model, shared_parity / "tiny_zip.pth.tar", ema=ema)
        return model

    return make


@pytest.fixture(scope="session")
def tiny_network(shared_parity):
    """The tiny network of any image size, which no test changes."""
    model = DynamicSlimmableNetwork(TINY_SPEC, (None, None, 3), 10, classifier_activation=None)
    load_checkpoint(model, shared_parity / "tiny_zip.pth.tar", ema=False)
    return model


@pytest.fixture(scope="session")
def to_images():
    """Turns the authors' uint8 images `[n, 3, height, width]` into what the network saw."""
    return lambda images: (np.moveaxis(images, 1, -1).astype("float32") - 128) / 64
