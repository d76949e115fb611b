"""A run that an earlier version began goes on: its checkpoint lies beside this file.

`python tests/golden/test_old_run.py` writes the checkpoint and where an uncut run ends. That is
right only for the version whose runs must go on: a new one would test nothing of before.
"""

import contextlib
import pathlib
import shutil
import sys

import keras
import numpy as np
import tensorflow as tf

from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, MobileNetStage
from keras_dsnet.runs import TrainingRun, WorkDir
from keras_dsnet.training import L2SGD, SupernetTrainer
from keras_dsnet.training.optimizers import cosine_schedule

GOLDEN = pathlib.Path(__file__).with_name("old_run")
SPEC = MobileNetSpec(
    stem=(4, 6),
    stages=(
        MobileNetStage(1, 2, (8, 11)),
        MobileNetStage(1, 2, (16, 24, 32, 40), gated=True),
    ),
)
STEPS_PER_EPOCH, EPOCHS = 4, 2


def batches(start_step):
    def batch(step):
        images = tf.random.stateless_normal((4, 32, 32, 3), [7, step])
        return images, tf.random.stateless_uniform((4,), [8, step], 0, 10, tf.int32)

    return tf.data.Dataset.range(start_step, 1000, output_type=tf.int32).map(batch)


def train(folder, callbacks=()):
    keras.utils.set_random_seed(0)
    model = DynamicSlimmableNetwork(SPEC, (32, 32, 3), 10, classifier_activation=None)
    trainer = SupernetTrainer(model, ema_momentum=0.5)
    trainer.compile(L2SGD(cosine_schedule(0.1, STEPS_PER_EPOCH * EPOCHS)))
    run = TrainingRun(
        trainer,
        WorkDir(folder, {"seed": 0}),
        batches,
        batch_size=4,
        steps_per_epoch=STEPS_PER_EPOCH,
        epochs=EPOCHS,
        checkpoint_steps=3,
    )
    if callbacks:
        inherited = run._callbacks
        run._callbacks = lambda start: (
            inherited(start)[0],
            [*inherited(start)[1], *callbacks],
        )
    return run.fit(), {v.path: v.numpy() for v in model.variables}


def test_a_run_of_before_goes_on_to_the_same_weights(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "run")
    start, values = train(tmp_path / "run")
    assert start == 6
    with np.load(GOLDEN / "end.npz") as expected:
        assert set(values) == set(expected.files)
        for name, value in values.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=1e-4, err_msg=name)


class _Cut(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == 6:
            raise InterruptedError


if __name__ == "__main__":
    GOLDEN.mkdir()
    _, end = train(sys.argv[1])
    with contextlib.suppress(InterruptedError):
        train(GOLDEN, [_Cut()])
    np.savez_compressed(GOLDEN / "end.npz", **end)
    for name in ("tensorboard", ".lock", "log.csv"):
        path = GOLDEN / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
