"""Choice of a network's path for a budget of multiply-adds or of milliseconds on a device."""

import itertools
import numbers
import os
import warnings
from collections.abc import Sequence

from keras_dsnet.export.dynamic_interpreter import DynamicInterpreter
from keras_dsnet.export.latency_table import NATIVE_RUNTIME, LatencyTable, is_latency
from keras_dsnet.models import DynamicSlimmableNetwork
from keras_dsnet.utils import UserError
from keras_dsnet.utils.argument_checks import read_json

# Rows of `evaluate_paths` that belong to no path of the routes. `export` cannot import their names
# from `training.evaluation`.
_OFF_ROUTE_ROWS = ("dynamic", "gate", "confidence", "gate+confidence", "largest")
_MOST_PATHS = 4096


def best_path(
    model: DynamicSlimmableNetwork,
    max_madds: float | None = None,
    max_latency_ms: float | None = None,
    latency_table: LatencyTable | DynamicInterpreter | dict | str | os.PathLike | None = None,
    accuracy: Sequence[dict] | str | os.PathLike | None = None,
    input_shape: tuple[int, int, int] | None = None,
    runtime: str | None = NATIVE_RUNTIME,
) -> int | tuple[int, ...]:
    """Returns the most accurate path of a network within a budget.

    The candidates are all widths of the network, not only its `routes`, among which its gates
    choose. With both limits a path must keep both. Of equally accurate paths the one with the
    fewest MAdds is returned. If no path fits, the path that exceeds the budget by the smallest
    factor is returned, with a warning.

    Args:
        model: A `DynamicSlimmableNetwork`.
        max_madds: Maximum multiply-adds of one image, as `model.madds` counts them. Defaults to
            `None`, which sets no limit.
        max_latency_ms: Maximum latency of one image in milliseconds, compared with the median of
            the benchmark. Needs a latency table. Defaults to `None`, which sets no limit.
        latency_table: A `LatencyTable`; the path of the file of one, as a benchmark saves it; a
            `DynamicInterpreter` after `calibrate_latency()`; or its `latency_ms`, a dict from route
            to milliseconds. Only paths that were measured are candidates. Defaults to `None`.
        accuracy: The rows that `evaluate_paths` returns, or the path of a JSON file of them, as a
            recipe writes it. Only paths that have a row are candidates. Defaults to `None`, with
            which a path with more MAdds counts as more accurate.
        input_shape: `(height, width, 3)` of the images. Defaults to the shape of the latency table,
            else of the model. Required if neither has one.
        runtime: Name of the runtime that will run the path, such as "LiteRT" or, in a browser,
            "LiteRT.js". A `LatencyTable` of another runtime is refused. With `None` any is taken.
            Defaults to "LiteRT".

    Returns:
        A path as `model(x, path=...)` takes it: an int for one gate, or a tuple of ints with a
        width per gate for several.

    Raises:
        ValueError: If there is no limit, or a table cannot be read or does not fit the model.
        OSError: If the file of a table cannot be opened.

    Example:

    ```python
    from keras_dsnet.export import best_path
    from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, MobileNetStage

    spec = MobileNetSpec(stem=(4, 6), stages=(MobileNetStage(1, 2, (8, 12, 16), gated=True),))
    model = DynamicSlimmableNetwork(spec, (16, 16, 3), classes=5)
    assert best_path(model, max_madds=model.madds(1)) == 1
    # Measured by `DynamicInterpreter.calibrate_latency()`.
    latency_ms = {0: 1.5, 1: 2.5, 2: 4.0}
    assert best_path(model, max_latency_ms=2.0, latency_table=latency_ms) == 0
    accuracy = [{"path": 0, "top1": 0.6}, {"path": 1, "top1": 0.8}, {"path": 2, "top1": 0.7}]
    assert best_path(model, max_madds=model.madds(2), accuracy=accuracy) == 1
    ```
    """
    _check_limits(max_madds, max_latency_ms, latency_table)
    latency = None
    if latency_table is not None:
        latency, shape = _read_latency(model, latency_table, runtime)
        if shape is not None and tuple(input_shape or shape) != shape:
            raise ValueError(
                f"The latency table is of images of {shape}. Received: input_shape={input_shape}"
            )
        input_shape = shape or input_shape
    top1 = None if accuracy is None else _read_accuracy(model, accuracy, input_shape)
    paths = _candidates(model, latency, top1)
    madds = {path: model.madds(path, input_shape) for path in paths}
    limits: list[tuple] = []
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
        best = max(fitting, key=lambda path: madds[path])
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


