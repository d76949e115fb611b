"""The results of the runs of a table."""

import importlib.metadata
import json
import pathlib
import platform
import subprocess

import numpy as np
from keras_dsnet_recipes.lib import comparison, hits, reproduction
from keras_dsnet_recipes.lib.paper_tables import STAGE_1
from keras_dsnet_recipes.lib.reproduction import is_finished

RECORD = "reproduce.json"
# Flags that may differ between the runs of a table, beside those of the arms.
_FREE = ("seed", "data_dir", "supernet", "checkpoint_steps", "__paths__")
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def collect(table, runs, workdir, data, split, data_dir=None):
    """Collects the finished runs of a table.

    Args:
        table: A `reproduction.Table`.
        runs: List of `reproduction.Run`.
        workdir: Path of the folder with the folders of the runs.
        data: Str, the name of the data.
        split: Str, TFDS slice of the images that are read, or None for validation images.
        data_dir: Str or None, folder of prepared data sets.

    Returns:
        Dict that JSON can hold: "rows", "contrasts", "drops", "verdict", "record".

    Raises:
        ValueError: If no run is finished, or the runs differ by more than the flags of their arms.
    """
    own = [run for run in runs if run.arm in table.arms]
    done = [run for run in own if is_finished(workdir / run.name)]
    if not done:
        raise ValueError(
            f"no run of {table.title} is finished in {workdir}. Expected: "
            f"{', '.join(run.name for run in own) or 'a table with arms'}"
        )
    configs = {run.name: _read(workdir / run.name / "config.json") for run in done}
    _check_same(table, done, configs)
    measured = _Measured(workdir, split, data_dir)
    rows = [row for run in done for row in measured.rows(run)]
    contrasts = [_contrast(contrast, done, measured) for contrast in table.contrasts]
    contrasts = [contrast for contrast in contrasts if contrast]
    verdicts = [row["verdict"] for row in contrasts if row["paper"] is not None]
    return {
        "table": table.name,
        "title": table.title,
        "data": data,
        "images": f"{split or _eval_split(configs)}",
        "verdict": comparison.joint_verdict(verdicts),
        "rows": rows,
        "contrasts": contrasts,
        "drops": _drops(done, workdir),
        "curves": _curves(done, workdir),
        "record": {
            **versions(),
            "runs": [_record(run, workdir, configs[run.name]) for run in done],
            "not_finished": [run.name for run in own if run not in done],
        },
    }


class _Measured:
    """The hits of the runs of a table, each read once."""

    def __init__(self, workdir, split, data_dir):
        self._workdir, self._split, self._data_dir = workdir, split, data_dir
        self._known = {}

    def hits(self, run, weights):
        """Returns the rows of `hits.load_hits`, or None where a run has no such weights."""
        if not _has_teacher(run):
            # Without a teacher the saved weights are the online ones.
            weights = "saved"
        key = (run.name, weights)
        if key not in self._known:
            self._known[key] = hits.load_hits(
                self._workdir / run.name,
                self._workdir / "hits",
                self._split,
                weights,
                self._data_dir,
            )
        return self._known[key]

    def rows(self, run):
        """Returns the rows of a run for the table: both ends, and the gates where there are any."""
        kinds = ["saved"]
        if _has_teacher(run):
            kinds.append("online")
        rows = []
        for weights in kinds:
            found = self.hits(run, weights)
            static = hits.static_paths(found)
            ends = {"slimmest": static[0], "widest": static[-1]}
            if len(static) == 1:
                ends = {f"width {static[0]['path']}": static[0]}
            if "dynamic" in found:
                ends["gate"] = found["dynamic"]
            for name, row in ends.items():
                rows.append(
                    {
                        "arm": run.arm.name,
                        "seed": run.seed,
                        "weights": weights,
                        "path": name,
                        "madds": row["madds"],
                        "top1": float(row["hits"].mean()),
                    }
                )
                if name == "gate" and (line := _line(found)) is not None:
                    rows[-1]["gain"] = rows[-1]["top1"] - float(line.mean())
        return rows

    def top1(self, run, path, weights):
        """Returns float `[images]`: hits of an end, or those of the gates above the line."""
        found = self.hits(run, weights)
        static = hits.static_paths(found)
        if path != "gate":
            return static[0 if path == "slimmest" else -1]["hits"].astype("float64")
        line = _line(found)
        return None if line is None else found["dynamic"]["hits"] - line


def _has_teacher(run):
    alone = any(flag.startswith("--alone") for flag in run.arm.flags)
    return run.arm.program == STAGE_1 and not alone and "--target=in_place" not in run.arm.flags


def _line(found):
    static = hits.static_paths(found)
    line = comparison.static_line
    return line(
        [r["hits"] for r in static], [r["madds"] for r in static], found["dynamic"]["madds"]
    )


