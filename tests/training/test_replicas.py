"""Training on two replicas: two logical CPUs, which a process must declare before it uses any."""

import pytest
from programs import run_program

HEAD = """
import sys

import keras
import numpy as np
import tensorflow as tf

from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, MobileNetStage
from keras_dsnet.training import L2SGD, GateTrainer, SupernetTrainer, recalibrate_batch_norm

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
synchronized = sys.argv[1] == "synchronized"


def make_model():
    keras.utils.set_random_seed(0)
    stages = (
        MobileNetStage(1, 2, (6, 8)),
        MobileNetStage(1, 2, (8, 12, 16), gated=True),
        MobileNetStage(1, 1, (12, 16, 24)),
    )
    spec = MobileNetSpec(stem=(4, 6), stages=stages, synchronized=synchronized)
    return DynamicSlimmableNetwork(
        spec, input_shape=(16, 16, 3), classes=5, classifier_activation=None
    )
"""
STAGE_1 = """
def make_trainer():
    trainer = SupernetTrainer(make_model(), num_random=1)
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
# After training, outside the scope of the strategy, as the recipes do.
for trainer in (one, two):
    recalibrate_batch_norm(trainer.model, batches, steps=2, verbose=False)
print("recalibrated", difference(one.model.variables, two.model.variables))
print("recalibrated_apart", apart(two.model))
"""
STAGE_2 = """
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    trainer = GateTrainer(make_model(), loss_weights=(1, 0, 0))
    trainer.compile(keras.optimizers.SGD(0.1))
images = tf.random.stateless_normal((64, 16, 16, 3), [0, 0])
labels = tf.zeros(64, tf.int32)


@tf.function
def draw():
    return strategy.run(lambda: trainer.losses(images, labels, trainer._noise_seed())[1])


for name in ("first", "again"):
    one, other = strategy.experimental_local_results(draw()["choices"][0])
    print(name, np.mean(np.argmax(one, 1) == np.argmax(other, 1)))
    print(name + "_sum", np.sum(np.argmax(one, 1)) + 100 * np.sum(np.argmax(other, 1)))
trainer.fit(images, labels, batch_size=32, verbose=0)
head = trainer.optimized_variables[0].value
print("apart", np.abs(head.values[0].numpy() - head.values[1].numpy()).max())
"""
SCOPES = """
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
outside = make_model()
with strategy.scope():
    inside = make_model()
    inner_trainer = GateTrainer(inside)


def compile_inside():
    trainer = GateTrainer(outside)
    with strategy.scope():
        trainer.compile(L2SGD(0.1))


def wrap_inside():
    with strategy.scope():
        SupernetTrainer(outside)


attempts = {
    "network outside": wrap_inside,
    "trainer outside": lambda: GateTrainer(inside),
    "optimizer outside": lambda: inner_trainer.compile(L2SGD(0.1)),
    "compiled inside": compile_inside,
}
for name, attempt in attempts.items():
    try:
        attempt()
    except ValueError as error:
        print(f"{name}: {error}")
"""
UNEQUAL = """
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
generator = np.random.default_rng(0)
images = generator.normal(size=(11, 16, 16, 3)).astype("float32")
labels = generator.integers(0, 5, 11)
for kind in (SupernetTrainer, GateTrainer):
    found = []
    for scope in (strategy.scope(), tf.device("CPU:0")):
        with scope:
            trainer = kind(make_model())
            trainer.compile(L2SGD(0.1))
        # The last batch of three images gives one replica two of them.
        found.append(trainer.evaluate(images, labels, batch_size=4, verbose=0, return_dict=True))
    print(kind.__name__, max(abs(found[0][name] - found[1][name]) for name in found[1]))
"""
DATA = """
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
generator = np.random.default_rng(0)
images = generator.normal(size=(16, 16, 16, 3)).astype("float32")
labels = generator.integers(0, 5, 16)
weights = generator.uniform(0, 2, 16).astype("float32")
options = {"shuffle": False, "verbose": 0}


def make_trainer():
    trainer = SupernetTrainer(make_model(), sandwich=False, label_smoothing=0.1, target="in_place")
    trainer.compile(L2SGD(0.1))
    return trainer


def data(labels):
    return tf.data.Dataset.from_tensor_slices((images, labels, weights)).batch(8)


with strategy.scope():
    two = make_trainer()
one = make_trainer()
column = data(labels[:, None])
losses = [trainer.fit(column, **options).history["loss"][0] for trainer in (one, two)]
print("losses", abs(losses[0] - losses[1]))
difference = [
    np.abs(a.numpy() - b.numpy()).max() for a, b in zip(one.model.variables, two.model.variables)
]
print("model", max(difference))
# A label of the second replica, in the second step.
labels[14] = 5
before = [v.numpy() for v in two.model.variables]


def refused(name, function, received):
    try:
        function()
        print(name, "0")
    except ValueError as error:
        print(name, "1" if received in str(error) and "\\n" not in str(error) else "0")


refused("fit", lambda: two.fit(data(labels).skip(1), **options), "label 5 in a training")
moved = [np.abs(v.numpy() - b).max() for v, b in zip(two.model.variables, before)]
print("moved", max(moved))
refused("evaluate", lambda: two.evaluate(data(labels), verbose=0), "label 5 in an evaluation")
rest = data(labels).take(1).unbatch().batch(7)
# The second replica has no image of the last batch.
refused("rest", lambda: two.fit(rest, **options), "0 images in a training batch")
refused("empty", lambda: two.evaluate(rest, verbose=0), "0 images in an evaluation batch")
"""

