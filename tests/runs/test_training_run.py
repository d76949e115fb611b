"""Runs that are interrupted, diverge, are extended, or whose evaluation fails."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_dsnet.runs import TensorBoardLog, TrainingRun, WorkDir
from keras_dsnet.runs.csv_log import CsvLog, read_log
from keras_dsnet.runs.run_checkpoint import RunCheckpoint, SaveRunCheckpoint
from keras_dsnet.runs.training_run import TerminateOnNaN
from keras_dsnet.training.optimizers import cosine_schedule

STEPS = 2


class Trainer(keras.Sequential):
    """The smallest trainer that `TrainingRun` can fit, with one layer."""

    @property
    def model(self):
        return self

    @property
    def optimized_variables(self):
        return self.trainable_variables


def make_run(folder, epochs, evaluate=None, **data):
    keras.utils.set_random_seed(0)
    trainer = Trainer([keras.Input((3,)), keras.layers.Dense(1)])
    trainer.compile(keras.optimizers.SGD(0.1), "mse")
    batch = np.ones((2, 3), "float32"), np.ones((2, 1), "float32")
    return TrainingRun(
        trainer,
        WorkDir(folder, {"epochs": epochs}, growing=("epochs",)),
        lambda step: tf.data.Dataset.from_tensors(batch).repeat(),
        batch_size=2,
        epochs=epochs,
        evaluate=evaluate,
        **{"steps_per_epoch": STEPS, **data},
    )


def logged(caplog):
    records = [record for record in caplog.records if record.name == "keras_dsnet"]
    return [(record.levelname, record.message) for record in records]


def test_an_evaluation_that_fails_loses_no_epoch(tmp_path):
    def fail():
        raise OSError("the data are gone")

    run = make_run(tmp_path, 2, fail)
    assert not run.is_complete()
    for epoch in (1, 2):
        with pytest.raises(OSError, match="the data are gone"):
            make_run(tmp_path, 2, fail).fit()
        assert [row["epoch"] for row in read_log(tmp_path / "log.csv")] == list(range(1, epoch + 1))
    assert run.is_complete()
    assert make_run(tmp_path, 2, fail).fit() == 2 * STEPS


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("is_known", [True, False])
def test_a_data_set_that_ends_is_refused_or_ends_the_run(tmp_path, is_known):
    run = make_run(tmp_path, 2)
    endless = run.make_dataset
    run.make_dataset = lambda step: endless(step).take(1 if is_known else 3 - step)
    if not is_known:
        finite = run.make_dataset
        run.make_dataset = lambda step: finite(step).filter(lambda *_: True)
    found = "1 batches for 4 steps" if is_known else "ended 1 of 2 steps before the end of epoch 2"
    with pytest.raises(ValueError, match=f"batch for every step.* Received: .*{found}"):
        run.fit()
    # What was trained is kept, and the unfinished epoch is not in the log.
    epochs = [] if is_known else [1]
    assert [row["epoch"] for row in read_log(tmp_path / "log.csv")] == epochs


def test_a_run_that_has_ended_trains_on_where_its_epochs_grow(tmp_path, capsys, caplog):
    caplog.set_level("INFO", "keras_dsnet")
    make_run(tmp_path / "grown", 2).fit()
    assert not logged(caplog)
    assert make_run(tmp_path / "grown", 5).fit() == 2 * STEPS
    message = f"resuming {tmp_path / 'grown'} at step 4 of 10 (epochs: 2, now 5)"
    assert logged(caplog) == [("INFO", message)]
    assert "resuming" not in "".join(capsys.readouterr())
    assert len(read_log(tmp_path / "grown" / "log.csv")) == 5
    make_run(tmp_path / "whole", 5).fit()
    grown, whole = (make_run(tmp_path / name, 5) for name in ("grown", "whole"))
    for run in (grown, whole):
        run.fit()
    for value, expected in zip(grown.trainer.get_weights(), whole.trainer.get_weights()):
        np.testing.assert_array_equal(value, expected)


def test_a_run_does_not_go_on_with_other_classes_or_steps(tmp_path, capsys, caplog):
    data = {"class_names": ("ant", "bee"), "num_images": 5}
    make_run(tmp_path, 1, **data).fit()
    for names, told in (
        (("ant", "cat"), "class 1 was 'bee' and is 'cat'"),
        (("ant", "bee", "cat"), "class 2 was None and is 'cat'"),
    ):
        with pytest.raises(ValueError, match=told):
            make_run(tmp_path, 2, class_names=names, num_images=5).fit()
    more = {"num_images": 7, "steps_per_epoch": 3}
    with pytest.raises(ValueError, match="2 steps per epoch, and now has 3: 5 training images bec"):
        make_run(tmp_path, 2, class_names=data["class_names"], **more).fit()
    capsys.readouterr()
    caplog.clear()
    # One image less gives the same number of steps.
    assert make_run(tmp_path, 2, **{**data, "num_images": 4}).fit() == STEPS
    ((level, message),) = logged(caplog)
    assert level == "WARNING"
    assert message.startswith(f"5 training images became 4 since the run of {tmp_path} was")
    assert "training images" not in "".join(capsys.readouterr())


def test_a_finished_run_that_is_refused_does_not_hold_its_last_epoch(tmp_path):
    data = {"class_names": ("ant", "bee"), "num_images": 5}
    run = make_run(tmp_path, 1, **data)
    assert not run.holds_last_epoch()
    run.fit()
    assert run.holds_last_epoch()
    again = make_run(tmp_path, 1, **data)
    assert not again.holds_last_epoch()
    again.fit()
    assert again.holds_last_epoch()
    damaged = bytearray((tmp_path / "checkpoint.npz").read_bytes())
    for change in ({"class_names": ("ant", "cat")}, {"steps_per_epoch": 1}, {}):
        if not change:
            damaged[len(damaged) // 2] ^= 1
            (tmp_path / "checkpoint.npz").write_bytes(damaged)
        refused = make_run(tmp_path, 1, **{**data, **change})
        with pytest.raises(ValueError):
            refused.fit()
        assert refused.checkpoint.path.is_file()
        assert not refused.holds_last_epoch()


STEPS_PER_EPOCH, EPOCHS = 4, 3


class Cut(keras.callbacks.Callback):
    """Simulates the end of the process in a global step."""

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


@pytest.mark.parametrize(("cut", "resumed_at"), [(2, 0), (7, 6), (8, 6), (9, 9), (12, 9)])
def test_a_cut_run_ends_with_the_same_weights_and_log(whole, tmp_path, cut, resumed_at):
    with pytest.raises(InterruptedError):
        train(tmp_path, cut)
    start, values = train(tmp_path)
    # An interruption in the last step of an epoch precedes the save at its end, also where a save
    # after every third step falls on it: the row of the epoch is not in the log yet.
    assert start == resumed_at
    expected_values, expected_rows = whole
    for one, other in zip(expected_values, values):
        np.testing.assert_array_equal(one, other)
    rows = read_log(tmp_path / "log.csv")
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    # The interrupted epoch has the mean over the rest of its steps.
    torn = start // STEPS_PER_EPOCH + 1 if start % STEPS_PER_EPOCH else None
    for row, expected in zip(rows, expected_rows):
        assert row == expected or row["epoch"] == torn


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


def run(folder, epochs, start_step=0, steps=5, initial=0):
    log = TensorBoardLog(folder, every_steps=2, start_step=start_step)
    log.on_train_begin()
    for epoch in range(initial, epochs):
        log.on_epoch_begin(epoch)
        for batch in range(steps):
            log.on_train_batch_end(batch, {"loss": float(log.step), "learning_rate": 0.1})
        log.on_epoch_end(epoch, {"loss": float(log.step), "val_top1_3": 0.5})
    log.on_train_end()


def read(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    # Two files of one second are read in no particular order.
    return {tag: sorted(e.step for e in events.Tensors(tag)) for tag in events.Tags()["tensors"]}


def test_metrics_are_written_at_steps_and_at_the_ends_of_epochs(tmp_path):
    run(tmp_path, epochs=2)
    assert read(tmp_path) == {
        "losses/loss": [2, 4, 5, 6, 8, 10],
        "training/learning_rate": [2, 4, 6, 8, 10],
        "evaluation/top1_3": [5, 10],
    }


def test_a_resumed_run_goes_on_at_its_step(tmp_path):
    run(tmp_path, epochs=1)
    run(tmp_path, epochs=2, start_step=5, initial=1)
    assert read(tmp_path)["losses/loss"] == [2, 4, 5, 6, 8, 10]


@pytest.mark.parametrize("call", ["scalar", "flush"])
def test_a_full_disk_is_an_error_of_one_line_that_names_the_folder(tmp_path, monkeypatch, call):
    def fail(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left\n\tFailed to flush")

    log = TensorBoardLog(tmp_path)
    log.on_train_begin()
    monkeypatch.setattr(tf.summary if call == "scalar" else log._writer, call, fail)
    with pytest.raises(OSError, match="No space left on device") as caught:
        log.on_epoch_end(0, {"val_top1_3": 1.0})
    assert caught.value.filename == str(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_wrong_number_of_steps_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"every_steps.*1 or more. Received: 0"):
        TensorBoardLog(tmp_path, every_steps=0)
