"""The row of Table 4 is read from the result files of the detectors."""

import json

import pytest
from keras_dsnet_recipes.lib.reproduction.detection_row import detection_row

STATIC = [{"path": 0, "map": 0.5, "madds": 2e8}, {"path": 13, "map": 0.6, "madds": 4e8}]


def write(folder, **runs):
    for name, rows in runs.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return detection_row(folder)


def test_a_table_without_results_is_not_run_yet(tmp_path):
    assert detection_row(tmp_path / "nowhere")[2:] == ("-", "not run yet", "-", "-")


def test_static_widths_have_no_verdict(tmp_path):
    row = write(tmp_path, fod_a_light=STATIC, fod_a_mobilenet_v1=[STATIC[0]])
    assert "width 0 50.00 % at 200M; width 13 60.00 % at 400M; MobileNetV1 50.00 %" in row[3]
    assert row[4] == "-"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.01, 0.02, "holds"), (-0.02, -0.01, "does not hold"), (-0.01, 0.02, "undecided")],
)
def test_the_interval_of_the_gate_decides(tmp_path, low, high, verdict):
    gain = {"gain": (low + high) / 2, "gain_low": low, "gain_high": high}
    routed = {"path": "dynamic", "map": 0.58, "madds": 3e8, **gain}
    row = write(tmp_path, fod_a_light=STATIC, fod_a_gates=[*STATIC, routed])
    assert "gate 58.00 % at 300M" in row[3]
    assert row[4] == f"**{verdict}**"


def test_a_gate_that_costs_more_than_the_widest_has_no_gain(tmp_path):
    gain = dict.fromkeys(("static_line", "gain", "gain_low", "gain_high"))
    routed = {"path": "dynamic", "map": 0.6, "madds": 4.1e8, **gain}
    row = write(tmp_path, fod_a_light=STATIC, fod_a_gates=[*STATIC, routed])
    assert "gate 60.00 % at 410M, beyond its line" in row[3]
    assert row[4] == "**undecided**"
