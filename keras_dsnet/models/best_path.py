"""The sub-network to take within a budget."""

import itertools
import numbers
import os

from keras_dsnet.models.latency_table import LatencyTable
from keras_dsnet.models.path import OFF_ROUTE_ROWS
from keras_dsnet.utils import UserError
from keras_dsnet.utils.json_file import read_json

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

    With both limits a path must keep both. Equal accuracies: the path of fewer MAdds.

    Args:
        model: a `DynamicSlimmableNetwork`; its `routes` are the widths to choose from.
        max_madds: the most multiply-adds of one image, as `model.madds` counts them.
        max_latency_ms: the most milliseconds of one image, in the median of the benchmark; needs a
            latency table.
        latency_table: a `LatencyTable`, or the path of one that a benchmark saved; a path that was
            not measured is not chosen.
        accuracy: the JSON table of `evaluate_paths` that a recipe wrote, or its rows; a path that
            has no row is not chosen. None: more multiply-adds count as more accurate.
        input_shape: `(height, width, 3)` of the images, where the model leaves it open and there is
            no latency table, which tells it.

    Returns:
        What `model(x, path=...)` takes: an int for one gate, a tuple of ints for several.

    Raises:
        ValueError: no limit; tables that do not fit the model or cannot be read; or nothing fits,
            and the message says what would be needed.
        OSError: a table cannot be opened.

    Example:

    >>> table, accuracy = "pixel7.json", "runs/gates/tables/paths.json"
    >>> best_path(model, max_latency_ms=5, latency_table=table, accuracy=accuracy)
    """
    _check_limits(max_madds, max_latency_ms, latency_table)
    if latency_table is not None:
        if not isinstance(latency_table, LatencyTable):
            latency_table = LatencyTable.load(latency_table)
        latency_table.check(model)
        if tuple(input_shape or latency_table.input_shape) != latency_table.input_shape:
            raise ValueError(
                f"The latency table is of images of {latency_table.input_shape}. "
                f"Received: input_shape={input_shape}"
            )
        input_shape = latency_table.input_shape
    top1 = None if accuracy is None else _read_accuracy(model, accuracy, input_shape)
    paths = _candidates(model, latency_table, top1)
    madds = {path: model.madds(path, input_shape) for path in paths}
    if max_madds is not None:
        paths = _within(paths, madds, "max_madds", max_madds, "MAdds")
    if max_latency_ms is not None:
        latency = {path: latency_table.latency_ms(path) for path in paths}
        paths = _within(paths, latency, "max_latency_ms", max_latency_ms, "ms")
    if top1 is None:
        best = max(paths, key=madds.get)
    else:
        best = max(paths, key=lambda path: (top1[path], -madds[path]))
    return best[0] if model.num_gates == 1 else best


def _check_limits(max_madds, max_latency_ms, latency_table):
    if max_madds is None and max_latency_ms is None:
        raise ValueError("A budget is needed: pass `max_madds`, `max_latency_ms` or both.")
    for name, limit in (("max_madds", max_madds), ("max_latency_ms", max_latency_ms)):
        if limit is not None and not (isinstance(limit, numbers.Real) and limit > 0):
            raise ValueError(f"`{name}` must be a positive number. Received: {name}={limit!r}")
    if (max_latency_ms is None) != (latency_table is None):
        raise ValueError(
            "`max_latency_ms` and `latency_table` need each other. Received: "
            f"max_latency_ms={max_latency_ms!r}, latency_table={latency_table!r}"
        )


def _candidates(model, latency_table, top1):
    """Returns the paths of the routes that the tables tell of: tuples of ints."""
    gates, routes = model.num_gates, model.routes
    tables = [table for table in (latency_table and latency_table.paths, top1) if table is not None]
    if tables:
        known = [path for path in tables[0] if all(path in table for table in tables[1:])]
        paths = [path for path in known if set(path) <= set(routes)]
        if not paths:
            raise ValueError(
                f"No path of the routes {routes} was both evaluated and timed, as the given tables "
                f"need. Received: tables of {' and of '.join(str(list(table)) for table in tables)}"
            )
        return paths
    if len(routes) ** gates > _MOST_PATHS:
        raise ValueError(
            f"The routes have {len(routes) ** gates} paths, too many to try: pass `accuracy` or "
            f"`latency_table`, or set fewer. Received: model.routes={routes}"
        )
    return list(itertools.product(routes, repeat=gates))


def _within(paths, costs, name, limit, unit):
    fitting = [path for path in paths if costs[path] <= limit]
    if not fitting:
        least = min(paths, key=costs.get)
        needed = f"{costs[least]:g}" if unit == "ms" else f"{costs[least]}"
        shown = least[0] if len(least) == 1 else least
        raise ValueError(
            f"No path fits: the least that is needed is {needed} {unit}, by path {shown}. "
            f"Received: {name}={limit!r}"
        )
    return fitting


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
        if row["path"] in OFF_ROUTE_ROWS:
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
