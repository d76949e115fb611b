"""The peers of Tables 2 and 8: lines of accuracy, compared at equal multiply-adds."""

import json

import numpy as np
import pytest
from keras_dsnet_recipes.lib.reproduction import (
    collection,
    comparison,
    hits,
    peers,
    pictures,
    result_page,
)
from keras_dsnet_recipes.lib.reproduction.paper_tables import EARLY_EXIT, STAGE_1, TABLES
from keras_dsnet_recipes.lib.reproduction.planned_runs import plan

from keras_dsnet.training.confidence import StepResults

IMAGES = 4000
# Multiply-adds and top-1 of each arm with one width. The supernet has the ends of the last.
STATIC = {
    "mobilenet_v1_0.1875": (6.4e6, 0.60),
    "mobilenet_v1_0.25": (10.7e6, 0.64),
    "mobilenet_v1_0.3125": (16.3e6, 0.66),
    "slimmest_alone": (6.5e6, 0.66),
    "middle_alone": (9.9e6, 0.67),
    "widest_alone": (15.9e6, 0.70),
}
SUPERNET = ((6.5e6, 0.66), (15.9e6, 0.70))
TRUNK = 4_200_000


def right(rate, seed):
    """Images in one order of difficulty, so that rates are exact."""
    return np.arange(IMAGES) < (rate + 0.002 * seed) * IMAGES


def steps(madds, rates, seed, trunk=0):
    correct = np.stack([right(rate, seed) for rate in rates], 1)
    # The least sure images are those that wide networks classify and narrow ones do not.
    confidence = 0.1 + np.abs(np.linspace(0, 1, IMAGES, dtype="float32") - 0.68)
    return StepResults(
        tuple(range(len(rates))),
        np.array(madds, "int64"),
        trunk,
        np.repeat(confidence[:, None], len(rates), 1),
        correct,
    )


def name_of(path):
    arm, seed = path.name.split("_", 1)[1].rsplit("_s", 1)
    return arm, int(seed)


def load_hits(path, folder, split, weights, data_dir):
    arm, seed = name_of(path)
    points = [STATIC[arm]] if arm in STATIC else SUPERNET
    return {
        str(width): {
            "path": str(width),
            "madds": madds,
            "hits": right(rate, seed),
            "parameters": 100_000,
        }
        for width, (madds, rate) in enumerate(points)
    }


def load_steps(path, folder, split, data_dir):
    arm, seed = name_of(path)
    if arm in STATIC:
        madds, rate = STATIC[arm]
        return steps([madds], [rate], seed), 100_000
    if arm == "early_exit":
        return steps([5.3e6, 5e6, 6e6], [0.5, 0.55, 0.6], seed), 300_000
    madds = [point[0] - TRUNK for point in SUPERNET]
    return steps(madds, [point[1] for point in SUPERNET], seed, TRUNK), 200_000


@pytest.fixture
def saved(tmp_path, monkeypatch):
    monkeypatch.setattr(hits, "load_hits", load_hits)
    monkeypatch.setattr(hits, "load_steps", load_steps)
    arms = [*STATIC, "ds_mbnet", "early_exit"]
    runs = plan(TABLES["2"], arms=arms)
    for run in runs:
        folder = tmp_path / run.name
        (folder / "tables").mkdir(parents=True)
        (folder / "tables" / "paths.json").write_text("[]")
        config = {"seed": run.seed, "eval_split": "train[45000:]"}
        (folder / "config.json").write_text(json.dumps(config))
    return tmp_path, runs


def collect(saved, latency=None):
    workdir, runs = saved
    return collection.collect(TABLES["2"], runs, workdir, "cifar10", "test", None, latency)


def test_peers_are_compared_at_equal_multiply_adds(saved):
    result = collect(saved)
    found = {(c["first"], c["second"], c["path"]): c for c in result["contrasts"]}
    static = found["ds_mbnet", "mobilenet_v1", "within 0.5 of the widest"]
    at = static["madds"]
    assert 6.5e6 < at <= 0.5 * 15.9e6
    line = np.interp(at, *zip(*(STATIC[name] for name in list(STATIC)[:3])))
    routed = [row for row in result["rows"] if row["arm"] == "ds_mbnet"]
    mean = np.mean([row["top1"] for row in routed if row["path"] == "within 0.5 of the widest"])
    assert static["value"] == pytest.approx(mean - line - 0.001, abs=2e-4)
    assert static["verdict"] == "holds"
    assert ("ds_mbnet", "cascade", "within 0.5 of the widest") in found
    json.dumps(result)


