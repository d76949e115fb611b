"""A run that diverged ends at once, and says what happened."""

import math

import keras
import numpy as np
import pytest

from keras_dsnet.runs.training_run import TerminateOnNaN


def after_one_step(logs, start_step=0, epoch=0):
    callback = TerminateOnNaN(start_step)
    callback.on_epoch_begin(epoch)
    callback.on_train_batch_end(0, logs)


def test_the_message_names_the_loss_the_step_and_what_to_try():
    logs = {"loss": math.nan, "widest_loss": 2.0, "slimmest_loss": math.nan, "learning_rate": 0.08}
    with pytest.raises(ValueError, match="diverged") as caught:
        after_one_step(logs, start_step=1233, epoch=4)
    message = str(caught.value)
    assert "slimmest_loss became NaN in step 1234 (epoch 5) at a learning rate of 0.08" in message
    assert "lower learning rate" in message
    assert "\n" not in message


def test_infinity_is_told_from_nan():
    with pytest.raises(ValueError, match="loss became infinite in step 1"):
        after_one_step({"loss": math.inf})


def test_numbers_pass():
    after_one_step({"loss": 1e30, "accuracy": math.nan})
    after_one_step(None)


def test_a_fit_stops_in_the_step_that_diverged():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.ones((8, 2), "float32")
    x[4] = np.nan
    with pytest.raises(ValueError, match=r"loss became NaN in step 3 \(epoch 1\)"):
        model.fit(x, x[:, :1], batch_size=2, shuffle=False, verbose=0, callbacks=[TerminateOnNaN()])
    assert int(model.optimizer.iterations) == 3
