"""Tables of results: text for the terminal, CSV files, JSON files."""

import csv
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from keras_dsnet.utils.atomic_file import atomic_file

_TITLES = {
    "rho": "rho",
    "madds": "MAdds (M)",
    "top1": "top-1 (%)",
    "top5": "top-5 (%)",
    "map": "mAP (%)",
    "ap": "AP (%)",
    "ap50": "AP50 (%)",
    "ap75": "AP75 (%)",
    "ap_small": "AP small (%)",
    "ap_medium": "AP medium (%)",
    "ap_large": "AP large (%)",
    "share": "images (%)",
    "agreement": "agreement (%)",
    "madds_p95": "95 % below (M)",
    "madds_worst": "worst (M)",
    "static_line": "line (%)",
    "line": "line (%)",
    "random": "random (%)",
    "gain": "gain (points)",
    "gain_low": "95 % from",
    "gain_high": "to",
}
_PERCENT = (
    *("top1", "top5", "share", "agreement", "static_line", "line", "random"),
    *("gain", "gain_low", "gain_high"),
    *("map", "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
)
_MADDS = ("madds", "madds_p95", "madds_worst")


def write_table(rows: Sequence[dict[str, Any]], folder: str | os.PathLike, name: str) -> str:
    """Writes rows as `<name>.csv` and `<name>.json`, and returns them as aligned text.

    The files hold the exact values. The text shows MAdds in millions and accuracies in percent. A
    column of dicts, such as the shares of the widths, is only in the JSON file.

    Args:
        rows: List of dicts, such as those of `evaluate_paths`. A row can lack a column.
        folder: Path of the folder of the files. It is created if it is missing.
        name: String, name of the files without suffix.

    Returns:
        String, one line per row below the titles.

    Raises:
        ValueError: If there are no rows.
        OSError: If a file cannot be written. An older file of that name is then kept.

    Example:

    ```python
    import tempfile
    from keras_dsnet.runs import write_table

    rows = [{"path": 0, "madds": 150_000_000, "top1": 0.701}]
    print(write_table(rows, tempfile.mkdtemp(), "accuracy"))
    ```
    """
    rows = [_plain(row) for row in rows]
    columns = _flat_columns(rows)
    if not columns:
        raise ValueError(f"A table needs rows. Received: rows={rows} for {name!r}")
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / f"{name}.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_joined(row.get(key)) for key in columns] for row in rows)
    with atomic_file(folder / f"{name}.json") as file:
        json.dump(rows, file, indent=2)
        file.write("\n")
    return format_table(rows, columns)


def format_table(rows: Sequence[dict[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Returns rows as aligned text. Numbers are aligned to the right, words to the left.

    Args:
        rows: List of dicts.
        columns: List of the keys to show, in order. Defaults to all keys without dicts as values.

    Returns:
        String, one line per row below the titles.
    """
    rows = [_plain(row) for row in rows]
    columns = columns or _flat_columns(rows)
    blocks = [_column(key, [row.get(key) for row in rows]) for key in columns]
    return "\n".join("  ".join(cells).rstrip() for cells in zip(*blocks))


def _flat_columns(rows):
    """Returns the keys of all rows in order, without those of nested values."""
    nested = {key for row in rows for key, value in row.items() if _is_nested(value)}
    return [key for key in dict.fromkeys(k for row in rows for k in row) if key not in nested]


def _is_nested(value):
    # The hits of every image are no column either.
    entries = value if isinstance(value, list) else [value]
    kinds = (dict, list, bool) if isinstance(value, list) else dict
    return any(isinstance(entry, kinds) for entry in entries)


def _column(key, values):
    """Returns the cells of a column, the title first, padded to the same width."""
    cells = [_TITLES.get(key, key), *_cells(key, values)]
    size = max(len(cell) for cell in cells)
    words = key == "path" or any(isinstance(value, str) for value in values)
    return [cell.ljust(size) if words else cell.rjust(size) for cell in cells]


def _cells(key, values):
    if key in _MADDS:
        digits = 1 if max((value or 0 for value in values), default=0) >= 1e8 else 2
        return ["" if value is None else f"{value / 1e6:.{digits}f}" for value in values]
    return [_cell(key, value) for value in values]


def _cell(key, value):
    if value is None:
        return ""
    if key in _PERCENT:
        return f"{100 * value:.2f}"
    if key == "rho":
        return f"{value:.2f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(_joined(value))


def _joined(value):
    """Returns a path of several gates as one word, such as 0-2-3-1."""
    return "-".join(map(str, value)) if isinstance(value, list) else value


def _plain(value):
    """Returns a value that JSON can hold: tuples as lists, NumPy's numbers as Python's."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(entry) for entry in value]
    # The hits of every image are an array.
    return value.tolist() if hasattr(value, "tolist") else value
