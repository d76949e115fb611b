"""The Markdown page of a reproduction, which opens with one table over all tables."""

import json
import math
import pathlib

from keras_dsnet_recipes.lib.reproduction.detection_row import detection_row
from keras_dsnet_recipes.lib.reproduction.gate_rows import LEAST_DISTANCE, LEAST_WIDEST
from keras_dsnet_recipes.lib.reproduction.paper_tables import ELSEWHERE, TABLES
from keras_dsnet_recipes.lib.reproduction.pictures import PICTURES
from keras_dsnet_recipes.lib.reproduction.planned_runs import arm_of, plan, without_data

_INTRODUCTION = """\
# The paper's tables on small photographs

<!-- Written by recipes/reproduce.py --publish. Change the program, not this file. -->

**No ImageNet figure was measured here.** The paper trains on ImageNet for 150 epochs; the networks
of this page take small photographs at a few million MAdds, and train for far fewer steps. The
page therefore asks whether a *difference* between two arms of a table comes out again, not
whether an accuracy does.

One command makes a table. It trains each arm that is not finished, and collects:

```
python recipes/reproduce.py --table=5 --data_dir=/data/tfds --workdir=runs/reproduce
python recipes/reproduce.py --list
```

- Supernets are trained on CIFAR-10 `train[:40000]`, gates on `train[40000:45000]`, and every
  choice is made on `train[45000:]`, except for thresholds of a confidence beside gates, which the
  gates' images choose. The 10,000 test images are read by `--read_test` only.
- All arms of a table have one schedule, augmentation and data; the program refuses to compare runs
  that differ by another flag than those of their arms.
- An interval is of 95 % over seeds and images: Student's t over seeds, with a deviation that is
  pooled over both arms, or over all arms of the table where both have too few seeds, and a paired
  bootstrap over images; the variances add up. Where
  gates of several seeds share a supernet, the interval holds for the supernets of the table, not
  for others. Gates of the supernet's own design all start from the heads that it was made with, so
  that their seeds differ in the order of the images and in the noise; those of another design
  start from new heads.
- The gates of a DS-ResNet are reported only if its widest has 80 % or more on the images of every
  choice and its ends are 3 points or more apart; otherwise the verdict is *not tested*. The
  gates of Tables 6, 7 and 9 and beyond the paper start from the supernets that come with the
  package, one [DS-MBNet](cifar10.md) and one [DS-ResNet](cifar10_resnet.md). *S*: the routes or
  losses of the paper's S. *Own images*: gates that learn from images which the supernet was trained
  on. *Chosen*: gates of the design that comes with the package.
- *Holds*: the interval lies on the paper's side of 0. *Does not hold*: it lies on the other side,
  or it contains 0 and excludes half of the paper's difference. *Undecided*: otherwise. A claim with
  several differences holds if all of them do, and does not hold if one does not. Where the paper
  claims no figure, only that one is above the other, *does not hold* needs the interval below 0.
- Tables 2 and 8 compare lines of accuracy against multiply-adds. A static peer is a line through
  its widths. A network that routes by confidence, leaves at an exit or hands on to a second
  network is a line through thresholds that were chosen on `train[45000:]`, each the most accurate
  choice within a limit of mean multiply-adds; all that ran is counted. The difference is that to
  the other line at the multiply-adds that were used. *Attended v1* is MobileNetV1's plain topology
  with Swish and attention, *us net* the static widths of the supernet of Table 5's best target,
  *alone* networks of single widths.
"""
_EASY = (
    "Easy images: the share of the gates' training images in the last epoch that the slimmest "
    "classifies correctly."
)
_THRESHOLDS = (
    "Rows of a confidence have thresholds that the gates' images chose, within the MAdds that the "
    "gates have on the images of choices."
)
_CHOSEN_HERE = (
    "These images also chose the thresholds of routed peers, which are a little too good for it."
)
# Further columns of some tables: title, and function of the rows of all seeds and a name.
_MORE = {
    "easy": ("easy images %", lambda rows, name: _each_of(rows, name)),
    "parameters": ("parameters stored", lambda rows, name: f"{rows[0][name]:,}"),
    "ms": ("ms", lambda rows, name: _mean_of(rows, name)),
}
# The shares of the images from which on a gate is said to choose nothing, or next to nothing.
_ONE_PATH, _NEARLY_ONE_PATH = 0.999, 0.95
_EMPTY = ("not run yet", "-", "not run yet")


