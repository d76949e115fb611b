"""The results of the runs of a table."""

import importlib.metadata
import json
import pathlib
import platform
import subprocess

import numpy as np
from keras_dsnet_recipes.lib.reproduction import comparison, gate_rows, hits, peers
from keras_dsnet_recipes.lib.reproduction.paper_tables import STAGE_1
from keras_dsnet_recipes.lib.reproduction.planned_runs import is_finished
from keras_dsnet_recipes.lib.reproduction.run_checks import check_runs

RECORD = "reproduce.json"
# The rows of routings, by the paths of contrasts that are measured above the line.
_ROUTED = {"gate": "dynamic", "confidence": "confidence"}


def collect(table, runs, workdir, data, split, data_dir=None, latency=None):
    """Collects the finished runs of a table.

    Args:
        table: A `paper_tables.Table`.
        runs: List of `planned_runs.Run`.
        workdir: Path of the folder with the folders of the runs.
        data: Str, the name of the data.
        split: Str, TFDS slice of the images that are read, or None for validation images.
        data_dir: Str or None, folder of prepared data sets.
        latency: Dict of `peer_latency.measure`, or None.

    Returns:
        Dict that JSON can hold: "rows", "contrasts", "drops", "verdict", "record", and for a table
        of peers "lines", for one of gates "shares" and "static".

    Raises:
        ValueError: If no run is finished, the runs differ by more than the flags of their arms, or
            test images are to be read before all runs are finished.
    """
    own = [run for run in runs if run.arm in table.arms]
    done = [run for run in own if is_finished(workdir / run.name)]
    if not done:
        raise ValueError(
            f"no run of {table.title} is finished in {workdir}. Expected: "
            f"{', '.join(run.name for run in own) or 'a table with arms'}"
        )
    missing = [run.name for run in own if run not in done]
    if split and missing:
        raise ValueError(
            "--read_test reads the test images once, when all runs are finished; --arms and "
            f"--seeds name fewer. Received: {', '.join(missing)} not finished"
        )
    configs = {run.name: _read(workdir / run.name / "config.json") for run in done}
    trained, all_configs = _with_supernets(done, configs, workdir)
    check_runs(table.title, trained, all_configs, data)
    drawn, refused = {}, {}
    if table.peers:
        measured = peers.Peers(table, done, workdir, split, data_dir)
        rows = measured.rows(latency)
        drawn = {"lines": measured.curves(latency), "not_compared": measured.not_compared()}
        contrasts = [measured.contrast(contrast) for contrast in table.contrasts]
    else:
        measured = _Measured(workdir, split, data_dir, configs)
        refused = gate_rows.refusals(done, measured.choice_hits, data)
        measured.leave_out(refused, table.confidence)
        rows = [row for run in done for row in measured.rows(run)]
        judged = [run for run in done if run.name not in refused]
        contrasts = [_contrast(contrast, judged, measured) for contrast in table.contrasts]
        drawn = _gates(table, judged, measured)
        drawn["not_compared"] = _not_compared(table.contrasts, contrasts, judged, measured)
    contrasts = [contrast for contrast in contrasts if contrast]
    verdicts = [row["verdict"] for row in contrasts if row["verdict"] is not None]
    claimed = sum(c.paper is not None or c.sign for c in table.contrasts)
    return {
        "table": table.name,
        "title": table.title,
        "data": data,
        "images": f"{split or _eval_split(configs)}",
        "verdict": gate_rows.joint_verdict(verdicts, claimed, refused),
        "not_tested": list(refused.values()),
        "rows": rows,
        "contrasts": contrasts,
        "arms": {run.name: f"{run.arm.name}_s{run.seed}" for run in done},
        "drops": _drops(done, workdir),
        "curves": _curves(done, workdir),
        **drawn,
        "record": {
            **versions(),
            "runs": [_record(run, workdir, all_configs[run.name]) for run in trained],
            "not_finished": missing,
        },
    }


