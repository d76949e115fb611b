"""What stage I prints at its start, and the gates that it starts from."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys, types
from keras_dsnet_recipes import imagenet_stage1 as stage

stage.FLAGS(["stage1", "--weights=cifar10", "--workdir=runs/x", "--color_jitter=0.5"])
print(stage.run.data_flags())
stage.FLAGS.dataset = "cifar10:3.0.2"
print(stage.data.image_size(), stage.data.default_augmentation("cifar100:3.*.*"))

class Network:
    num_widths, spec = 4, None

    def __init__(self, gates_trained, routing):
        self.gates_trained, self.routing, self.routes = gates_trained, routing, (0, 3)

    def reset_gates(self):
        self.gates_trained, self.routing, self.routes = False, "gate", tuple(range(4))

for network in (Network(True, "gate"), Network(False, "confidence"), Network(False, "gate")):
    stage.reset_gates(network)
    print(network.gates_trained, network.routing, network.routes)

source = types.SimpleNamespace(description="folder pets", notes=("a few are skipped",))
other = types.SimpleNamespace(description="folder pets, held out", notes=("a few are skipped",))
stage.data.print_source("training on", source)
stage.data.print_source("evaluating on", other, known_notes=source.notes)
"""
DATA = """
import types
import numpy as np
from keras_dsnet_recipes import imagenet_stage1 as stage
from keras_dsnet.data.image_source import ArraySource

stage.FLAGS(["stage1", "--workdir=runs/x", "--dataset=digits", "--batch_size=64"])
for split in ("train[:50%]", "test", None):
    stage.FLAGS.eval_split = split
    stage.data.load_sources()
stage.FLAGS.dataset = "cifar10"
ramp = np.broadcast_to(np.arange(0, 256, 8, dtype=np.uint8)[:, None], (64, 32, 32, 3))
source = ArraySource("ramps", ramp, [0, 1] * 32, 2)
model = types.SimpleNamespace(normalization=lambda images: images)
for hflip in (None, False):
    stage.FLAGS.hflip = hflip
    images, _ = next(iter(stage.data.training_dataset(model, source, 0, (32, 32))))
    rises = images.numpy()[:, 8:24, 8] < images.numpy()[:, 8:24, 24]
    print("mirrored", not rises.all())
print(stage.run.data_flags())
"""


@pytest.mark.slow
def test_splits_that_overlap_and_images_that_must_not_be_mirrored():
    done = subprocess.run([sys.executable, "-c", DATA], capture_output=True, text=True, check=True)
    *sources, mirrored, kept, flags = done.stdout.splitlines()
    (warning,) = (line for line in sources if line.startswith("warning"))
    assert "the evaluation on 'train[:50%]' has images of 'train', which is trained" in warning
    assert (mirrored, kept) == ("mirrored True", "mirrored False")
    assert "'--hflip=False'" in flags


def test_flags_of_the_next_stage_gates_of_weights_and_notes():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    flags, version, note, gates, other_note, steps, untrained, *data = done.stdout.splitlines()
    # Stage II needs the augmentation of stage I.
    assert flags == "['--color_jitter=0.5']"
    assert version == "32 cifar"
    assert note.startswith(
        "note: the gates of --weights=cifar10 will not fit the weights of this run"
    )
    assert other_note.startswith("note: the thresholds of --weights=cifar10 will not fit")
    # The released supernet has an untrained gate, and the routes 0 to 3.
    assert gates == steps == untrained == "False gate (0, 1, 2, 3)"
    assert data == [
        "training on folder pets",
        "note: a few are skipped",
        "evaluating on folder pets, held out",
    ]