def write_page(page, folder):
    """Writes the page over all tables, from the result files of a folder.

    Args:
        page: Path of the Markdown file.
        folder: Path of the folder with one `<name>.json` for each collected table, beside the page.

    Returns:
        Path of the page.
    """
    page, folder = pathlib.Path(page), pathlib.Path(folder)
    results = []
    for path in sorted(folder.glob("table*.json")):
        results.append((path.stem, json.loads(path.read_text(encoding="utf-8"))))
    text = [_INTRODUCTION, "## All tables and figures", ""]
    text += [_overview(results, page.parent / "detection")]
    for name, result in results:
        text += ["", f"## {_heading(result)}", "", section(result), "", *_pictures(name, folder)]
    page.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")
    return page


def section(result):
    """Returns the Markdown of one collected table.

    Args:
        result: Dict of `collection.collect`.
    """
    table = TABLES[result["table"]]
    parts = [f"The paper: {table.claim} Its figures on ImageNet: {table.paper}.", ""]
    parts += [f"Images: `{result['images']}`. Verdict: **{result['verdict']}**.", ""]
    parts += [_command(result), ""]
    parts += [_not_tested(result), ""] if result.get("not_tested") else []
    missing = _missing(result)
    parts += [f"Not run yet: {', '.join(missing)}.", ""] if missing else []
    titles = ("arm", "weights", "path", "M MAdds", "top-1 %, each seed", "mean")
    more = [name for name in _MORE if any(name in row for row in result["rows"])]
    titles = (*titles, *(_MORE[name][0] for name in more))
    parts += [_markdown(titles, _arm_rows(result["rows"], more))]
    if "easy" in more:
        has_confidence = any(row["path"] == "confidence" for row in result["rows"])
        parts += ["", f"{_EASY} {_THRESHOLDS}" if has_confidence else _EASY]
    for arm, path, least in _without_choice(result):
        images, what = "every image", "nothing"
        if least < _ONE_PATH:
            images, what = (
                f"{math.floor(1000 * least) / 10} % or more of the images at each gate",
                "next to nothing",
            )
        parts += ["", f"The gates of {arm} take {path} for {images}: they choose {what}."]
    if table.peers and not result.get("read_test"):
        parts += ["", _CHOSEN_HERE]
    if result["contrasts"]:
        titles = ("difference", "path", "weights", "points", "95 % interval", "seeds", "paper")
        parts += ["", _markdown((*titles, "verdict"), map(_contrast_row, result["contrasts"]))]
    if result.get("not_compared"):
        names = "; ".join(result["not_compared"]).replace("_", " ")
        parts += ["", f"Not compared, because only one has such multiply-adds: {names}."]
    if result["drops"]:
        drops = ", ".join(f"{_short(name, result)}: {n}" for name, n in result["drops"].items())
        parts += ["", f"Falls of the slimmest by over 5 points between two epochs: {drops}."]
    parts += ["", _record(result["record"])]
    return "\n".join(parts)


def _not_tested(result):
    """Returns the sentence that names the gates that were left out, with both numbers of each."""
    runs = ", ".join(
        f"{_short(row['run'], result)} ({100 * row['widest']:.1f} % at the widest, the ends "
        f"{100 * row['distance']:.1f} points apart)"
        for row in result["not_tested"]
    )
    widest, distance = LEAST_WIDEST[result["data"]], 100 * LEAST_DISTANCE
    needed = f"ends {distance:.0f} points apart"
    if widest:
        needed = f"{100 * widest:.0f} % at the widest and {needed}"
    return (
        f"Not tested, because a DS-ResNet must have {needed} on the images of every choice: {runs}."
    )


