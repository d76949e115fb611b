"""Picks the best path within a budget of multiply-adds or of milliseconds on a device."""

import dataclasses
import importlib.metadata
import itertools
import json
import math
import numbers
import operator
import os
import warnings

from keras_dsnet.utils import UserError
from keras_dsnet.utils.argument_checks import read_json
from keras_dsnet.utils.atomic_file import atomic_file

# `training.evaluation.OFF_ROUTE_ROWS`, which this folder cannot import: the rows of
# `evaluate_paths` that belong to no path of the routes.
_OFF_ROUTE_ROWS = ("dynamic", "largest")
_MOST_PATHS = 4096


def best_path(
    model,
    max_madds=None,
    max_latency_ms=None,
    latency_table=None,
    accuracy=None,
    input_shape=None,
):
    """Returns the most accurate path of a network within a budget.

    All widths of the network are looked at, whatever its `routes`, which are the choices of its
    gates. With both limits a path must keep both. Equal accuracies: the path of fewer MAdds. Where
    no path fits, the one that goes least beyond the budget is returned, the cheapest, with a
    warning.

    Args:
        model: a `DynamicSlimmableNetwork`.
        max_madds: the most multiply-adds of one image, as `model.madds` counts them.
        max_latency_ms: the most milliseconds of one image, in the median of the benchmark; needs a
            latency table.
        latency_table: a `LatencyTable`, or the file of one that a benchmark saved; or a
            `DynamicInterpreter` after `calibrate_latency()`, or its `latency_ms`, a dict from route
            to milliseconds. A path that was not measured is not chosen.
        accuracy: the JSON table of `evaluate_paths` that a recipe wrote, or its rows; a path that
            has no row is not chosen. None: more multiply-adds count as more accurate.
        input_shape: `(height, width, 3)` of the images, where the model leaves it open and there is
            no latency table, which tells it.

    Returns:
        What `model(x, path=...)` takes: an int for one gate, a tuple of ints for several.

    Raises:
        ValueError: no limit, or tables that do not fit the model or cannot be read.
        OSError: a table cannot be opened.

    Example:

    >>> table, accuracy = "pixel7.json", "runs/gates/tables/paths.json"
    >>> best_path(model, max_latency_ms=5, latency_table=table, accuracy=accuracy)

    On the device, by what it has measured itself:

    >>> interpreter = keras_dsnet.export.DynamicInterpreter("m.tflite")
    >>> best_path(model, max_latency_ms=5, latency_table=interpreter.calibrate_latency())
    """
    _check_limits(max_madds, max_latency_ms, latency_table)
    latency = None
    if latency_table is not None:
        latency, shape = _read_latency(model, latency_table)
        if shape is not None and tuple(input_shape or shape) != shape:
            raise ValueError(
                f"The latency table is of images of {shape}. Received: input_shape={input_shape}"
            )
        input_shape = shape or input_shape
    top1 = None if accuracy is None else _read_accuracy(model, accuracy, input_shape)
    paths = _candidates(model, latency, top1)
    madds = {path: model.madds(path, input_shape) for path in paths}
    limits = []
    if max_madds is not None:
        limits.append(("max_madds", max_madds, madds, "MAdds"))
    if max_latency_ms is not None:
        limits.append(("max_latency_ms", max_latency_ms, latency, "ms"))
    fitting = [p for p in paths if all(costs[p] <= limit for _, limit, costs, _ in limits)]
    if not fitting:
        best = min(
            paths, key=lambda path: max(costs[path] / limit for _, limit, costs, _ in limits)
        )
        _warn_of_no_path(best, limits)
    elif top1 is None:
        best = max(fitting, key=madds.get)
    else:
        best = max(fitting, key=lambda path: (top1[path], -madds[path]))
    return best[0] if model.num_gates == 1 else best


def _check_limits(max_madds, max_latency_ms, latency_table):
    if max_madds is None and max_latency_ms is None:
        raise ValueError("A budget is needed: pass `max_madds`, `max_latency_ms` or both.")
    for name, limit in (("max_madds", max_madds), ("max_latency_ms", max_latency_ms)):
        is_number = isinstance(limit, numbers.Real) and not isinstance(limit, bool)
        if limit is not None and not (is_number and limit > 0):
            raise ValueError(f"`{name}` must be a positive number. Received: {name}={limit!r}")
    if (max_latency_ms is None) != (latency_table is None):
        raise ValueError(
            "`max_latency_ms` and `latency_table` need each other. Received: "
            f"max_latency_ms={max_latency_ms!r}, latency_table={latency_table!r}"
        )