class _Measured:
    """The hits of the runs of a table, each read once."""

    def __init__(self, workdir, split, data_dir, configs):
        self._workdir, self._split, self._data_dir = workdir, split, data_dir
        self._configs = configs
        self._known = {}
        self._refused, self._with_confidence = {}, False

    def leave_out(self, refused, with_confidence):
        """Leaves the gates of some runs out, and adds routing by confidence to the others."""
        self._refused, self._with_confidence = refused, with_confidence

    def _has_teacher(self, run):
        """Returns whether a run of stage I has averaged weights beside the online ones."""
        config = self._configs[run.name]
        alone = config.get("alone") is not None
        return run.arm.program == STAGE_1 and not alone and config["target"] != "in_place"

    def _has_confidence(self, run):
        """Returns whether routing by confidence is measured beside the gates of a run.

        The images that a supernet has learned from would choose thresholds that are too low.
        """
        judged = run.supernet and run.name not in self._refused
        return self._with_confidence and judged and not run.arm.own_images

    def choice_hits(self, run):
        """Returns the hits of a run on the images of every choice."""
        return hits.load_hits(
            self._workdir / run.name, self._workdir / "hits", None, "saved", self._data_dir
        )

    def hits(self, run, weights):
        """Returns the rows of `hits.load_hits`, or None where a run has no such weights."""
        if not self._has_teacher(run):
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
            if self._has_confidence(run):
                self._known[key]["confidence"] = gate_rows.confidence_row(
                    self._workdir / run.name,
                    self._workdir / "hits",
                    self._split,
                    self.choice_hits(run)["dynamic"]["madds"],
                    self._data_dir,
                )
        return self._known[key]

    def rows(self, run):
        """Returns the rows of a run for the table: both ends, and the gates where there are any."""
        kinds = ["saved"]
        if self._has_teacher(run):
            kinds.append("online")
        rows = []
        for weights in kinds:
            found = self.hits(run, weights)
            static = hits.static_paths(found)
            ends = {"slimmest": static[0], "widest": static[-1]}
            if len(static) == 1:
                ends = {f"width {static[0]['path']}": static[0]}
            if "dynamic" in found and run.name not in self._refused:
                ends["gate"] = found["dynamic"]
                if "confidence" in found:
                    ends["confidence"] = found["confidence"]
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
                if name in _ROUTED and (line := _line(found, name)) is not None:
                    rows[-1]["gain"] = rows[-1]["top1"] - float(line.mean())
                if name == "gate":
                    rows[-1]["easy"] = gate_rows.easy_share(self._workdir / run.name)
        return rows

    def shares(self, run):
        """Returns the share of each width at each gate, or None for a run without judged gates."""
        found = self.hits(run, "saved")
        if "dynamic" not in found or run.name in self._refused:
            return None
        return [{int(w): share for w, share in gate.items()} for gate in found["dynamic"]["shares"]]

    def static_line(self, run):
        """Returns the mean accuracy of every static width of a run, as dicts of a plot."""
        return [
            {"madds": row["madds"], "top1": float(row["hits"].mean())}
            for row in hits.static_paths(self.hits(run, "saved"))
        ]

    def top1(self, run, path, weights):
        """Returns float `[images]`: hits of a path, or those of a routing above the line."""
        found = self.hits(run, weights)
        static = hits.static_paths(found)
        if path in ("dynamic", *_ROUTED) and "dynamic" not in found:
            return None
        if path == "dynamic":
            return found["dynamic"]["hits"].astype("float64")
        if path not in _ROUTED:
            return static[0 if path == "slimmest" else -1]["hits"].astype("float64")
        line = _line(found, path)
        return None if line is None else found[_ROUTED[path]]["hits"] - line

    def line_of_arms(self, names, runs, first):
        """Returns the hits of the line between arms of one width, at the MAdds of gates.

        It is None unless all arms have runs: between fewer of them the line would be another one.
        """
        if {run.arm.name for run in runs} != set(names):
            return None
        madds = [self.hits(run, "saved")["dynamic"]["madds"] for run in first]
        arms = {}
        for run in runs:
            row = hits.static_paths(self.hits(run, "saved"))[-1]
            arms.setdefault(run.arm.name, {})[run.seed] = row
        return gate_rows.line_of_arms(list(arms.values()), float(np.mean(madds)))


def _gates(table, runs, measured):
    """Returns what the pictures of gates show: shares of widths, and the lines of supernets."""
    found = [(run, measured.shares(run)) for run in runs]
    routed = [(run, shares) for run, shares in found if shares is not None]
    if not routed:
        return {}
    # Runs that several tables share have the name of the arm of this table.
    shares = {
        f"table{table.name}_{run.arm.name}_s{run.seed}" if run.arm.same_as else run.name: each
        for run, each in routed
    }
    # Gates of one supernet have its static widths.
    static = {run.supernet.name: measured.static_line(run) for run, _ in routed}
    return {"shares": shares, "static": static}


def _with_supernets(runs, configs, workdir):
    """Returns runs and their configs, with those of their supernets that were trained for them."""
    supernets = {run.supernet.name: run.supernet for run in runs if run.supernet}
    paths = {name: workdir / name / "config.json" for name in supernets if name not in configs}
    found = {name: _read(path) for name, path in paths.items() if path.is_file()}
    return [*runs, *(supernets[name] for name in found)], configs | found


def _not_compared(contrasts, rows, runs, measured):
    """Returns the contrasts of arms that have run, for which a line does not reach as far."""

    def has_run(name):
        return name == "line" or {run.arm.name for run in runs} >= set(name.split("+"))

    def has_gates(contrast):
        first = [run for run in runs if run.arm.name == contrast.first]
        return all(measured.shares(run) is not None for run in first)

    return [
        f"{contrast.first} - {contrast.second}, {contrast.path}"
        for contrast, row in zip(contrasts, rows)
        if row is None
        and has_run(contrast.first)
        and has_run(contrast.second)
        and (contrast.path not in ("dynamic", *_ROUTED) or has_gates(contrast))
    ]


