"""The program that compares all routings on images that did not choose their settings."""

import json
import pathlib

import pytest
from programs import run_program
from routed_networks import SHORT_SPEC, small_network

PROGRAM = pathlib.Path(__file__).resolve().parents[2] / "recipes/benchmarks/cross_fit.py"


@pytest.mark.long
def test_all_routings_are_compared(tmp_path):
    network = small_network(classes=10, spec=SHORT_SPEC)
    network.save(tmp_path / "model.keras")
    done = run_program(
        PROGRAM,
        f"--model={tmp_path / 'model.keras'}",
        f"--workdir={tmp_path / 'fit'}",
        "--dataset=digits",
        "--shares=0.99",
        "--drops=0.01",
        "--splits=2",
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "fit" / "tables" / "cross_fit.json").read_text())
    names = ["gate", "confidence", "confidence, proposed steps", "gate+confidence"]
    assert [row["routing"] for row in rows] == 2 * names
    for row in rows:
        assert row["gain_low"] <= row["gain"] <= row["gain_high"]
    text = (tmp_path / "fit" / "tables" / "cross_fit.md").read_text()
    assert text.count("| share 0.99 |") == 4
    assert "Steps (0, 3)." in text
    assert (tmp_path / "fit" / "plots" / "cross_fit.png").stat().st_size > 10_000