OVERFLOW = """
keras.config.set_dtype_policy("mixed_float16")
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
generator = np.random.default_rng(0)
images = generator.normal(size=(8, 16, 16, 3)).astype("float32")
labels = generator.integers(0, 5, 8)
# Keras asks the first replica only: the overflow of the second is the harder case.
for kind, image in ((SupernetTrainer, 4), (GateTrainer, 0)):
    with strategy.scope():
        trainer = kind(make_model())
        trainer.compile(L2SGD(0.1))
    before = [v.numpy() for v in trainer.optimized_variables]
    weights = np.ones(8, "float32")
    weights[image] = 1e30
    trainer.fit(images, labels, sample_weight=weights, shuffle=False, verbose=0)
    pairs = zip(trainer.optimized_variables, before)
    name = kind.__name__
    print(name + "_moved", max(np.abs(v.numpy() - b).max() for v, b in pairs))
    print(name + "_scale", float(trainer.optimizer.dynamic_scale.numpy()))
    trainer.fit(images, labels, shuffle=False, verbose=0)
    pairs = zip(trainer.optimized_variables, before)
    print(name + "_then", max(np.abs(v.numpy() - b).max() for v, b in pairs))
"""


def run(folder, mode, stage=STAGE_1):
    program = folder / "program.py"
    program.write_text(HEAD + stage)
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


@pytest.mark.long
def test_without_synchronized_batch_norm_replicas_agree_with_each_other_only(tmp_path):
    figures = run(tmp_path, "local")
    assert figures["apart"] == 0
    assert figures["model"] > 1e-4


@pytest.mark.slow
def test_replicas_draw_gumbel_noise_of_their_own_and_train_the_same_gate(tmp_path):
    figures = run(tmp_path, "local", STAGE_2)
    # Two replicas agree on a third of the choices for the same images by chance.
    assert 0.1 < figures["first"] < 0.8
    assert figures["first_sum"] == figures["again_sum"], "a function of seed, step and replica"
    assert figures["apart"] == 0


@pytest.mark.long
@pytest.mark.slow
def test_replicas_weigh_images_as_one_device_and_stop_before_a_wrong_label(tmp_path):
    figures = run(tmp_path, "synchronized", DATA)
    assert figures["losses"] < 1e-4
    assert figures["model"] < 1e-4
    assert [figures[name] for name in ("fit", "evaluate", "rest", "empty")] == [1] * 4
    assert figures["moved"] == 0


@pytest.mark.long
def test_a_step_that_overflows_on_any_replica_is_left_out_on_all(tmp_path):
    figures = run(tmp_path, "local", OVERFLOW)
    for name in ("SupernetTrainer", "GateTrainer"):
        assert figures[f"{name}_moved"] == 0, name
        # Keras begins with 2 ** 15, and halves it after an overflow.
        assert figures[f"{name}_scale"] == 2**14, name
        assert 0 < figures[f"{name}_then"] < 10, name


def test_what_was_made_outside_of_the_scope_is_refused_in_one_line(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(HEAD + SCOPES)
    done = run_program(program, "local")
    assert done.returncode == 0, done.stderr
    names = ["network outside", "trainer outside", "optimizer outside", "compiled inside"]
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == names
    assert all("in the scope of the same tf.distribute strategy" in line for line in lines)


@pytest.mark.slow
def test_an_evaluation_counts_every_image_once_where_replicas_have_unequal_shares(tmp_path):
    figures = run(tmp_path, "synchronized", UNEQUAL)
    assert figures.keys() == {"SupernetTrainer", "GateTrainer"}
    assert max(figures.values()) < 1e-5
