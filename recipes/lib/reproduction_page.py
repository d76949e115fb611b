"""The Markdown page of a reproduction, which opens with one table over all tables."""

import json
import pathlib

from keras_dsnet_recipes.lib.paper_tables import ELSEWHERE, TABLES
from keras_dsnet_recipes.lib.reproduction import plan

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
  choice is made on `train[45000:]`. The 10,000 test images are read by `--read_test` only.
- All arms of a table have one schedule, augmentation and data; the program refuses to compare runs
  that differ by another flag than those of their arms.
- An interval is of 95 % over seeds and images: Student's t over seeds, with a deviation that is
  pooled over the arms of the table, and a paired bootstrap over images; the variances add up.
- *Holds*: the interval lies on the paper's side of 0. *Does not hold*: it lies on the other side,
  or it contains 0 and excludes half of the paper's difference. *Undecided*: otherwise. A claim with
  several differences holds if all of them do, and does not hold if one does not.
"""
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
    text = [_INTRODUCTION, "## All tables and figures", "", _overview(results)]
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
    titles = ("arm", "weights", "path", "M MAdds", "top-1 %, each seed", "mean")
    parts += [_markdown(titles, _arm_rows(result["rows"]))]
    if result["contrasts"]:
        titles = ("difference", "path", "weights", "points", "95 % interval", "seeds", "paper")
        parts += ["", _markdown((*titles, "verdict"), map(_contrast_row, result["contrasts"]))]
    if result["drops"]:
        drops = ", ".join(f"{_short(name, result)}: {n}" for name, n in result["drops"].items())
        parts += ["", f"Falls of the slimmest by over 5 points between two epochs: {drops}."]
    parts += ["", _record(result["record"])]
    return "\n".join(parts)


def _overview(results):
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
    rows += [(name, claim, "-", where, "-", "-") for name, claim, where in ELSEWHERE]
    lines = [_markdown(titles, rows), "", "Commands and flag files:", "", *_commands()]
    missing = [f"- {table.title}: {table.missing}." for table in TABLES.values() if table.missing]
    return "\n".join([*lines, "", "Not built yet:", "", *missing])


def _commands():
    """Returns a line for each table that can be run, with the flag files of its arms."""
    lines = []
    for table in TABLES.values():
        if not table.claim or not table.arms:
            continue
        configs = {run.arm.config.format(data="cifar10") for run in plan(table)}
        files = ", ".join(f"`recipes/configs/{name}.cfg`" for name in sorted(configs))
        lines.append(
            f"- {table.title}: `python recipes/reproduce.py --table={table.name}`, {files}."
        )
    return lines


def _ours(result):
    rows = [row for row in result["contrasts"] if row["paper"] is not None]
    return "; ".join(
        f"{row['first']} {row['path']} {_points(row['value'])} {_interval(row)}".replace("_", " ")
        for row in rows
    )


def _arm_rows(rows):
    groups = {}
    for row in rows:
        key = (row["arm"], row["weights"], row["path"])
        groups.setdefault(key, []).append(row)
    for (arm, weights, path), group in groups.items():
        top1 = [100 * row["top1"] for row in group]
        madds = sum(row["madds"] for row in group) / len(group) / 1e6
        each = ", ".join(f"{value:.2f}" for value in top1)
        mean = f"{sum(top1) / len(top1):.2f}"
        yield arm.replace("_", " "), weights, path, f"{madds:.2f}", each, mean


def _contrast_row(row):
    name = f"{row['first']} - {row['second']}".replace("_", " ")
    paper = "-" if row["paper"] is None else _points(row["paper"])
    seeds = " / ".join(map(str, row["num_seeds"]))
    ends = (row["path"], row["weights"], _points(row["value"]), _interval(row), seeds, paper)
    return name, *ends, row["verdict"] or "-"


def _interval(row):
    if row["low"] is None:
        return "(one seed)"
    return f"[{_points(row['low'])}, {_points(row['high'])}]"


def _points(fraction):
    return f"{100 * fraction:+.2f}"


def _heading(result):
    return f"{result['title']}, {result['data']}"


def _short(name, result):
    return name.removeprefix(f"table{result['table']}_")


def _command(result):
    data = {"cifar10": "", "digits": " --quick"}.get(result["data"], f" --data={result['data']}")
    seeds = ",".join(str(seed) for seed in sorted({row["seed"] for row in result["rows"]}))
    test = " --read_test" if result.get("read_test") else ""
    line = f"python recipes/reproduce.py --table={result['table']}{data} --seeds={seeds}{test} \\"
    return f"```\n{line}\n    --data_dir=/data/tfds --workdir=runs/reproduce\n```"


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
    if record["not_finished"]:
        text += f" Not finished: {', '.join(record['not_finished'])}."
    return text


def _pictures(name, folder):
    pictures = [("differences", "differences"), ("curves", "the slimmest over the epochs")]
    lines = []
    for ending, about in pictures:
        if (folder / f"{name}_{ending}.png").is_file():
            lines += [f"![{about}]({folder.name}/{name}_{ending}.png)", ""]
    return lines


def _markdown(titles, rows):
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
