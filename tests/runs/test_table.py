"""Tables: exact values in files, readable ones in the terminal."""

import csv
import json

import numpy as np
import pytest

from keras_dsnet.runs.table import format_table, write_table

ROWS = [
    {"path": 0, "rho": 0.35, "madds": 132_890_144, "top1": 0.7, "top5": np.float32(0.5)},
    {"path": 13, "rho": 1.2, "madds": np.int64(565_445_696), "top1": 0.746, "top5": 1.0},
    {"path": "dynamic", "madds": 2.2e8, "top1": 0.72449},
]


def test_the_text_is_aligned_and_in_the_units_of_its_titles(tmp_path):
    assert write_table(ROWS, tmp_path, "accuracy") == "\n".join(
        [
            "path      rho  MAdds (M)  top-1 (%)  top-5 (%)",
            "0        0.35      132.9      70.00      50.00",
            "13       1.20      565.4      74.60     100.00",
            "dynamic            220.0      72.45",
        ]
    )


def test_the_files_hold_the_values_as_they_are(tmp_path):
    folder = tmp_path / "new" / "tables"
    write_table(ROWS, folder, "accuracy")
    with (folder / "accuracy.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["madds"] for row in rows] == ["132890144", "565445696", "220000000.0"]
    assert rows[2] == {
        "path": "dynamic",
        "rho": "",
        "madds": "220000000.0",
        "top1": "0.72449",
        "top5": "",
    }
    assert json.loads((folder / "accuracy.json").read_text()) == [
        {"path": 0, "rho": 0.35, "madds": 132890144, "top1": 0.7, "top5": 0.5},
        {"path": 13, "rho": 1.2, "madds": 565445696, "top1": 0.746, "top5": 1.0},
        {"path": "dynamic", "madds": 2.2e8, "top1": 0.72449},
    ]
    assert sorted(path.name for path in folder.iterdir()) == ["accuracy.csv", "accuracy.json"]


def test_hits_of_every_image_are_in_the_json_only(tmp_path):
    rows = [{**ROWS[0], "hits": np.array([True, False])}]
    assert "hits" not in write_table(rows, tmp_path, "hits")
    assert "hits" not in (tmp_path / "hits.csv").read_text()
    assert json.loads((tmp_path / "hits.json").read_text())[0]["hits"] == [True, False]


def test_paths_of_several_gates_are_one_word(tmp_path):
    rows = [{"path": (0, 2, 3, 1), "madds": 5_000_000, "channels": (16, 32)}]
    text = write_table(rows, tmp_path, "paths")
    assert text.splitlines()[1].split() == ["0-2-3-1", "5.00", "16-32"]
    assert "0-2-3-1,5000000,16-32" in (tmp_path / "paths.csv").read_text()
    assert json.loads((tmp_path / "paths.json").read_text())[0]["path"] == [0, 2, 3, 1]


def test_nested_values_are_in_the_json_file_alone(tmp_path):
    shares = [{0: np.float64(0.25), 3: 0.75}]
    rows = [{"path": 0, "top1": 0.5}, {"path": "dynamic", "top1": 0.6, "shares": shares}]
    text = write_table(rows, tmp_path, "paths")
    assert text.split() == ["path", "top-1", "(%)", "0", "50.00", "dynamic", "60.00"]
    assert format_table(rows) == text
    assert (tmp_path / "paths.csv").read_text() == "path,top1\n0,0.5\ndynamic,0.6\n"
    written = json.loads((tmp_path / "paths.json").read_text())
    assert written[1]["shares"] == [{"0": 0.25, "3": 0.75}]


def test_other_columns_keep_their_names():
    rows = [{"width": 0, "parameters": 1_234_567, "folded": True, "loss": 0.123456}]
    assert format_table(rows).split() == [
        *("width", "parameters", "folded", "loss"),
        *("0", "1,234,567", "True", "0.1235"),
    ]
    assert format_table(rows, ["loss"]).split() == ["loss", "0.1235"]


def test_a_failed_write_keeps_the_old_table(tmp_path, monkeypatch):
    write_table(ROWS, tmp_path, "accuracy")
    before = (tmp_path / "accuracy.csv").read_text()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_table(ROWS[:1], tmp_path, "accuracy")
    assert (tmp_path / "accuracy.csv").read_text() == before


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"needs rows. Received: .* for 'accuracy'"):
        write_table([], tmp_path, "accuracy")
    assert not list(tmp_path.iterdir())