def _line(found, path):
    static = hits.static_paths(found)
    hit, madds = [row["hits"] for row in static], [row["madds"] for row in static]
    # Slimming heads are counted, so that gates which take the widest only cost more than it does.
    at = min(found[_ROUTED[path]]["madds"], max(madds))
    return comparison.static_line(hit, madds, at)


def _contrast(contrast, runs, measured):
    """Returns the row of a contrast, or None if one of its arms has no finished run."""
    runs = _of_common_seeds(contrast, runs)

    def runs_of(*names):
        return [run for run in runs if run.arm.name in names]

    def arm(name, path=contrast.path):
        arrays = [measured.top1(run, path, contrast.weights) for run in runs_of(name)]
        return None if not arrays or any(a is None for a in arrays) else np.stack(arrays)

    first = arm(contrast.first)
    if first is None:
        return None
    # The hits of a gate are those above the line, so that a comparison with the line is with 0.
    is_line = contrast.second == "line"
    second_path = contrast.second_path or contrast.path
    if "+" in contrast.second:
        parts = contrast.second.split("+")
        second = measured.line_of_arms(parts, runs_of(*parts), runs_of(contrast.first))
    else:
        second = np.zeros_like(first) if is_line else arm(contrast.second, second_path)
    if second is None:
        return None
    paired = is_line or contrast.first == contrast.second
    # Only arms of the same path say how far the seeds of these two differ.
    pooled = not paired and second_path == contrast.path and "+" not in contrast.second
    names = {run.arm.name for run in runs} - {contrast.first, contrast.second}
    if contrast.path in ("slimmest", "widest"):
        # The static widths of gates are those of their supernets, not further seeds.
        names -= {run.arm.name for run in runs if run.supernet}
    names = sorted(names)
    others = {name: found for name in names if pooled and (found := arm(name)) is not None}
    arrays, groups = _grouped(
        [first, second, *others.values()],
        [runs_of(name) for name in (contrast.first, contrast.second, *others)],
        paired,
    )
    found = comparison.difference(*arrays[:2], arrays[2:], paired=paired, groups=groups)
    return comparison.contrast_row(contrast, found, second_path=second_path)


def _of_common_seeds(contrast, runs):
    """Returns runs without the seeds of two arms of gates that only one of both has.

    Where some seeds are missing, the means of both would weigh the supernets differently.
    """
    both = [[run for run in runs if run.arm.name == n] for n in (contrast.first, contrast.second)]
    if not all(both) or not all(run.supernet for each in both for run in each):
        return runs
    common = set.intersection(*({run.seed for run in each} for each in both))
    left_out = [run for each in both for run in each if common and run.seed not in common]
    return [run for run in runs if run not in left_out]


def _grouped(arrays, runs, paired):
    """Returns arms and the groups of their rows for `comparison.difference`.

    Gates that share supernets are compared for these supernets. Otherwise, where one arm is of
    stage I say, each supernet counts once.

    Args:
        arrays: List of arrays `[seeds, images]`, the first two of which are compared.
        runs: For each array the runs of its rows; none for a line between networks.
        paired: Bool, whether the rows of the first two are of the same networks.
    """
    supernets = [[run.supernet.name if run.supernet else "" for run in each] for each in runs]
    is_shared = len(set(supernets[0])) < len(supernets[0])
    if is_shared and (paired or set(supernets[0]) == set(supernets[1])):
        return arrays, supernets
    if paired:
        return arrays, None
    origins = [[run.supernet.name if run.supernet else run.name for run in each] for each in runs]
    origins = [names or range(len(array)) for names, array in zip(origins, arrays)]
    merged = [comparison.merge_groups(*pair) for pair in zip(arrays, origins)]
    return merged, [[0] * len(array) for array in merged]


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


def _without_places(config):
    """Returns the flags of a run with names in place of folders, which are those of one machine."""
    places = config.get("places", {})
    kept = {name: value for name, value in config.items() if name not in ("data_dir", "places")}
    named = {name: pathlib.Path(kept[name]).name for name in places if kept.get(name)}
    return {**kept, **named}


def _record(run, workdir, config):
    path = workdir / run.name / RECORD
    recorded = _read(path) if path.is_file() else {}
    seconds, accelerator = recorded.get("seconds"), recorded.get("accelerator")
    if accelerator:
        seconds += accelerator["seconds"] / accelerator["together"]
    return {
        "name": run.name,
        "seed": config["seed"],
        "hours": None if seconds is None else round(seconds / 3600, 3),
        "commit": recorded.get("commit"),
        "accelerator": accelerator,
        "config": _without_places(config),
    }


def versions():
    """Returns the commit of the checkout, and the versions of what computes."""
    packages = ("keras-dsnet", "keras", "tensorflow", "numpy")
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: _version(name) for name in packages},
    }


def _commit():
    """Returns the commit of the checkout, with "-dirty" where code that runs is not committed."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    code = ("keras_dsnet", "applications", "recipes")
    return f"{commit}-dirty" if commit and _git("status", "--porcelain", "--", *code) else commit


def _git(*arguments):
    root = pathlib.Path(__file__).resolve().parents[3]
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read(path):
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
