"""A network that was trained on whole images is evaluated on whole images."""

import json
import subprocess
import sys
import types

import pytest
from keras_dsnet_recipes.lib import data

# Flags, and whether the frame of an image is kept.
CASES = [
    ([], True),  # the augmentation of cifar10 is "cifar"
    (["--dataset=cifar10:3.*.*"], True),
    (["--augmentation=none"], True),
    (["--augmentation=imagenet"], False),
    (["--crop_fraction=0.75"], False),
]
# One process for all, since the flags of a program are defined once in a process.
PROGRAM = """
import json, sys, types
import numpy as np
from absl.testing import flagsaver
from keras_dsnet_recipes import imagenet_stage1 as stage
from keras_dsnet.data.image_source import ArraySource

framed = np.zeros((4, 32, 32, 3), np.uint8)
framed[:, :2] = framed[:, -2:] = framed[:, :, :2] = framed[:, :, -2:] = 255
source = ArraySource("framed", framed, [0, 1, 0, 1], 2)
model = types.SimpleNamespace(normalization=lambda images: images)
for flags, _ in json.loads(sys.argv[1]):
    with flagsaver.flagsaver():
        stage.FLAGS(["stage1", "--workdir=x", "--dataset=cifar10", *flags])
        ((images, _),) = stage.data.evaluation_dataset(model, source, (64, 64))
        print(float((images.numpy() > 200).mean()))
"""


@pytest.mark.long
def test_an_enlarged_image_keeps_its_frame_if_training_saw_it():
    command = [sys.executable, "-c", PROGRAM, json.dumps(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for (flags, has_frame), white in zip(CASES, map(float, done.stdout.split()), strict=True):
        # A frame of 2 pixels of 32 covers 23 % of the image.
        is_whole = white == pytest.approx(0.234, abs=0.03)
        assert is_whole if has_frame else white < 0.01, (flags, white)


@pytest.mark.parametrize(
    ("config", "fraction"),
    [
        ({"dataset": "cifar10"}, 1.0),
        ({"dataset": "cifar10:3.0.2"}, 1.0),
        ({"dataset": "digits", "augmentation": None}, 1.0),
        ({"dataset": "flowers"}, 0.875),
        ({"dataset": "flowers", "augmentation": "cifar"}, 1.0),
        ({"dataset": "cifar10", "augmentation": "imagenet"}, 0.875),
        ({"dataset": "cifar10", "crop_fraction": 0.9}, 0.9),
    ],
)
def test_the_run_decides_what_its_evaluations_keep(config, fraction, tmp_path, monkeypatch):
    assert data.crop_of_config(json.loads(json.dumps(config))) == fraction
    (tmp_path / "config.json").write_text(json.dumps(config))
    # A network of an older version does not know its crop.
    old, new = (types.SimpleNamespace(crop_fraction=known) for known in (None, 0.6))
    for flags in ({}, {"crop_fraction": None}):
        monkeypatch.setattr(data, "FLAGS", types.SimpleNamespace(**flags))
        assert data.crop_of_network(old, tmp_path) == fraction
        assert data.crop_of_network(new, tmp_path) == 0.6
        for folder, known in ((tmp_path / "elsewhere", 0.875), (None, 0.875)):
            assert data.crop_of_network(old, folder) == known
            assert data.crop_of_network(new, folder) == 0.6
    monkeypatch.setattr(data, "FLAGS", types.SimpleNamespace(crop_fraction=0.5))
    assert data.crop_of_network(new, tmp_path) == 0.5
