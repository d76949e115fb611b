"""The program that compares all routings on images that did not choose their settings."""

import json
import pathlib
import types

import numpy as np
import pytest
from keras_dsnet_recipes.lib import data
from programs import import_program, run_program
from routed_networks import SHORT_SPEC, random_images, small_network

import keras_dsnet.data

PROGRAM = pathlib.Path(__file__).resolve().parents[2] / "recipes/benchmarks/cross_fit.py"
cross_fit = import_program("keras_dsnet_recipes.benchmarks.cross_fit")


@pytest.fixture
def given(monkeypatch):
    """Returns a function that sets flags of the program."""

    def give(**values):
        values = {"dataset": "digits", "data_dir": None, "eval_split": None, **values}
        values |= {"model": None, "strict_images": False, "crop_fraction": None}
        for module in (cross_fit, data):
            monkeypatch.setattr(
                module, "FLAGS", types.SimpleNamespace(**values, eval_batch_size=50)
            )

    return give


@pytest.mark.long
def test_all_routings_are_compared(tmp_path):
    # It takes the size of its images from the data set.
    network = small_network(classes=10, spec=SHORT_SPEC, input_shape=(None, None, 3))
    network.save(tmp_path / "model.keras")
    done = run_program(
        PROGRAM,
        f"--model={tmp_path / 'model.keras'}",
        f"--workdir={tmp_path / 'fit'}",
        "--dataset=digits",
        "--eval_split=test[:300]",
        "--shares=0.99",
        "--drops=0.01",
        "--splits=2",
    )
    assert done.returncode == 0, done.stderr
    assert "split 'test[:300]': 300 images" in done.stdout
    rows = json.loads((tmp_path / "fit" / "tables" / "cross_fit.json").read_text())
    names = ["gate", "confidence", "confidence, proposed steps", "gate+confidence"]
    assert [row["routing"] for row in rows] == 2 * names
    for row in rows:
        assert row["gain_low"] <= row["gain"] <= row["gain_high"]
    text = (tmp_path / "fit" / "tables" / "cross_fit.md").read_text()
    assert text.count("| share 0.99 |") == 4
    assert "Steps (0, 3)." in text
    assert (tmp_path / "fit" / "plots" / "cross_fit.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("dataset", "split", "opened"),
    [
        ("digits", "test[:120]", "test[:120]"),
        ("digits", None, None),
        ("cifar10", "test", "test"),
        # The images that were held out of the training of the network in the package.
        ("cifar10", None, "train[45000:]"),
    ],
)
def test_the_split_is_that_of_the_flag(dataset, split, opened, given, monkeypatch):
    asked, digits = [], keras_dsnet.data.load_source("digits", split="eval", eval_split="test[:7]")

    def load_source(*_, eval_split, **options):
        asked.append(eval_split)
        return digits

    monkeypatch.setattr(keras_dsnet.data, "load_source", load_source)
    given(dataset=dataset, eval_split=split)
    batches, shape = cross_fit.load_images(small_network(classes=10, spec=SHORT_SPEC))
    assert asked == [opened]
    assert [images.shape for images, _ in batches] == [(7, 16, 16, 3)]
    assert shape == (16, 16, 3)


def test_a_network_of_open_size_takes_that_of_the_data_set(given):
    given(eval_split="test[:7]")
    network = small_network(classes=10, spec=SHORT_SPEC, input_shape=(None, 16, 3))
    batches, shape = cross_fit.load_images(network)
    assert [images.shape for images, _ in batches] == [(7, 32, 16, 3)]
    assert shape == (32, 16, 3)
    scores = cross_fit.ask_gate(network, [(random_images(4), np.zeros(4))], (16, 16, 3))
    assert scores.scores.shape == (4, 4)
    assert scores.madds == network.costs("slimmest", (16, 16, 3)).slimming
    photos = types.SimpleNamespace(name="photos", image_shape=None)
    with pytest.raises(ValueError, match="takes images of any size, and those of photos have no"):
        cross_fit.image_size(network, photos)
