"""Measured latencies of an exported network's paths on a device."""

import dataclasses
import importlib.metadata
import json
import math
import numbers
import operator
import os
import re
from collections.abc import Sequence
from typing import Any

from keras_dsnet.export.dynamic_interpreter import DynamicInterpreter
from keras_dsnet.models import DynamicSlimmableNetwork
from keras_dsnet.utils import UserError
from keras_dsnet.utils.argument_checks import read_json
from keras_dsnet.utils.atomic_file import atomic_file

# The version of the JSON file of a `LatencyTable`.
_FORMAT = 1
_TIMES = ("min_ms", "median_ms")
# The runtimes of `DynamicInterpreter`, as they start the `engine` of a table.
NATIVE_RUNTIME = "LiteRT"
_RUNTIMES = {"interpreter": NATIVE_RUNTIME, "compiled": f"{NATIVE_RUNTIME} CompiledModel"}


@dataclasses.dataclass(frozen=True)
class LatencyTable:
    """The measured latencies of an exported network's paths on one device.

    A benchmark saves a table of its measurements, and `best_path` reads it. A table is of one
    routed file, or of one file for each path. Several files of one type need a table each.

    Args:
        device: Name of the device.
        engine: Name and version of the runtime, such as "LiteRT 2.3.0, XNNPACK",
            "LiteRT CompiledModel 2.3.0", or "LiteRT.js 2.5.3, XNNPACK, WebAssembly" for a table of
            the page in the browser.
        threads: Number of threads.
        network: Name of the network.
        input_shape: `(height, width, 3)` of the images.
        num_widths: Number of widths of each gate.
        quantize: Quantisation of the file that was timed, as for `model.export`. Defaults to
            `None`, which is float32.
        layout: Layout of that file: "shared", "fast" or "staged". Defaults to `None`, for a
            file per path.
        rows: List of dicts, one per path: "path", a list of one width per gate; "madds", the
            multiply-adds of one image, by which `check` recognises the network; and "min_ms" and
            "median_ms" over the runs.

    Raises:
        ValueError: If a field is missing or has a value that no benchmark gives.

    Example:

    ```python
    from keras_dsnet.export import LatencyTable

    table = LatencyTable(
        device="Pixel 7",
        engine="LiteRT 2.3.0",
        threads=1,
        network="ds_mobilenet",
        input_shape=(224, 224, 3),
        num_widths=14,
        rows=[{"path": [0], "madds": 132890144, "min_ms": 3.1, "median_ms": 3.2}],
    )
    assert table.latency_ms(0) == 3.2
    table.save("pixel7.json")
    ```
    """

    device: str
    engine: str
    threads: int
    network: str
    input_shape: tuple
    num_widths: int
    quantize: str | None = None
    layout: str | None = None
    rows: Sequence[dict] = ()

    def __post_init__(self):
        for name in ("device", "engine", "network"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise self._error(name, "must be a name")
        for name in ("threads", "num_widths"):
            if not _is_count(getattr(self, name)):
                raise self._error(name, "must be a positive int")
        for name in ("quantize", "layout"):
            # An empty name is a mistake for None.
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
                f"The path {list(twice[0])} has two rows. A table has one row for each path; a "
                f"second file needs another table. Received: {paths}"
            )
        # The only way to change a frozen dataclass.
        object.__setattr__(self, "input_shape", tuple(shape))
        object.__setattr__(self, "rows", rows)

    def _error(self, name, right):
        return ValueError(f"`{name}` {right}. Received: {name}={getattr(self, name)!r}")

    @property
    def paths(self) -> tuple[tuple[int, ...], ...]:
        """The paths that were measured, each a tuple with a width per gate."""
        return tuple(row["path"] for row in self.rows)

    @property
    def runtime(self) -> str:
        """The name of the runtime: what `engine` has before its version."""
        return re.split(r"[\s,]+v?\d|,", self.engine, maxsplit=1)[0].strip()

    def latency_ms(self, path: int | Sequence[int]) -> float:
        """Returns the median latency of a path, in milliseconds.

        Args:
            path: Width at every gate, or a tuple with a width per gate.

        Raises:
            KeyError: If the path was not measured.
        """
        gates = len(self.rows[0]["path"])
        widths = tuple(path) if isinstance(path, (tuple, list)) else (path,) * gates
        for row in self.rows:
            if row["path"] == widths:
                return row["median_ms"]
        raise KeyError(f"no latency was measured of path {path!r} on {self.device}")

    def check(self, model: DynamicSlimmableNetwork) -> None:
        """Raises a ValueError unless a model has the measured paths, with the same MAdds.

        Args:
            model: A `DynamicSlimmableNetwork`.
        """
        problem = f"The latency table of {self.network!r} on {self.device} is of another network"
        gates = len(self.rows[0]["path"])
        expected, received = (gates, self.num_widths), (model.num_gates, model.num_widths)
        if expected != received:
            raise ValueError(
                f"{problem}: its gates and widths are {expected}. Received: a model of {received}"
            )
        for row in self.rows:
            madds = model.madds(row["path"], self.input_shape)
            if madds != row["madds"]:
                raise ValueError(
                    f"{problem}: path {list(row['path'])} has {row['madds']} MAdds there. "
                    f"Received: a model with {madds} at {self.input_shape}"
                )

    def check_runtime(self, runtime: str | None) -> None:
        """Raises a ValueError unless a runtime is the one that was timed.

        Args:
            runtime: Name of a runtime, such as "LiteRT" or "LiteRT.js", or `None` for any.
        """
        if runtime is not None and self.runtime != runtime:
            raise ValueError(
                f"The latency table of {self.network!r} on {self.device} was measured on "
                f"{self.engine}. Pass runtime={self.runtime!r} to choose a path for that runtime, "
                f"or runtime=None for any. Received: runtime={runtime!r}"
            )

    def give_to(
        self, interpreter: DynamicInterpreter, runtime: str | None = NATIVE_RUNTIME
    ) -> None:
        """Sets the `latency_ms` of an interpreter, as its `calibrate_latency` does.

        The interpreter's `trunk_ms` becomes 0, since the table does not have it. In a file that
        routes by confidence, `budget_ms` then counts the shared layers once for each step, so the
        bound is on the safe side.

        Args:
            interpreter: A `DynamicInterpreter` of the network that was measured.
            runtime: Name of the runtime that the table must be of, or `None` for any, and for any
                number of threads. Defaults to "LiteRT", the runtime of the interpreter: with
                `runtime="compiled"` it is "LiteRT CompiledModel".

        Raises:
            ValueError: If the table is of another runtime, number of threads, file or network.
        """
        is_native = runtime == NATIVE_RUNTIME
        self.check_runtime(_RUNTIMES[interpreter.runtime] if is_native else runtime)
        if is_native and self.threads != interpreter.num_threads:
            raise ValueError(
                f"The latency table of {self.network!r} on {self.device} is of {self.threads} "
                f"threads. Pass runtime=None to take it anyway. Received: an interpreter of "
                f"{interpreter.num_threads}"
            )
        metadata = interpreter.metadata
        for name in ("num_widths", "input_shape", "quantize", "layout"):
            own, other = getattr(self, name), metadata[name]
            if own != (tuple(other) if isinstance(other, list) else other):
                raise ValueError(
                    f"The latency table is of a file with {name}={own!r}. Received: a file with "
                    f"{name}={other!r}"
                )
        madds = {row["path"]: row["madds"] for row in self.rows}
        latencies = {}
        for row in metadata["routes"]:
            path = tuple(row["path"])
            if madds.get(path) != row["madds"]:
                raise ValueError(
                    f"The latency table has no path {list(path)} with {row['madds']} MAdds. "
                    f"Received: a table of {self.network!r} with MAdds {madds}"
                )
            latencies[path[0]] = self.latency_ms(path)
        interpreter.latency_ms = _GivenLatencies(latencies)
        interpreter.latency_ms.origin = self.device, self.engine, self.threads
        interpreter.trunk_ms = 0.0

    def save(self, path: str | os.PathLike) -> None:
        """Writes the table as a JSON file, completely or not at all.

        Args:
            path: Path of the file.

        Raises:
            OSError: If the file cannot be written. An old file survives.
        """
        with atomic_file(path) as file:
            json.dump({"format": _FORMAT, **dataclasses.asdict(self)}, file, indent=2)
            file.write("\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "LatencyTable":
        """Reads a file that `save` wrote.

        Args:
            path: Path of the file.

        Raises:
            OSError: If the file cannot be opened.
            UserError: If the file is not a latency table or is damaged.
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

    @classmethod
    def from_interpreter(
        cls, interpreter: DynamicInterpreter, device: str | None = None
    ) -> "LatencyTable":
        """Returns the table of a `DynamicInterpreter`'s measurements.

        The interpreter keeps medians only, so "min_ms" is the median too.

        Args:
            interpreter: A `DynamicInterpreter`, after `calibrate_latency()` or `give_to`, whose
                table's runtime and threads are those of the new one.
            device: Name of the device. Defaults to that of the table that `give_to` has given,
                else to "this device".

        Raises:
            ValueError: If nothing was measured.
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
        here = "this device", engine_of(interpreter.runtime), interpreter.num_threads
        measured_on, engine, threads = getattr(interpreter.latency_ms, "origin", here)
        return cls(
            device=device or measured_on,
            engine=engine,
            threads=threads,
            network=metadata["network"],
            input_shape=tuple(metadata["input_shape"]),
            num_widths=metadata["num_widths"],
            quantize=metadata["quantize"],
            layout=metadata["layout"],
            rows=rows,
        )


class _GivenLatencies(dict):
    """What `give_to` makes the `latency_ms` of an interpreter, with its `origin`.

    It is the device, the engine and the number of threads of the table. Another measurement takes
    its place with the latencies.
    """

    origin: tuple[str, str, int]


def engine_of(runtime: str) -> str:
    """Returns the `engine` of a runtime on this machine, such as "LiteRT 2.3.0".

    Args:
        runtime: "interpreter" or "compiled", as for `DynamicInterpreter`.
    """
    return f"{_RUNTIMES[runtime]} {importlib.metadata.version('ai-edge-litert')}"


def _is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_latency(value: Any) -> bool:
    """Returns whether a value is a positive number of milliseconds."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value > 0


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
    if not is_latency(least) or not is_latency(median) or least > median:
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
