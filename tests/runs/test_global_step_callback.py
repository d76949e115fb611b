"""Steps are counted over epochs, over calls of fit, and from a checkpoint's step."""

import keras
import numpy as np

from keras_dsnet.runs.callbacks import GlobalStepCallback


class Recorder(GlobalStepCallback):
    def __init__(self, start_step=0):
        super().__init__(start_step)
        self.steps = []

    def on_step_end(self, logs):
        assert "loss" in logs
        self.steps.append((self.epoch, self.step))


def fit(callback, epochs, initial_epoch=0, steps_per_execution=1):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", steps_per_execution=steps_per_execution)
    x = np.zeros((16, 2))
    model.fit(
        x,
        x[:, :1],
        batch_size=4,
        epochs=epochs,
        initial_epoch=initial_epoch,
        verbose=0,
        callbacks=[callback],
    )


def test_steps_go_on_over_epochs_and_calls_of_fit():
    recorder = Recorder(start_step=10)
    fit(recorder, epochs=2)
    fit(recorder, epochs=3, initial_epoch=2)
    epochs, steps = zip(*recorder.steps)
    assert steps == tuple(range(11, 23))
    assert epochs == (0,) * 4 + (1,) * 4 + (2,) * 4


def test_several_steps_in_one_call_are_all_counted():
    recorder = Recorder()
    fit(recorder, epochs=2, steps_per_execution=2)
    assert recorder.steps == [(0, 2), (0, 4), (1, 6), (1, 8)]
