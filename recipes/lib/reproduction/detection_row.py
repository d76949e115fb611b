"""The row of Table 4, detection, in the table over all tables."""

import json
import pathlib

# The runs are those of the flag files of these names. `tables/paths.json` of a work directory is
# copied to `<name>.json`.
SUPERNET, GATES, PLAIN = "fod_a_light", "fod_a_gates", "fod_a_mobilenet_v1"
_TABLE, _CLAIM = "Table 4", "DS-Net transfers to detection."


def detection_row(folder):
    """Returns the cells of the row, from the results of the detectors of FOD-A.

    Args:
        folder: Path of the folder with a file for each run that is finished.

    Returns:
        Tuple of str: table, claim, the paper's figures, ours, verdict and data. The verdict is that
        of the gain of the gate over the line between the static widths, by its interval.
    """
    runs = {name: _rows(folder, name) for name in (SUPERNET, GATES, PLAIN)}
    static = [row for row in runs[SUPERNET] if row["path"] != "dynamic"]
    parts = [f"width {row['path']} {_map(row)}" for row in static]
    routed = [row for row in runs[GATES] if row["path"] == "dynamic"]
    for row in routed:
        parts.append(f"gate {_map(row)}, {_gain(row)}")
    parts += [f"MobileNetV1 {_map(row)}" for row in runs[PLAIN]]
    if not parts:
        return _TABLE, _CLAIM, "-", "not run yet", "-", "-"
    ours = f"mAP at IoU 0.5: {'; '.join(parts)} ([detection](detection.md))"
    verdict = f"**{_verdict(routed[0])}**" if routed else "-"
    return _TABLE, _CLAIM, "-", ours, verdict, "fod_a `test`"


def _rows(folder, name):
    path = pathlib.Path(folder) / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def _map(row):
    return f"{100 * row['map']:.2f} % at {row['madds'] / 1e6:.0f}M"


def _gain(row):
    # A gate that sends all images to the widest costs more than any point of the line.
    if row["gain_low"] is None:
        return "beyond its line"
    interval = f"[{100 * row['gain_low']:+.2f}, {100 * row['gain_high']:+.2f}]"
    return f"{100 * row['gain']:+.2f} {interval} over its line"


def _verdict(row):
    if row["gain_low"] is None:
        return "undecided"
    if row["gain_low"] > 0:
        return "holds"
    return "does not hold" if row["gain_high"] < 0 else "undecided"