def _missing(result):
    """Returns the names of the arms, or of the peers, of a table that a result does not have."""
    table = TABLES[result["table"]]
    known = {row["arm"] for row in result["rows"]}
    known |= {
        _short(row["run"], result).rpartition("_s")[0] for row in result.get("not_tested", ())
    }
    claims = {contrast.first for contrast in table.contrasts}
    claims |= {name for c in table.contrasts for name in c.second.split("+")} - {"line"}
    return sorted(name.replace("_", " ") for name in claims - known)


def _without_choice(result):
    """Returns the arms whose gates take one path for nearly all images.

    Returns:
        List of the arm, the paths of its seeds, and the smallest share that a gate of any seed
        gives to its part of the path.
    """
    found = {}
    for name, gates in result.get("shares", {}).items():
        path = [max(gate, key=gate.get) for gate in gates]
        shown = "the path " + "-".join(map(str, path)) if len(path) > 1 else f"width {path[0]}"
        least = min(gate[width] for gate, width in zip(gates, path))
        found.setdefault(arm_of(name), []).append((shown, least))
    arms = []
    for arm, seeds in found.items():
        paths, shares = zip(*seeds)
        if min(shares) >= _NEARLY_ONE_PATH:
            arms.append((arm.replace("_", " "), " or ".join(dict.fromkeys(paths)), min(shares)))
    return arms


def _overview(results, detection):
    titles = ("paper", "claim", "the paper's figures", "ours", "verdict", "data")
    rows = []
    for table in TABLES.values():
        if not table.claim:
            continue
        found = [result for _, result in results if result["table"] == table.name]
        for result in found or [None]:
            ours = _EMPTY[0] if result is None else _ours(result)
            state = _EMPTY[2] if result is None else f"**{result['verdict']}**"
            data = _EMPTY[1] if result is None else f"{result['data']} `{result['images']}`"
            rows.append((table.title, table.claim, table.paper, ours, state, data))
    others = [(name, claim, "-", where, "-", "-") for name, claim, where in ELSEWHERE]
    rows += sorted([*others, detection_row(detection)], key=lambda row: row[0].startswith("Fig"))
    lines = [_markdown(titles, rows), "", "Commands and flag files:", "", *_commands()]
    missing = [f"- {table.title}: {table.missing}." for table in TABLES.values() if table.missing]
    return "\n".join([*lines, *(["", "Not built yet:", "", *missing] if missing else [])])


def _commands():
    """Returns a line for each table that can be run, with the flag files of its arms."""
    lines = []
    for table in TABLES.values():
        if not table.claim or not table.arms:
            continue
        configs = {pathlib.Path(run.arguments[0]).stem for run in plan(table)}
        files = ", ".join(f"`recipes/configs/{name}.cfg`" for name in sorted(configs))
        flags = f"--table={table.name} {_pretraining_flag(table)}".strip()
        lines.append(f"- {table.title}: `python recipes/reproduce.py {flags}`, {files}.")
    return lines


def _ours(result):
    rows = [row for row in result["contrasts"] if row["verdict"] is not None]
    # Where all differences are to one arm, the claim names it.
    is_one = len({row["second"] for row in rows}) == 1 and "madds" not in rows[0]
    names = [row["first"] if is_one else f"{row['first']} - {row['second']}" for row in rows]
    parts = [
        f"{name} {_path_of(row)}{_points(row['value'])} {_interval(row)}".replace("_", " ")
        for name, row in zip(names, rows)
    ]
    parts += [f"{name} {_EMPTY[0]}" for name in _missing(result)]
    if result.get("not_tested"):
        parts.append(f"gates of {len(result['not_tested'])} runs not tested")
    return "; ".join(parts) or _EMPTY[1]


def _path_of(row):
    return "" if row["first"].endswith(row["path"]) else f"{row['path']} "


def _arm_rows(rows, more=()):
    groups = {}
    for row in rows:
        key = (row["arm"], row["weights"], row["path"])
        groups.setdefault(key, []).append(row)
    for (arm, weights, path), group in groups.items():
        top1 = [100 * row["top1"] for row in group]
        madds = sum(row["madds"] for row in group) / len(group) / 1e6
        each = ", ".join(f"{value:.2f}" for value in top1)
        mean = f"{sum(top1) / len(top1):.2f}"
        cells = [_MORE[name][1](group, name) for name in more]
        yield arm.replace("_", " "), weights, path, f"{madds:.2f}", each, mean, *cells


