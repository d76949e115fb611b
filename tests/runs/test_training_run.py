"""A run whose evaluation fails, and one that trains longer than was planned."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_dsnet.runs import TrainingRun, WorkDir, read_log

STEPS = 2


class Trainer(keras.Sequential):
    """What `TrainingRun` asks of a trainer, around one layer."""

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


def test_a_run_that_has_ended_trains_on_where_its_epochs_grow(tmp_path, capsys, caplog):
    caplog.set_level("INFO", "keras_dsnet")
    make_run(tmp_path / "grown", 2).fit()
    assert not caplog.messages
    assert make_run(tmp_path / "grown", 5).fit() == 2 * STEPS
    assert caplog.messages == [f"resuming {tmp_path / 'grown'} at step 4 of 10 (epochs: 2, now 5)"]
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
    # One image less makes as many steps.
    assert make_run(tmp_path, 2, **{**data, "num_images": 4}).fit() == STEPS
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("keras_dsnet", "WARNING")
    assert record.message.startswith(f"5 training images became 4 since the run of {tmp_path} was")
    assert "training images" not in "".join(capsys.readouterr())
