"""A run is saved every N of its global steps, and at the ends of epochs."""

import keras
import numpy as np
import pytest

from keras_dsnet.runs.run_checkpoint import RunCheckpoint, SaveRunCheckpoint


class RecordingCheckpoint:
    def __init__(self):
        self.saved = []

    def save(self, variables, step, meta):
        self.saved.append((step, variables, meta))

    @property
    def steps(self):
        return [step for step, _, _ in self.saved]


def run_epoch(callback, epoch, steps):
    callback.on_epoch_begin(epoch)
    for batch in range(steps):
        callback.on_train_batch_end(batch, {"loss": 1.0})
    callback.on_epoch_end(epoch, {})


def make(every_steps, start_step=0, meta=None):
    return SaveRunCheckpoint(RecordingCheckpoint(), every_steps, lambda: "groups", meta, start_step)


def test_saves_every_so_many_global_steps_and_at_the_ends_of_epochs():
    callback = make(every_steps=4)
    for epoch in range(2):
        run_epoch(callback, epoch, steps=10)
    callback.on_train_end()
    assert callback.checkpoint.steps == [4, 8, 10, 12, 16, 20]


def test_a_resumed_run_saves_at_the_same_steps():
    callback = make(every_steps=4, start_step=6)
    run_epoch(callback, 0, steps=4)
    run_epoch(callback, 1, steps=10)
    assert callback.checkpoint.steps == [8, 10, 12, 16, 20]


def test_without_a_number_of_steps_only_the_ends_of_epochs_are_saved():
    callback = make(every_steps=None)
    run_epoch(callback, 0, steps=10)
    assert callback.checkpoint.steps == [10]


def test_the_end_of_a_run_within_an_epoch_is_saved_once():
    callback = make(every_steps=100)
    callback.on_epoch_begin(0)
    callback.on_train_batch_end(0, {})
    callback.on_train_end()
    callback.on_train_end()
    assert callback.checkpoint.steps == [1]


def test_a_run_that_did_nothing_saves_nothing():
    callback = make(every_steps=1, start_step=5)
    callback.on_train_end()
    assert callback.checkpoint.steps == []


def test_variables_and_meta_are_those_of_the_moment():
    count = iter(range(10))
    callback = make(every_steps=2, meta=lambda: {"call": next(count)})
    run_epoch(callback, 0, steps=4)
    assert callback.checkpoint.saved == [(2, "groups", {"call": 0}), (4, "groups", {"call": 1})]


@pytest.mark.parametrize("every_steps", [0, -1])
def test_a_wrong_number_of_steps_is_refused(every_steps):
    with pytest.raises(ValueError, match=f"every_steps.*1 or more. Received: {every_steps}"):
        make(every_steps)


def test_a_diverging_run_keeps_its_last_good_state(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    checkpoint = RunCheckpoint(tmp_path / "checkpoint.npz")
    callback = SaveRunCheckpoint(checkpoint, 1, lambda: {"model": model.variables})
    x = np.ones((8, 2), "float32")
    x[6] = np.inf
    with pytest.raises(ValueError, match=r"step 4 is not saved.*diverged"):
        model.fit(x, x[:, :1], batch_size=2, shuffle=False, verbose=0, callbacks=[callback])
    assert checkpoint.restore({"model": model.variables}) == {"step": 3}
    assert all(np.isfinite(variable.numpy()).all() for variable in model.variables)