def _read_latency(model, table, runtime):
    """Returns a dict from path to milliseconds, and the images' shape, or None if not known."""
    if isinstance(getattr(table, "latency_ms", None), dict):
        _check_measured(table.latency_ms)
        table = LatencyTable.from_interpreter(table)
    if isinstance(table, dict):
        _check_measured(table)
        return {_measured_path(model, path): ms for path, ms in table.items()}, None
    if not isinstance(table, LatencyTable):
        if not isinstance(table, (str, os.PathLike)):
            raise ValueError(
                "`latency_table` must be a LatencyTable or its file, a DynamicInterpreter, or the "
                f"`latency_ms` of one. Received: latency_table={table!r}"
            )
        table = LatencyTable.load(table)
    table.check(model)
    table.check_runtime(runtime)
    return {path: table.latency_ms(path) for path in table.paths}, table.input_shape


def _check_measured(latency_ms):
    """Raises a ValueError unless every value of a dict is a latency."""
    if not latency_ms:
        raise ValueError(
            "`latency_table` has no latencies: call `calibrate_latency()` of the interpreter "
            "first. Received: latency_table={}"
        )
    for path, ms in latency_ms.items():
        if not is_latency(ms):
            raise ValueError(
                "`latency_table` must have a positive number of milliseconds for each path. "
                f"Received: {ms!r} for path {path!r}"
            )


def _measured_path(model, path):
    # JSON turns the int keys of `DynamicInterpreter.latency_ms` into strings.
    path = int(path) if isinstance(path, str) and path.isdecimal() else path
    try:
        return model.resolve_path(path).gates
    except ValueError as error:
        raise ValueError(f"`latency_table` is of another network: {error}") from error


def _read_accuracy(model, accuracy, input_shape):
    """Returns a dict from path, a tuple of ints, to top-1 accuracy."""
    if isinstance(accuracy, (str, os.PathLike)):
        rows, name = read_json(accuracy, "accuracy table"), f"accuracy table {accuracy}"
    else:
        rows, name = accuracy, "`accuracy`"
    if not isinstance(rows, (list, tuple)) or not rows:
        raise UserError(f"{name} must be rows of `evaluate_paths`. Received: {type(rows).__name__}")
    top1 = {}
    for row in rows:
        if not isinstance(row, dict) or not {"path", "top1"} <= set(row):
            raise UserError(f"{name} must have path and top1 in every row. Received: {row!r}")
        if row["path"] in _OFF_ROUTE_ROWS:
            continue
        if not isinstance(row["top1"], numbers.Real) or not 0 <= row["top1"] <= 1:
            raise UserError(f"{name} must have a top1 from 0 to 1. Received: top1={row['top1']!r}")
        top1[_evaluated_path(model, row, name, input_shape)] = row["top1"]
    return top1


def _evaluated_path(model, row, name, input_shape):
    """Returns the path of a row, and checks that its MAdds are those of the model."""
    try:
        path = model.resolve_path(row["path"]).gates
    except ValueError as error:
        raise UserError(f"{name} is of another network: {error}") from error
    madds = model.madds(path, input_shape)
    if row.get("madds", madds) != madds:
        raise UserError(
            f"{name} is of another network or image size: path {row['path']} has {row['madds']} "
            f"MAdds there, and {madds} in this model"
        )
    return path


def _candidates(model, latency, top1):
    """Returns the paths that are in every given table, or all paths without a table."""
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
    """Warns that no path fits, with the costs of the path that is returned instead."""
    shown = path[0] if len(path) == 1 else path
    needed = [
        f"{costs[path]:g} ms" if unit == "ms" else f"{costs[path]} MAdds"
        for _, _, costs, unit in limits
    ]
    received = ", ".join(f"{name}={limit!r}" for name, limit, _, _ in limits)
    warnings.warn(
        f"No path fits the budget. The cheapest, {shown}, is returned and needs "
        f"{' and '.join(needed)}. Received: {received}",
        stacklevel=3,
    )
