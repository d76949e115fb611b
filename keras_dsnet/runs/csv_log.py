"""The log of a run: a CSV file with the metrics of every epoch."""

import csv
import os
import pathlib
from typing import Any

import keras

from keras_dsnet.utils.atomic_file import atomic_file

# Accuracies of a classifier, and average precisions of a detector.
EVALUATION_PREFIXES = ("val_top1_", "val_map_")
_EPOCH = "epoch"


class CsvLog(keras.callbacks.Callback):
    """Writes one row per epoch to a CSV file. Epochs are numbered from 1.

    Every epoch the whole file is written to a temporary file and renamed. It never has an
    incomplete row, and a metric that appears late, such as an evaluation every few epochs, still
    gets its column. When an epoch begins, the rows of this epoch and of later ones are removed,
    which were written before a resume.

    The row of an interrupted epoch has the means over the steps since the resume.

    Args:
        path: Path of the file.
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__()
        self.path = pathlib.Path(path)
        self._rows = None

    def on_epoch_begin(self, epoch, logs=None):
        if self._rows is None:
            self._rows = read_log(self.path)
        kept = [row for row in self._rows if row[_EPOCH] <= epoch]
        if len(kept) < len(self._rows):
            self._rows = kept
            self._write()

    def on_epoch_end(self, epoch, logs=None):
        self._rows.append({_EPOCH: epoch + 1, **(logs or {})})
        self._write()

    def _write(self):
        names = dict.fromkeys([_EPOCH])
        for row in self._rows:
            names.update(dict.fromkeys(row))
        with atomic_file(self.path) as file:
            writer = csv.DictWriter(file, list(names), lineterminator="\n")
            writer.writeheader()
            writer.writerows({k: _text(v) for k, v in row.items()} for row in self._rows)


def read_log(path: str | os.PathLike) -> list[dict[str, float]]:
    """Returns the rows of a log of `CsvLog`.

    Args:
        path: Path of the file. A missing file has no rows.

    Returns:
        List of dicts of numbers. A metric that was not measured in an epoch is left out.

    Raises:
        ValueError: If the file is not such a log.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [
                {name: float(value) for name, value in row.items() if value}
                for row in csv.DictReader(file)
            ]
        return [{**row, _EPOCH: int(row[_EPOCH])} for row in rows]
    except (ValueError, TypeError, AttributeError, KeyError, csv.Error) as error:
        raise ValueError(f"{path} is not a log of this package: {error!r}. Remove it") from error


def evaluation_metrics(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Returns a table as metrics of a log, named `val_top1_<path>` or `val_map_<path>`.

    Args:
        rows: List of dicts with "path" and "top1", as `evaluate_paths` returns them, or "map", as
            `evaluate_detection` does. A "map" of None, of images without objects, is left out.
    """
    metrics = {}
    for row in rows:
        path = row["path"]
        word = "-".join(map(str, path)) if isinstance(path, (tuple, list)) else str(path)
        name = "top1" if "top1" in row else "map"
        if row[name] is not None:
            metrics[f"val_{name}_{word}"] = float(row[name])
    return metrics


def _text(value):
    # 9 digits restore a float32 exactly.
    return f"{float(value):.9g}"
