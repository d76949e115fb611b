"""A log has one row per epoch, also after an interruption."""

import errno

import pytest

from keras_dsnet.runs.csv_log import CsvLog, evaluation_metrics, read_log


def run(path, epochs, metric=lambda epoch: {"loss": 1.0 / (epoch + 1)}, initial=0):
    log = CsvLog(path)
    for epoch in range(initial, epochs):
        log.on_epoch_begin(epoch)
        log.on_epoch_end(epoch, metric(epoch))


def test_rows_are_numbered_from_one(tmp_path):
    path = tmp_path / "log.csv"
    run(path, 2, lambda epoch: {"loss": 0.1, "lr": 2})
    assert path.read_text() == "epoch,loss,lr\n1,0.1,2\n2,0.1,2\n"


def test_a_resumed_run_writes_what_an_uninterrupted_one_writes(tmp_path):
    whole, resumed = tmp_path / "whole.csv", tmp_path / "resumed.csv"
    run(whole, 6)
    run(resumed, 5, lambda epoch: {"loss": 1.0 / (epoch + 1) if epoch < 3 else -1.0})
    run(resumed, 6, initial=3)
    assert resumed.read_text() == whole.read_text()


def test_rows_of_epochs_to_come_are_gone_when_the_epoch_begins(tmp_path):
    path = tmp_path / "log.csv"
    run(path, 5)
    CsvLog(path).on_epoch_begin(2)
    assert [row["epoch"] for row in read_log(path)] == [1, 2]


def test_a_late_metric_gets_a_column(tmp_path):
    path = tmp_path / "log.csv"
    run(path, 3, lambda epoch: {"loss": 0.5, **({"val_top1_0": 0.9} if epoch == 1 else {})})
    assert path.read_text() == "epoch,loss,val_top1_0\n1,0.5,\n2,0.5,0.9\n3,0.5,\n"
    assert read_log(path)[0] == {"epoch": 1, "loss": 0.5}
    assert read_log(path)[1] == {"epoch": 2, "loss": 0.5, "val_top1_0": 0.9}


def test_float32_comes_back_exactly(tmp_path):
    import numpy as np

    path = tmp_path / "log.csv"
    value = np.float32(1 / 3)
    run(path, 1, lambda epoch: {"loss": value})
    assert np.float32(read_log(path)[0]["loss"]) == value


def test_a_full_disk_keeps_the_rows_and_names_the_file(tmp_path, monkeypatch):
    path = tmp_path / "log.csv"
    run(path, 2)
    before = path.read_text()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        run(path, 3, initial=2)
    assert caught.value.filename == str(path)
    assert path.read_text() == before


@pytest.mark.parametrize("content", ["a,b\n1,2\n", "epoch,loss\nx,y\n", "epoch\n1,2\n"])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "log.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"log\.csv is not a log") as caught:
        CsvLog(path).on_epoch_begin(0)
    assert "\n" not in str(caught.value)
    assert path.read_text() == content


def test_no_file_is_an_empty_log(tmp_path):
    assert read_log(tmp_path / "log.csv") == []


def test_accuracies_of_a_table_become_metrics():
    rows = [{"path": 0, "top1": 0.5}, {"path": (0, 3), "top1": 1}, {"path": "dynamic", "top1": 0.7}]
    assert evaluation_metrics(rows) == {
        "val_top1_0": 0.5,
        "val_top1_0-3": 1.0,
        "val_top1_dynamic": 0.7,
    }
    # A detector; the validation images of the second row have no object.
    rows = [{"path": 0, "map": 0.5}, {"path": 1, "map": None}]
    assert evaluation_metrics(rows) == {"val_map_0": 0.5}
