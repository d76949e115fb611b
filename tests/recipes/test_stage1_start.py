"""What stage I prints at its start, and the gates that it starts from."""

import subprocess
import sys

PROGRAM = """
import sys, types
from keras_dsnet_recipes import imagenet_stage1 as stage

stage.FLAGS(["stage1", "--weights=cifar10", "--workdir=runs/x", "--color_jitter=0.5"])
print(stage.run.data_flags())

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


def test_flags_of_the_next_stage_gates_of_weights_and_notes():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    flags, note, gates, other_note, steps, untrained, *data = done.stdout.splitlines()
    # Stage II needs the augmentation of stage I.
    assert flags == "['--color_jitter=0.5']"
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