def _read_latency(model, table):
    """Returns milliseconds by path, and the shape of the images or None where it is not known."""
    if isinstance(getattr(table, "latency_ms", None), dict):
        _check_measured(table.latency_ms)
        table = LatencyTable.from_interpreter(table)
    if isinstance(table, dict):
        _check_measured(table)
        return {_measured_path(model, path): ms for path, ms in table.items()}, None
    if not isinstance(table, LatencyTable):
        if not isinstance(table, (str, os.PathLike)):
            raise ValueError(
                "`latency_table` must be a LatencyTable or its file, or what a DynamicInterpreter "
                f"has measured. Received: latency_table={table!r}"
            )
        table = LatencyTable.load(table)
    table.check(model)
    return {path: table.latency_ms(path) for path in table.paths}, table.input_shape


def _check_measured(latency_ms):
    """Raises a ValueError unless a dict has milliseconds."""
    if not latency_ms:
        raise ValueError(
            "`latency_table` has no latencies: call `calibrate_latency()` of the interpreter "
            "first. Received: latency_table={}"
        )
    for path, ms in latency_ms.items():
        is_number = isinstance(ms, numbers.Real) and not isinstance(ms, bool)
        if not is_number or not 0 < ms < math.inf:
            raise ValueError(
                "`latency_table` must have a positive number of milliseconds for each path. "
                f"Received: {ms!r} for path {path!r}"
            )


def _measured_path(model, path):
    # JSON makes strings of the widths that `DynamicInterpreter.latency_ms` has as keys.
    path = int(path) if isinstance(path, str) and path.isdecimal() else path
    try:
        return model.resolve_path(path).gates
    except ValueError as error:
        raise ValueError(f"`latency_table` is of another network: {error}") from error


def _candidates(model, latency, top1):
    """Returns the paths that the tables tell of, or all: tuples of ints."""
    gates, routes, widths = model.num_gates, model.routes, range(model.num_widths)
    tables = [table for table in (latency, top1) if table is not None]
    if tables:
        paths = [path for path in tables[0] if all(path in table for table in tables[1:])]
        if not paths:
            raise ValueError(
                "No path was both evaluated and timed, as the given tables need. Received: tables "
                f"of {' and of '.join(str(list(table)) for table in tables)}"
            )
        return paths
    if len(widths) ** gates <= _MOST_PATHS:
        return list(itertools.product(widths, repeat=gates))
    if len(routes) ** gates <= _MOST_PATHS:
        uniform = [(width,) * gates for width in widths]
        return list(dict.fromkeys([*uniform, *itertools.product(routes, repeat=gates)]))
    raise ValueError(
        f"The network has {len(widths) ** gates} paths, and its routes "
        f"{len(routes) ** gates}, too many to try: pass `accuracy` or `latency_table`, or set "
        f"fewer routes. Received: model.routes={routes}"
    )


def _warn_of_no_path(path, limits):
    """Warns that no path fits, and says what the one that is taken needs."""
    shown = path[0] if len(path) == 1 else path
    needed = [
        f"{costs[path]:g} ms" if unit == "ms" else f"{costs[path]} MAdds"
        for _, _, costs, unit in limits
    ]
    received = ", ".join(f"{name}={limit!r}" for name, limit, _, _ in limits)
    warnings.warn(
        f"No path fits: the cheapest, {shown}, is taken, which needs {' and '.join(needed)}. "
        f"Received: {received}",
        stacklevel=3,
    )


def _read_accuracy(model, accuracy, input_shape):
    """Returns the top-1 accuracy of each path of a table: dict from tuple of ints to float."""
    if isinstance(accuracy, (str, os.PathLike)):
        rows, what = read_json(accuracy, "accuracy table"), f"accuracy table {accuracy}"
    else:
        rows, what = accuracy, "`accuracy`"
    if not isinstance(rows, (list, tuple)) or not rows:
        raise UserError(f"{what} must be rows of `evaluate_paths`. Received: {type(rows).__name__}")
    top1 = {}
    for row in rows:
        if not isinstance(row, dict) or not {"path", "top1"} <= set(row):
            raise UserError(f"{what} must have path and top1 in every row. Received: {row!r}")
        if row["path"] in _OFF_ROUTE_ROWS:
            continue
        if not isinstance(row["top1"], numbers.Real) or not 0 <= row["top1"] <= 1:
            raise UserError(f"{what} must have a top1 from 0 to 1. Received: top1={row['top1']!r}")
        top1[_path_of_row(model, row, what, input_shape)] = row["top1"]
    return top1


