"""A run that is cut anywhere and goes on ends as one that never was."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_dsnet.runs.csv_log import CsvLog, read_log
from keras_dsnet.runs.run_checkpoint import RunCheckpoint, SaveRunCheckpoint
from keras_dsnet.runs.workdir import WorkDir
from keras_dsnet.training.optimizers import cosine_schedule

STEPS_PER_EPOCH, EPOCHS = 4, 3


class Cut(keras.callbacks.Callback):
    """Ends the process, as far as this one can be ended, in a global step."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == self.step:
            raise InterruptedError


def batches(start_step):
    def batch(step):
        x = tf.random.stateless_normal((4, 3), [7, step])
        return x, tf.reduce_sum(x, axis=1, keepdims=True)

    return tf.data.Dataset.range(start_step, 1000, output_type=tf.int32).map(batch)


def train(folder, cut=None):
    keras.utils.set_random_seed(0)
    workdir = WorkDir(folder, {"seed": 0})
    inputs = keras.Input((3,))
    outputs = keras.layers.Dense(1)(keras.layers.Dropout(0.5)(inputs))
    model = keras.Model(inputs, outputs)
    schedule = cosine_schedule(0.1, STEPS_PER_EPOCH * EPOCHS)
    model.compile(keras.optimizers.SGD(schedule, momentum=0.9), "mse")
    model.optimizer.build(model.trainable_variables)
    groups = {"model": model.variables, "optimizer": model.optimizer.variables}
    checkpoint = RunCheckpoint(workdir.checkpoint)
    start = (checkpoint.restore(groups) or {"step": 0})["step"]
    callbacks = [
        CsvLog(workdir.log),
        SaveRunCheckpoint(checkpoint, 3, lambda: groups, start_step=start),
        *([Cut(cut)] if cut else []),
    ]
    for epoch in range(start // STEPS_PER_EPOCH, EPOCHS):
        step = max(start, epoch * STEPS_PER_EPOCH)
        model.fit(
            batches(step),
            initial_epoch=epoch,
            epochs=epoch + 1,
            steps_per_epoch=(epoch + 1) * STEPS_PER_EPOCH - step,
            callbacks=callbacks,
            shuffle=False,
            verbose=0,
        )
    return start, [variable.numpy() for group in groups.values() for variable in group]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return train(folder)[1], read_log(folder / "log.csv")


@pytest.mark.parametrize(("cut", "resumed_at"), [(2, 0), (7, 6), (8, 6), (9, 9)])
def test_a_cut_run_ends_with_the_same_weights_and_log(whole, tmp_path, cut, resumed_at):
    with pytest.raises(InterruptedError):
        train(tmp_path, cut)
    start, values = train(tmp_path)
    # A cut in the last step of an epoch comes before the end of the epoch is saved.
    assert start == resumed_at
    expected_values, expected_rows = whole
    for one, other in zip(expected_values, values):
        np.testing.assert_array_equal(one, other)
    rows = read_log(tmp_path / "log.csv")
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    # The epoch that was cut has the mean over the rest of its steps.
    torn = start // STEPS_PER_EPOCH + 1 if start % STEPS_PER_EPOCH else None
    for row, expected in zip(rows, expected_rows):
        assert row == expected or row["epoch"] == torn
