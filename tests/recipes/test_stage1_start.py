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

    def __init__(self, gates_trained, routes):
        self.gates_trained, self.routes = gates_trained, routes

    def reset_gates(self):
        self.gates_trained, self.routes = False, tuple(range(4))

for network in (Network(True, (1, 2)), Network(False, (0, 3))):
    stage.reset_gates(network)
    print(network.gates_trained, network.routes)

source = types.SimpleNamespace(description="folder pets", notes=("a few are skipped",))
other = types.SimpleNamespace(description="folder pets, held out", notes=("a few are skipped",))
stage.data.print_source("training on", source)
stage.data.print_source("evaluating on", other, known_notes=source.notes)
"""


def test_flags_of_the_next_stage_gates_of_weights_and_notes():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    flags, note, reset, kept, *data = done.stdout.splitlines()
    # Stage II needs the augmentation of stage I.
    assert flags == "['--color_jitter=0.5']"
    assert note.startswith(
        "note: the gates of --weights=cifar10 will not fit the weights of this run"
    )
    assert reset == "False (0, 1, 2, 3)"
    assert kept == "False (0, 3)"
    assert data == [
        "training on folder pets",
        "note: a few are skipped",
        "evaluating on folder pets, held out",
    ]
