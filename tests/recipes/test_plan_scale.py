"""The model of training on many GPUs, and the counted costs of a step."""

import json
import math
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from keras_dsnet_recipes.benchmarks.step_costs import stage_one_costs

from keras_dsnet.layers import SwitchableBatchNormalization
from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, MobileNetStage
from keras_dsnet.training import L2SGD, SupernetTrainer

BENCHMARKS = pathlib.Path(__file__).resolve().parents[2] / "recipes" / "benchmarks"
STAGES = MobileNetStage(1, 2, (8,)), MobileNetStage(1, 2, (8, 12, 16), gated=True)


def make_trainer(synchronized=False, **options):
    spec = MobileNetSpec(stem=(8,), stages=STAGES, synchronized=synchronized)
    model = DynamicSlimmableNetwork(spec, input_shape=(32, 32, 3), classes=10)
    trainer = SupernetTrainer(model, **options)
    trainer.compile(L2SGD(0.01))
    return trainer


def test_passes_of_a_step_are_those_of_the_sandwich_rule():
    trainer = make_trainer()
    model, costs = trainer.model, stage_one_costs(trainer)
    front = make_front_madds(model)
    rest = {width: model.madds(width) - front for width in range(3)}
    # Only width 1 lies between the ends.
    assert costs.student_madds == front + rest[0] + 2 * rest[1] + rest[2]
    assert costs.teacher_madds == front + 2 * rest[1] + rest[2]
    assert stage_one_costs(make_trainer(target="in_place")).teacher_madds == 0


def make_front_madds(model):
    from keras_dsnet.models.costs import section_costs

    return section_costs(model, (0, 1, 2))[0]


def test_gradients_are_counted_once_for_every_trained_variable():
    trainer = make_trainer()
    costs = stage_one_costs(trainer)
    assert costs.gradients == sum(math.prod(v.shape) for v in trainer.optimized_variables)
    assert costs.synchronization == 0
    assert costs.reduced_bytes == 4 * (costs.gradients + costs.statistics)


def test_replicas_send_a_row_of_each_norm_they_trained():
    trainer = make_trainer()
    costs = stage_one_costs(trainer)
    norms = [
        layer
        for layer in trainer.model.supernet_layers
        if isinstance(layer, SwitchableBatchNormalization)
    ]
    # All but the last are before the gate and run once. The last runs along the widest, the
    # slimmest and two random paths, and only width 1 lies between the ends.
    *front, last = norms
    assert costs.collectives == 1 + len(front) + 4
    sent = [norm.channels[0] for norm in front] + [last.channels[at] for at in (0, 1, 1, 2)]
    assert costs.statistics == 2 * sum(sent)


def test_synchronized_statistics_are_counted():
    costs = stage_one_costs(make_trainer(synchronized=True))
    # At least the stem's norm: a number of values, and 8 sums and sums of squares, both ways.
    assert costs.synchronization > 2 * (1 + 2 * 8)
    # In place of the moving statistics, which all replicas then compute alike.
    assert costs.statistics == 0
    assert costs.collectives == 2 * stage_one_costs(make_trainer()).collectives - 1


@pytest.mark.long
def test_one_gpu_is_fully_efficient_and_more_are_faster(tmp_path):
    command = [sys.executable, BENCHMARKS / "plan_scale.py", f"--workdir={tmp_path}"]
    subprocess.run([*command, "--image_size=32", "--gpus=1,8,64"], check=True, capture_output=True)
    one, machine, cluster = json.loads((tmp_path / "scale.json").read_text())
    assert (one["efficiency"], one["reduce_ms"]) == (1, 0)
    assert one["hours"] > machine["hours"] > cluster["hours"]
    assert machine["efficiency"] > cluster["efficiency"]
    assert "plan_scale.py --workdir=" in (tmp_path / "table.md").read_text()


@pytest.mark.long
@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() or not all(map(shutil.which, ("unshare", "ip", "tc"))),
    reason="a network namespace needs root and tools of Linux",
)
def test_two_workers_send_the_predicted_bytes(tmp_path):
    program = BENCHMARKS / "measure_all_reduce.py"
    # What is on its way at the first and at the last step counts little among eight.
    command = [sys.executable, program, f"--workdir={tmp_path}", "--reduced_steps=8"]
    subprocess.run(command, check=True, capture_output=True)
    row = json.loads((tmp_path / "all_reduce.json").read_text())
    assert row["measured_bytes"] == pytest.approx(row["predicted_bytes"], rel=0.05)
