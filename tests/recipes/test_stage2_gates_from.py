"""Stage II that starts from the gates of another run, with their routes."""

import os
import pathlib
import subprocess
import sys

import pytest

TESTS = pathlib.Path(__file__).resolve().parents[1]

PROGRAM = """
import sys
from keras_dsnet_recipes import imagenet_stage2 as stage
from tiny_families import TINY_EFFICIENTNET, tiny_network

folder = sys.argv[1]
network = tiny_network(TINY_EFFICIENTNET)
network.save(f"{folder}/supernet.keras")
network.routes = (0, 1)
network.gates_trained = True
network.save(f"{folder}/model.keras")
flags = ["stage2", f"--supernet={folder}/supernet.keras", f"--workdir={folder}/run"]
gates = f"--gates_from={folder}/model.keras"
for more in [], [gates], ["--routes=0,2"], [gates, "--routes=0,2"]:
    stage.FLAGS.unparse_flags()
    stage.FLAGS["routes"].unparse()
    stage.FLAGS["gates_from"].unparse()
    stage.FLAGS([*flags, *more])
    print(*stage.choose_routes(stage.load_supernet()))
"""


@pytest.mark.long
def test_gates_keep_the_routes_that_they_were_trained_for(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-4:] == ["0 1 2", "0 1", "0 2", "0 2"]
