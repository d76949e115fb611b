"""The metrics of every epoch, in a CSV file that a resumed run goes on with."""

import csv
import pathlib

import keras

from keras_dsnet.utils.atomic_file import atomic_file

EVALUATION_PREFIX = "val_top1_"
_EPOCH = "epoch"


class CsvLog(keras.callbacks.Callback):
    """Writes one row per epoch, numbered from 1.

    Every epoch the file is written whole, beside its place, and renamed: it holds no torn row, and
    a metric that first comes late (an evaluation every few epochs) still gets its column. When an
    epoch begins, rows of it and of later ones, from before a resume, are dropped.

    The row of an epoch that was interrupted holds means over the steps since the resume.

    Args:
        path: of the file.
    """

    def __init__(self, path):
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


def read_log(path):
    """Returns the rows of a log as dicts of numbers, without the metrics that an epoch lacks.

    Args:
        path: of the file; where there is none, there are no rows.

    Raises:
        ValueError: the file is not such a log.
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
        raise ValueError(f"{path} is not a log of this package: {error!r}; remove it") from error


def evaluation_metrics(rows):
    """Returns the accuracies of a table as metrics of a log: `val_top1_<path>`.

    Args:
        rows: list of dicts with "path" and "top1", as of `evaluate_paths`.
    """
    paths = [row["path"] for row in rows]
    words = ["-".join(map(str, p)) if isinstance(p, (tuple, list)) else str(p) for p in paths]
    return {EVALUATION_PREFIX + word: float(row["top1"]) for word, row in zip(words, rows)}


def _text(value):
    # 9 digits bring a float32 back exactly.
    return f"{float(value):.9g}"