def _path_of_row(model, row, what, input_shape):
    """Returns the path of a row, of which the model must say the same multiply-adds."""
    try:
        path = model.resolve_path(row["path"]).gates
    except ValueError as error:
        raise UserError(f"{what} is of another network: {error}") from error
    madds = model.madds(path, input_shape)
    if row.get("madds", madds) != madds:
        raise UserError(
            f"{what} is of another network or image size: path {row['path']} has {row['madds']} "
            f"MAdds there, and {madds} in this model"
        )
    return path


_FORMAT = 1
_TIMES = ("min_ms", "median_ms")


@dataclasses.dataclass(frozen=True)
class LatencyTable:
    """The measured latency of every path of an exported network on one device.

    A benchmark makes it from what it measured and saves it; `best_path` reads it.

    Args:
        device: name of the device.
        engine: the runtime, with its version, such as "LiteRT 2.3.0, XNNPACK".
        threads: int.
        network: name of the network.
        input_shape: `(height, width, 3)` of the images.
        num_widths: int, the widths of each gate.
        quantize: of the file that was timed, as `model.export` takes it; None: float32.
        layout: of that file, "shared" or "fast"; None: each path was a file of its own. A table is
            of one file, or of one file for each path: two files of one type have a table each.
        rows: list of dicts, one per path: "path", one width per gate; "madds", the multiply-adds of
            one image, which show whether a network is the one that was timed; "min_ms" and
            "median_ms" over the runs.

    Raises:
        ValueError: something is missing, or has a value that no benchmark gives.

    Example:

    >>> rows = [{"path": [0], "madds": 132890144, "min_ms": 3.1, "median_ms": 3.2}]
    >>> shape = (224, 224, 3)
    >>> table = LatencyTable("Pixel 7", "LiteRT 2.3.0", 1, "ds_mobilenet", shape, 14, rows=rows)
    >>> table.save("pixel7.json")
    """

    device: str
    engine: str
    threads: int
    network: str
    input_shape: tuple
    num_widths: int
    quantize: str | None = None
    layout: str | None = None
    rows: tuple = ()

    def __post_init__(self):
        for name in ("device", "engine", "network"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise self._error(name, "must be a name")
        for name in ("threads", "num_widths"):
            if not _is_count(getattr(self, name)):
                raise self._error(name, "must be a positive int")
        for name in ("quantize", "layout"):
            # No name at all is a mistake for None.
            if not isinstance(getattr(self, name), str | None) or getattr(self, name) == "":
                raise self._error(name, "must be a name or None")
        shape = self.input_shape if isinstance(self.input_shape, (tuple, list)) else ()
        if len(shape) != 3 or not all(map(_is_count, shape)):
            raise self._error("input_shape", "must be (height, width, channels)")
        if not isinstance(self.rows, (tuple, list)) or not self.rows:
            raise self._error("rows", "must be a list with a dict for each path")
        rows = tuple(_checked_row(row, self.num_widths) for row in self.rows)
        paths = [row["path"] for row in rows]
        if len({len(path) for path in paths}) > 1:
            raise ValueError(f"Every path needs as many widths as the others. Received: {paths}")
        twice = [path for path in paths if paths.count(path) > 1]
        if twice:
            raise ValueError(
                f"The path {list(twice[0])} has two rows; a path has one, and a second file "
                f"another table. Received: {paths}"
            )
        # A frozen dataclass is changed this way only.
        object.__setattr__(self, "input_shape", tuple(shape))
        object.__setattr__(self, "rows", rows)

    def _error(self, name, what):
        return ValueError(f"`{name}` {what}. Received: {name}={getattr(self, name)!r}")

    @property
    def paths(self):
        """The paths that were measured: tuples with a width per gate."""
        return tuple(row["path"] for row in self.rows)

    def latency_ms(self, path):
        """Returns the median latency of a path, in milliseconds.

        Args:
            path: int, the width at every gate, or a tuple with one per gate.

        Raises:
            KeyError: it was not measured.
        """
        gates = len(self.rows[0]["path"])
        widths = tuple(path) if isinstance(path, (tuple, list)) else (path,) * gates
        for row in self.rows:
            if row["path"] == widths:
                return row["median_ms"]
        raise KeyError(f"no latency was measured of path {path!r} on {self.device}")

    def check(self, model):
        """Raises a ValueError unless `model` has the paths that were measured, of the same cost.

        Args:
            model: a `DynamicSlimmableNetwork`.
        """
        table = f"The latency table of {self.network!r} on {self.device} is of another network"
        gates = len(self.rows[0]["path"])
        expected, received = (gates, self.num_widths), (model.num_gates, model.num_widths)
        if expected != received:
            raise ValueError(
                f"{table}: its gates and widths are {expected}. Received: a model of {received}"
            )
        for row in self.rows:
            madds = model.madds(row["path"], self.input_shape)
            if madds != row["madds"]:
                raise ValueError(
                    f"{table}: path {list(row['path'])} has {row['madds']} MAdds there. "
                    f"Received: a model with {madds} at {self.input_shape}"
                )

    def save(self, path):
        """Writes the table as JSON, whole or not at all.

        Raises:
            OSError: it cannot be written; a file that was there before still is.
        """
        with atomic_file(path) as file:
            json.dump({"format": _FORMAT, **dataclasses.asdict(self)}, file, indent=2)
            file.write("\n")

    @classmethod
    def from_interpreter(cls, interpreter, device="this device"):
        """Returns the table of what a `DynamicInterpreter` has measured, one of one file.

        Args:
            interpreter: a `keras_dsnet.export.DynamicInterpreter`, after `calibrate_latency()`,
                which keeps medians: they stand for the least time too.
            device: its name.

        Raises:
            ValueError: nothing was measured.
        """
        if not interpreter.latency_ms:
            raise ValueError("There are no latencies: call `calibrate_latency()` first.")
        metadata = interpreter.metadata
        madds = {tuple(row["path"]): row["madds"] for row in metadata["routes"]}
        rows = [
            {"path": path, "madds": madds[path], "min_ms": median, "median_ms": median}
            for route, median in interpreter.latency_ms.items()
            for path in [(route,) * interpreter.num_gates]
        ]
        return cls(
            device=device,
            engine=f"LiteRT {importlib.metadata.version('ai-edge-litert')}",
            threads=interpreter.num_threads,
            network=metadata["network"],
            input_shape=tuple(metadata["input_shape"]),
            num_widths=metadata["num_widths"],
            quantize=metadata["quantize"],
            layout=metadata["layout"],
            rows=rows,
        )

    @classmethod
    def load(cls, path):
        """Reads what `save` wrote.

        Raises:
            OSError: the file cannot be opened.
            UserError: it is not a latency table, or a damaged one.
        """
        fields = read_json(path, "latency table")
        if not isinstance(fields, dict):
            raise UserError(
                f"latency table {path} must be a JSON object with device, engine, rows and more. "
                f"Received: a {type(fields).__name__}"
            )
        known = {field.name for field in dataclasses.fields(cls)} | {"format"}
        given = set(fields)
        if fields.get("format", _FORMAT) != _FORMAT:
            raise UserError(
                f"latency table {path} has format {fields['format']!r}; this version reads "
                f"{_FORMAT}"
            )
        if given != known:
            wrong = sorted(known - given) or sorted(given - known)
            state = "lacks" if known - given else "has unknown"
            raise UserError(f"latency table {path} {state} {', '.join(wrong)}")
        fields.pop("format")
        try:
            return cls(**fields)
        except ValueError as error:
            raise UserError(f"latency table {path}: {error}") from error


def _is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_time(value):
    return isinstance(value, numbers.Real) and math.isfinite(value) and value > 0


def _checked_row(row, num_widths):
    """Returns a row with its path as a tuple."""
    keys = ("path", "madds", *_TIMES)
    if not isinstance(row, dict) or set(row) != set(keys):
        raise ValueError(f"A row must have {', '.join(keys)}. Received: {row!r}")
    path = _widths(row["path"])
    if not path or not all(0 <= width < num_widths for width in path):
        raise ValueError(
            f"The path of a row must be widths from 0 to {num_widths - 1}, one per gate. "
            f"Received: path={row['path']!r}"
        )
    least, median = (row[key] for key in _TIMES)
    if not _is_time(least) or not _is_time(median) or least > median:
        raise ValueError(
            "Latencies must be positive milliseconds, the least no more than the median. "
            f"Received: path={list(path)}, min_ms={least!r}, median_ms={median!r}"
        )
    if not _is_count(row["madds"]):
        raise ValueError(f"`madds` must be a positive int. Received: madds={row['madds']!r}")
    return {**row, "path": path, "min_ms": float(least), "median_ms": float(median)}


def _widths(path):
    try:
        return tuple(operator.index(width) for width in path)
    except TypeError:
        return ()
