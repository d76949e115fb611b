"""TensorBoard's curves run over the global steps of a run, resumed or not."""

import pytest

from keras_dsnet.runs import TensorBoardLog


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
    return {tag: [e.step for e in events.Tensors(tag)] for tag in events.Tags()["tensors"]}


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


def test_a_wrong_number_of_steps_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"every_steps.*1 or more. Received: 0"):
        TensorBoardLog(tmp_path, every_steps=0)
