"""How long the paths of a network take on a device."""

import dataclasses
import importlib.metadata
import json
import math
import numbers
import operator

from keras_dsnet.utils import UserError
from keras_dsnet.utils.atomic_file import atomic_file
from keras_dsnet.utils.json_file import read_json

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
