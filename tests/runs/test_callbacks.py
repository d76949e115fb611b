"""Steps are counted over epochs and restarts, with a bar or lines for each epoch."""

import io

import keras
import numpy as np
import pytest

from keras_dsnet.runs.callbacks import GlobalStepCallback, ProgressBar


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


LOGS = {
    "loss": 6.9,
    "widest_loss": 2.3,
    "slimmest_loss": 2.4,
    "widest_accuracy": 0.125,
    "learning_rate": 0.04,
    "val_top1_0": 0.5,
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets: `clock[0]`, in seconds."""
    now = [100.0]
    monkeypatch.setattr("keras_dsnet.runs.callbacks.time.monotonic", lambda: now[0])
    return now


def run_epoch(bar, epoch, steps, clock, seconds_per_step=1.0, after=0.0):
    bar.set_params({"epochs": 3})
    bar.on_epoch_begin(epoch)
    for batch in range(steps):
        # The first step includes the tracing.
        clock[0] += seconds_per_step if batch else 500
        bar.on_train_batch_end(batch, LOGS)
    clock[0] += after
    bar.on_epoch_end(epoch, LOGS)


def test_a_line_tells_losses_learning_rate_and_speed(clock):
    stream = io.StringIO()
    bar = ProgressBar(64, 5, line_minutes=100, stream=stream)
    run_epoch(bar, 0, 5, clock, seconds_per_step=2.0)
    assert stream.getvalue() == (
        "epoch 1/3, step 5/5, 32 images/s, lr 0.04, loss 6.900 (widest 2.300, slimmest 2.400), "
        "widest_accuracy 0.125\n"
    )


def test_lines_come_by_the_clock_and_at_the_end_of_each_epoch(clock):
    stream = io.StringIO()
    bar = ProgressBar(64, 100, line_minutes=1.0, stream=stream)
    for epoch in range(2):
        run_epoch(bar, epoch, 100, clock, seconds_per_step=1.0)
    steps = [line.split(", ")[:2] for line in stream.getvalue().splitlines()]
    assert steps == [
        [f"epoch {epoch}/3", f"step {step}/100"] for epoch in (1, 2) for step in (1, 61, 100)
    ]


def test_a_resumed_run_starts_within_its_epoch(clock):
    stream = io.StringIO()
    bar = ProgressBar(64, 10, start_step=16, line_minutes=100, stream=stream)
    run_epoch(bar, 1, 4, clock)
    run_epoch(bar, 2, 10, clock)
    lines = stream.getvalue().splitlines()
    assert [line.split(", ")[1] for line in lines] == ["step 10/10", "step 10/10"]
    # 3 steps of 64 images in 3 seconds. The steps before this start do not count.
    assert ", 64 images/s, " in lines[0]


def test_an_evaluation_at_the_end_of_an_epoch_does_not_count_as_training(clock):
    stream = io.StringIO()
    bar = ProgressBar(64, 5, epochs=150, line_minutes=100, stream=stream)
    run_epoch(bar, 0, 5, clock, after=1000.0)
    assert stream.getvalue().startswith("epoch 1/150, step 5/5, 64 images/s, ")


def test_only_the_metrics_asked_for_are_shown(clock):
    stream = io.StringIO()
    bar = ProgressBar(64, 2, names=("widest_loss", "absent"), line_minutes=100, stream=stream)
    run_epoch(bar, 0, 1, clock)
    assert stream.getvalue() == "epoch 1/3, step 1/2, (widest 2.300)\n"


def test_large_numbers_are_in_millions(clock):
    stream = io.StringIO()
    bar = ProgressBar(64, 1, names=("mean_madds",), stream=stream, line_minutes=100)
    bar.on_epoch_begin(0)
    bar.on_epoch_end(0, {"mean_madds": 132_890_144.0})
    assert "mean_madds 132.9M" in stream.getvalue()


def test_a_terminal_gets_a_bar_per_epoch(clock):
    terminal = Terminal()
    bar = ProgressBar(64, 4, start_step=2, stream=terminal)
    run_epoch(bar, 0, 2, clock)
    run_epoch(bar, 1, 4, clock)
    bar.on_train_end()
    first, second = terminal.getvalue().rstrip("\n").split("\n")
    assert first.split("\r")[1].startswith("epoch 1/3 |####    | 2/4 [")
    assert "| 4/4 [" in first.split("\r")[-1]
    assert second.split("\r")[1].startswith("epoch 2/3 |        | 0/4 [")
    assert "loss 6.900 (widest 2.300, slimmest 2.400)" in second.split("\r")[-1]
    assert "lr 0.04" in second.split("\r")[-1]


def test_closing_ends_the_line_of_a_bar(clock):
    terminal = Terminal()
    bar = ProgressBar(64, 4, stream=terminal)
    bar.close()
    bar.on_epoch_begin(0)
    bar.on_train_batch_end(0, LOGS)
    bar.close()
    bar.close()
    assert terminal.getvalue().endswith("\n")
    assert terminal.getvalue().count("\n") == 1


def test_fit_drives_it():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.zeros((8, 2))
    stream = io.StringIO()
    model.fit(
        x,
        x[:, :1],
        batch_size=4,
        epochs=2,
        verbose=0,
        callbacks=[ProgressBar(4, 2, stream=stream)],
    )
    lines = stream.getvalue().splitlines()
    assert [", ".join(line.split(", ")[:2]) for line in lines] == [
        "epoch 1/2, step 2/2",
        "epoch 2/2, step 2/2",
    ]