def test_a_peer_without_finished_runs_is_left_out(saved):
    result = collect(saved)
    assert result["lines"]["attended_v1"] == []
    assert not any("attended_v1" in (c["first"], c["second"]) for c in result["contrasts"])
    assert result["not_compared"] == []


def test_multiply_adds_that_a_peer_lacks_are_named(saved, monkeypatch):
    for size in (0.1875, 0.25):
        monkeypatch.setitem(STATIC, f"mobilenet_v1_{size}", (15e6 + size, 0.6))
    result = collect(saved)
    assert result["not_compared"] == [
        f"ds_mbnet - mobilenet_v1, within {share} of the widest" for share in (0.5, 0.75)
    ]
    assert "Not compared" in result_page.section({**result, "read_test": True})


def test_a_claim_has_a_verdict_with_a_figure_and_without(saved):
    result = collect(saved)
    rows = result["contrasts"]
    figures = {(row["second"], row["path"]): row["paper"] for row in rows if row["paper"]}
    half = "within 0.5 of the widest"
    assert figures == {("mobilenet_v1", half): 0.044, ("us_net", half): 0.033}
    claimed = [row for row in rows if row["verdict"]]
    assert len(claimed) > len(figures)
    assert result["verdict"] == comparison.joint_verdict(
        [row["verdict"] for row in claimed], len(claimed)
    )
    assert {row["second"] for row in claimed} == {"mobilenet_v1", "us_net", "early_exit", "cascade"}


def test_a_cascade_costs_both_networks_where_it_goes_on():
    found = peers.cascade([steps([3.0], [0.5], 0), steps([7.0], [0.6], 0, trunk=2)])
    assert (found.trunk, found.madds.tolist()) == (0, [3, 9])
    assert found.correct.mean(0).tolist() == [0.5, 0.6]
    with pytest.raises(ValueError, match=r"one width each\. Received: \[2, 1\] widths"):
        peers.cascade([steps([3, 4], [0.5, 0.6], 0), steps([7], [0.6], 0)])


def test_thresholds_are_chosen_on_other_images(saved, monkeypatch):
    splits = []

    def recorded(path, folder, split, data_dir):
        splits.append(split)
        return load_steps(path, folder, split, data_dir)

    monkeypatch.setattr(hits, "load_steps", recorded)
    collect(saved)
    assert splits.count(None) == splits.count("test") > 0


def test_latency_is_the_mean_over_what_images_run(saved):
    _, runs = saved
    names = {run.arm.name: run.name for run in runs if run.seed == 0}
    latency = {f"{names['ds_mbnet']}/step_0": 1.0, f"{names['ds_mbnet']}/step_1": 3.0}
    result = collect(saved, latency)
    (row,) = [
        row
        for row in result["rows"]
        if (row["arm"], row["seed"], row["path"]) == ("ds_mbnet", 0, "within 0.5 of the widest")
    ]
    share = (row["madds"] - 6.5e6) / (15.9e6 - TRUNK)
    assert row["ms"] == pytest.approx(1 + 2 * share)
    assert not any("ms" in row for row in result["rows"] if row["arm"] == "alone")


def test_pictures_have_a_line_for_each_peer(saved, tmp_path):
    result = collect(saved)
    pictures.plot_lines(result, tmp_path / "lines.png")
    assert (tmp_path / "lines.png").stat().st_size
    madds = [point["madds"] for point in result["lines"]["early_exit"][0]]
    assert madds == sorted(madds)
    assert madds[0] == pytest.approx(5.3e6)


def test_a_routed_peer_need_not_use_all_that_it_may():
    """Its line goes on to what an image costs that runs everything."""
    hits_of = np.ones(4), np.zeros(4)
    points = [peers.Point("a", 5.0, hits_of[1], {}, 1), peers.Point("b", 9.0, hits_of[0], {}, 1)]
    line = peers.Line(0, points, most=12.0)
    assert line.at(7.0).mean() == 0.5
    assert line.at(12.0).mean() == 1
    assert line.at(4.0) is None
    assert line.at(13.0) is None


@pytest.mark.parametrize("name", ["2", "8"])
def test_peers_name_arms_and_contrasts_name_peers(name):
    table = TABLES[name]
    arms = {arm.name: arm for arm in table.arms}
    assert {arm for peer in table.peers for arm in peer.arms} == set(arms)
    known = {peer.name for peer in table.peers}
    for contrast in table.contrasts:
        assert {contrast.first, contrast.second} <= known
        assert 0 < contrast.share < 1
    assert all(arm.program in (STAGE_1, EARLY_EXIT) for arm in arms.values())
