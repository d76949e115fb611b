"""A network that was trained on whole images is evaluated on whole images."""

import json
import subprocess
import sys
import types

import pytest
from keras_dsnet_recipes.lib import data

PROGRAM = """
import sys, types
import numpy as np
from keras_dsnet_recipes import imagenet_stage1 as stage
from keras_dsnet.data.image_source import ArraySource

stage.FLAGS(["stage1", "--workdir=x", "--dataset=cifar10", *sys.argv[1:]])
framed = np.zeros((4, 32, 32, 3), np.uint8)
framed[:, :2] = framed[:, -2:] = framed[:, :, :2] = framed[:, :, -2:] = 255
source = ArraySource("framed", framed, [0, 1, 0, 1], 2)
model = types.SimpleNamespace(normalization=lambda images: images)
((images, _),) = stage.data.evaluation_dataset(model, source, (64, 64))
print(float((images.numpy() > 200).mean()))
"""


@pytest.mark.parametrize(
    ("flags", "has_frame"),
    [
        ([], True),  # the augmentation of cifar10 is "cifar"
        (["--dataset=cifar10:3.*.*"], True),
        (["--augmentation=none"], True),
        (["--augmentation=imagenet"], False),
        (["--crop_fraction=0.75"], False),
    ],
)
def test_an_enlarged_image_keeps_its_frame_if_training_saw_it(flags, has_frame):
    command = [sys.executable, "-c", PROGRAM, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    white = float(done.stdout)
    # A frame of 2 pixels of 32 covers 23 % of the image.
    assert white == pytest.approx(0.234, abs=0.03) if has_frame else white < 0.01


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