def _mean_of(rows, name):
    values = [row[name] for row in rows if name in row]
    return f"{sum(values) / len(values):.3f}" if values else "-"


def _each_of(rows, name):
    return ", ".join(f"{100 * row[name]:.1f}" for row in rows if row.get(name) is not None) or "-"


def _contrast_row(row):
    name = f"{row['first']} - {row['second']}".replace("_", " ")
    paper = "-" if row["paper"] is None else _points(row["paper"])
    seeds = " / ".join(map(str, row["num_seeds"]))
    path = row["path"]
    if row.get("second_path", path) != path:
        path = f"{path} - {row['second_path']}"
    ends = (path, row["weights"], _points(row["value"]), _interval(row), seeds, paper)
    return name, *ends, row["verdict"] or "-"


def _interval(row):
    if row["low"] is None:
        return "(one seed)"
    return f"[{_points(row['low'])}, {_points(row['high'])}]"


def _points(fraction):
    # Adding 0 makes a negative zero positive.
    rounded = round(100 * fraction, 2) + 0.0
    return f"{rounded:+.2f}" if rounded else "0.00"


def _heading(result):
    return f"{result['title']}, {result['data']}"


def _short(name, result):
    """Returns the name of a run in its table, which can share it with another."""
    return result.get("arms", {}).get(name) or without_data(
        name.removeprefix(f"table{result['table']}_")
    )


def _command(result):
    data = {"cifar10": "", "digits": " --quick"}.get(result["data"], f" --data={result['data']}")
    seeds = ",".join(str(seed) for seed in sorted({row["seed"] for row in result["rows"]}))
    test = " --read_test" if result.get("read_test") else ""
    arms = ""
    if _missing(result):
        arms = f"--arms={','.join(_measured_arms(result))} "
    line = f"python recipes/reproduce.py --table={result['table']}{data} --seeds={seeds}{test} \\"
    folders = {"digits": "", "tiny_imagenet": "--data_dir=/data/tiny-imagenet-200 "}
    folders = folders.get(result["data"], "--data_dir=/data/tfds ")
    if result["data"] == "cifar10":
        folders += _pretraining_flag(TABLES[result["table"]])
    return f"```\n{line}\n    {arms}{folders}--workdir=runs/reproduce\n```"


def _measured_arms(result):
    """Returns the arms of the rows of a result; a row of a peer is of all arms of the peer."""
    peers = {peer.name: peer.arms for peer in TABLES[result["table"]].peers}
    names = dict.fromkeys(row["arm"] for row in result["rows"])
    return dict.fromkeys(arm for name in names for arm in peers.get(name, (name,)))


def _pretraining_flag(table):
    """Returns the flag of the data set that the networks of a table are trained on first."""
    needed = any(run.data == "tiny_imagenet" for run in plan(table))
    return "--pretraining_dir=/data/tiny-imagenet-200 " * needed


def _record(record):
    hours = [run["hours"] for run in record["runs"] if run["hours"] is not None]
    cost = f"{sum(hours):.1f} hours for {len(hours)} runs" if hours else "not recorded"
    commits = sorted({run["commit"] for run in record["runs"] if run["commit"]})
    trained = f"commit {', '.join(commits)}" if commits else "an earlier commit, not recorded"
    text = (
        f"Trained by {trained}; collected by commit {record['commit']} with "
        f"Keras {record['keras']}, TensorFlow {record['tensorflow']} and Python "
        f"{record['python']}. Wall time of the training: {cost}."
    )
    for run in record["runs"]:
        if accelerator := run.get("accelerator"):
            name = run["name"].removeprefix("table")
            text += f" {name}: JAX {accelerator['jax']} on {accelerator['device']}."
    if record["not_finished"]:
        text += f" Not finished: {', '.join(record['not_finished'])}."
    return text


def _pictures(name, folder):
    lines = []
    for ending, about in PICTURES.items():
        if (folder / f"{name}_{ending}.png").is_file():
            lines += [f"![{about}]({folder.name}/{name}_{ending}.png)", ""]
    return lines


def _markdown(titles, rows):
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
