"""Stage I on two replicas: two logical CPUs, which a process must declare before it uses any."""

import pytest
from programs import run_program

PROGRAM = """
import sys

import keras
import numpy as np
import tensorflow as tf

from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, MobileNetStage
from keras_dsnet.training import L2SGD, SupernetTrainer, recalibrate_batch_norm

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
synchronized = sys.argv[1] == "synchronized"


def make_trainer():
    keras.utils.set_random_seed(0)
    stages = (
        MobileNetStage(1, 2, (6, 8)),
        MobileNetStage(1, 2, (8, 12, 16), gated=True),
        MobileNetStage(1, 1, (12, 16, 24)),
    )
    spec = MobileNetSpec(stem=(4, 6), stages=stages, synchronized=synchronized)
    model = DynamicSlimmableNetwork(
        spec, input_shape=(16, 16, 3), classes=5, classifier_activation=None
    )
    trainer = SupernetTrainer(model, num_random=1)
    trainer.compile(L2SGD(0.1, weight_decay=1e-2))
    return trainer


generator = np.random.default_rng(0)
images = generator.normal(size=(16, 16, 16, 3)).astype("float32")
batch = images, generator.integers(0, 5, 16).astype("int32")
batches = tf.data.Dataset.from_tensors(batch).repeat()


def train(trainer):
    trainer.fit(batches, steps_per_epoch=3, shuffle=False, verbose=0)


def apart(model):
    return max(
        np.abs(a.numpy() - b.numpy()).max()
        for a, b in (variable.value.values for variable in model.non_trainable_variables)
    )


def difference(first, second):
    return max(np.abs(a.numpy() - b.numpy()).max() for a, b in zip(first, second))


one = make_trainer()
train(one)
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    two = make_trainer()
train(two)
print("replicas", two.distribute_strategy.num_replicas_in_sync)
print("model", difference(one.model.variables, two.model.variables))
print("teacher", difference(one.teacher_variables, two.teacher_variables))
print("apart", apart(two.model))
# After training, outside of the strategy's scope, as the recipe does it.
for trainer in (one, two):
    recalibrate_batch_norm(trainer.model, batches, steps=2, verbose=False)
print("recalibrated", difference(one.model.variables, two.model.variables))
print("recalibrated_apart", apart(two.model))
"""


def run(folder, mode):
    program = folder / "program.py"
    program.write_text(PROGRAM)
    done = run_program(program, mode)
    assert done.returncode == 0, done.stderr
    return {name: float(value) for name, value in map(str.split, done.stdout.splitlines())}


@pytest.mark.slow
def test_two_replicas_with_synchronized_batch_norm_equal_one_device(tmp_path):
    figures = run(tmp_path, "synchronized")
    assert figures["replicas"] == 2
    assert figures["model"] < 1e-4
    assert figures["teacher"] < 1e-4
    assert figures["apart"] == 0
    assert figures["recalibrated"] < 1e-4
    assert figures["recalibrated_apart"] == 0


@pytest.mark.slow
def test_without_synchronized_batch_norm_replicas_agree_with_each_other_only(tmp_path):
    figures = run(tmp_path, "local")
    assert figures["apart"] == 0
    assert figures["model"] > 1e-4