def _contrast(contrast, runs, measured):
    """Returns the row of a contrast, or None if one of its arms has no finished run."""

    def arm(name):
        found = [run for run in runs if run.arm.name == name]
        arrays = [measured.top1(run, contrast.path, contrast.weights) for run in found]
        return None if not arrays or any(a is None for a in arrays) else np.stack(arrays)

    first = arm(contrast.first)
    if first is None:
        return None
    # The hits of a gate are those above the line, so that a comparison with the line is with 0.
    is_line = contrast.second == "line"
    second = np.zeros_like(first) if is_line else arm(contrast.second)
    if second is None:
        return None
    names = sorted({run.arm.name for run in runs} - {contrast.first, contrast.second})
    others = [array for array in map(arm, names) if array is not None] if not is_line else []
    found = comparison.difference(first, second, others, paired=is_line)
    claimed = contrast.paper is not None
    return {
        "first": contrast.first,
        "second": contrast.second,
        "path": contrast.path,
        "weights": contrast.weights,
        "paper": contrast.paper,
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "seeds": found.seeds,
        "images": found.images,
        "num_seeds": found.num_seeds,
        "verdict": comparison.verdict(found, contrast.paper) if claimed else None,
    }


def _check_same(table, runs, configs):
    arms = [flag for run in runs for flag in run.arm.flags]
    allowed = {*_FREE, *(flag.lstrip("-").split("=")[0] for flag in arms)}
    allowed |= {name.removeprefix("no") for name in allowed}
    for config in {run.arm.config for run in runs}:
        same = [configs[run.name] for run in runs if run.arm.config == config]
        different = reproduction.differing_flags(same, allowed)
        if different:
            name = different[0]
            values = sorted({str(config.get(name)) for config in same})
            raise ValueError(
                f"the runs of {table.title} must have one schedule, augmentation and data. "
                f"Received: --{name} of {' and '.join(values)}"
            )


def _drops(runs, workdir):
    """Returns how often the slimmest of each run of stage I fell over 5 points in an epoch."""
    return {name: comparison.count_drops(curve) for name, curve in _curves(runs, workdir).items()}


def _curves(runs, workdir):
    """Returns the accuracy of the slimmest on validation images after each epoch of stage I."""
    from keras_dsnet.runs import read_log

    curves = {}
    for run in runs:
        if run.arm.program != STAGE_1 or not (workdir / run.name / "log.csv").is_file():
            continue
        log = read_log(workdir / run.name / "log.csv")
        values = [float(row["val_top1_slimmest"]) for row in log if row.get("val_top1_slimmest")]
        if values:
            curves[run.name] = values
    return curves


def _eval_split(configs):
    return next(iter(configs.values()))["eval_split"]


def _record(run, workdir, config):
    path = workdir / run.name / RECORD
    recorded = _read(path) if path.is_file() else {}
    seconds = recorded.get("seconds")
    return {
        "name": run.name,
        "seed": config["seed"],
        "hours": None if seconds is None else round(seconds / 3600, 3),
        "commit": recorded.get("commit"),
        "config": {name: value for name, value in config.items() if name != "data_dir"},
    }


def versions():
    """Returns the commit of the checkout, and the versions of what computes."""
    root = pathlib.Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        commit = done.stdout.strip() or None
    except OSError:
        commit = None
    packages = ("keras-dsnet", "keras", "tensorflow", "numpy")
    return {
        "commit": commit,
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: _version(name) for name in packages},
    }


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read(path):
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))


def plot_differences(result, path):
    """Draws the differences of a table with their intervals, and the figures of the paper.

    Args:
        result: Dict of `collect`.
        path: Path of the image file.
    """
    rows = result["contrasts"]
    figure, axes = _figure(1.2 + 0.45 * len(rows))
    for number, row in enumerate(rows):
        low, high = (row["low"], row["high"]) if row["low"] is not None else row["images"]
        style = "-" if row["low"] is not None else ":"
        axes.plot([100 * low, 100 * high], [number] * 2, style, color=_COLORS[0], linewidth=2)
        axes.plot(100 * row["value"], number, "o", color=_COLORS[0])
        if row["paper"] is not None:
            axes.plot(100 * row["paper"], number, "D", color=_COLORS[1], markersize=5)
    axes.axvline(0, color="#555555", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(
        "difference of top-1 (points); circle: measured, diamond: the paper on ImageNet"
    )
    figure.savefig(path, dpi=160, bbox_inches="tight")


def plot_curves(result, path):
    """Draws the accuracy of the slimmest over the epochs of every arm, as Fig. 6.

    Args:
        result: Dict of `collect`.
        path: Path of the image file.
    """
    figure, axes = _figure(4)
    arms = []
    for name, curve in result["curves"].items():
        arm = name.partition("_")[2].rpartition("_s")[0]
        label = None if arm in arms else arm.replace("_", " ")
        arms += [] if arm in arms else [arm]
        color = _COLORS[arms.index(arm) % len(_COLORS)]
        axes.plot(
            range(1, len(curve) + 1), [100 * top1 for top1 in curve], color=color, label=label
        )
    axes.set_xlabel("epoch")
    axes.set_ylabel("top-1 of the slimmest (%), validation images")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=160, bbox_inches="tight")


def _figure(height):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, height))
    return figure, figure.subplots()


def _label(row):
    weights = ", online" if row["weights"] == "online" else ""
    return f"{row['first']} - {row['second']}, {row['path']}{weights}".replace("_", " ")
