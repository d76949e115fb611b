"""The rows of gates in the tables of the paper: the guard, the easy images, the confidence."""

import json
import types

import numpy as np
import pytest
from keras_dsnet_recipes.lib.reproduction import collection, gate_rows, hits
from keras_dsnet_recipes.lib.reproduction.paper_tables import TABLES
from keras_dsnet_recipes.lib.reproduction.pictures import draw_pictures
from keras_dsnet_recipes.lib.reproduction.planned_runs import plan
from keras_dsnet_recipes.lib.reproduction.result_page import section
from keras_dsnet_recipes.lib.reproduction.table_parts import Arm, Contrast, Table

IMAGES = 1000


def rows_of(slimmest, widest):
    """Returns the hits of a network with gates, whose easy images are the first ones."""
    counts = {"0": slimmest, "3": widest, "dynamic": (slimmest + widest) // 2 + 20}
    madds = {"0": 1e6, "3": 3e6, "dynamic": 2e6}
    place = np.arange(IMAGES)
    rows = {
        name: {"path": name, "hits": place < count, "madds": madds[name]}
        for name, count in counts.items()
    }
    # JSON has no other keys than strings.
    rows["dynamic"]["shares"] = [{"0": 0.25, "3": 0.75}, {"0": 1.0}]
    return rows


@pytest.mark.parametrize(
    ("slimmest", "widest", "data", "is_refused"),
    [
        (770, 800, "cifar10", False),
        (700, 799, "cifar10", True),
        (771, 800, "cifar10", True),
        (300, 350, "tiny_imagenet", False),
        (330, 350, "tiny_imagenet", True),
        (330, 350, "digits", False),
    ],
)
def test_gates_of_a_weak_or_flat_supernet_are_refused(slimmest, widest, data, is_refused):
    run = plan(TABLES["6"], arms=["target"], seeds=[0])[-1]
    found = gate_rows.refusal(run, rows_of(slimmest, widest), data)
    assert (found is not None) == is_refused
    if is_refused:
        assert found["widest"] == pytest.approx(widest / IMAGES)
        assert found["distance"] == pytest.approx((widest - slimmest) / IMAGES)


def test_gates_of_other_networks_have_no_limit():
    run = plan(TABLES["9"], arms=["ds_mbnet_gate"], seeds=[0])[-1]
    assert gate_rows.refusal(run, rows_of(500, 500), "cifar10") is None


@pytest.fixture
def collect(tmp_path, monkeypatch):
    """Returns a function that collects one arm of Table 6 over two supernets."""
    routed = {**rows_of(700, 880)["dynamic"], "madds": 2.5e6}
    monkeypatch.setattr(gate_rows, "confidence_row", lambda *_: routed)

    def collect(counts, confidence=False, more=()):
        def load_hits(path, folder, split, weights, data_dir):
            found = rows_of(*counts[int(path.name[-1])])
            return {name: row | dict(more).get(name, {}) for name, row in found.items()}

        monkeypatch.setattr(hits, "load_hits", load_hits)
        name = "all_three"
        (arm,) = [arm for arm in TABLES["6"].arms if arm.name == name]
        contrasts = (Contrast(name, "line", "gate", 0.008),)
        if confidence:
            contrasts += (Contrast(name, name, "gate", second_path="confidence"),)
        table = Table(
            "6", "Table 6", "A claim.", "-", (arm,), contrasts, (0, 1), confidence=confidence
        )
        runs = plan(table)
        for run in runs:
            folder = tmp_path / run.name
            (folder / "tables").mkdir(parents=True, exist_ok=True)
            (folder / "tables" / "paths.json").write_text("[]")
            config = {"seed": run.seed, "eval_split": "train[45000:]", "data_dir": None}
            # The resolved paths of --supernet and --gates_from, which differ between arms.
            config["places"] = {"supernet": run.supernet and run.supernet.name}
            (folder / "config.json").write_text(json.dumps(config))
            (folder / "log.csv").write_text("epoch,easy\n1,0.5\n2,0.625\n")
        return collection.collect(table, runs, tmp_path, "cifar10", "test")

    return collect


def test_a_table_without_a_supernet_that_is_good_enough_is_not_tested(collect):
    result = collect([(700, 790), (790, 800)])
    assert result["verdict"] == "not tested"
    assert [round(row["widest"], 3) for row in result["not_tested"]] == [0.79, 0.8]
    assert {row["path"] for row in result["rows"]} == {"slimmest", "widest"}
    assert result["contrasts"] == []
    text = section(result)
    assert "all_three_s0 (79.0 % at the widest, the ends 9.0 points apart)" in text
    assert "all_three_s1 (80.0 % at the widest, the ends 1.0 points apart)" in text


def test_gates_of_a_good_supernet_are_judged_without_those_of_a_weak_one(collect):
    result = collect([(700, 860), (700, 790)])
    assert [row["seed"] for row in result["rows"] if row["path"] == "gate"] == [0]
    (contrast,) = result["contrasts"]
    assert contrast["num_seeds"] == (1, 1)
    assert len(result["not_tested"]) == 1
    # A claim that holds for the other supernets only does not hold for the table.
    verdicts = [gate_rows.joint_verdict(["holds"], 1, refused) for refused in ({}, {"s1": {}})]
    assert verdicts == ["holds", "undecided"]


def test_easy_images_stand_beside_every_gate(collect):
    result = collect([(700, 860), (700, 860)])
    gates = [row for row in result["rows"] if row["path"] == "gate"]
    assert [row["easy"] for row in gates] == [0.625, 0.625]
    assert "62.5, 62.5 |" in section(result)
    assert result["verdict"] == "holds"


def test_pictures_show_the_gates_that_are_judged(collect, tmp_path):
    result = collect([(700, 860), (700, 790)])
    assert result["shares"] == {"table6_all_three_s0": [{0: 0.25, 3: 0.75}, {0: 1.0}]}
    assert result["static"] == {
        "tableresnet_supernet_s0": [{"madds": 1e6, "top1": 0.7}, {"madds": 3e6, "top1": 0.86}]
    }
    draw_pictures(result, tmp_path, "table6")
    assert {p.name for p in tmp_path.glob("*.png")} == {
        f"table6_{ending}.png" for ending in ("differences", "gates", "shares")
    }


def test_confidence_is_compared_above_the_same_line(collect):
    result = collect([(700, 860), (700, 860)], confidence=True)
    assert {row["path"] for row in result["rows"]} == {"slimmest", "widest", "gate", "confidence"}
    # Above the line: the gates have 800 of 780 images at 2M MAdds, the confidence 810 of 820.
    assert result["contrasts"][1]["value"] == pytest.approx(0.03)
    assert "gate - confidence" in section(result)


def test_gates_that_take_the_widest_only_are_compared_with_it(collect):
    # The slimming heads are counted, so that these gates cost more than the widest width.
    always = {"hits": np.arange(IMAGES) < 860, "madds": 3e6 + 700}
    result = collect([(700, 860), (700, 860)], more={"dynamic": always})
    (contrast,) = result["contrasts"]
    assert (contrast["value"], result["not_compared"]) == (0, [])
    beyond = collect([(700, 860), (700, 860)], more={"dynamic": always | {"madds": 0.9e6}})
    assert (beyond["contrasts"], beyond["verdict"]) == ([], "not run yet")
    assert beyond["not_compared"] == ["all_three - line, gate"]
    assert "Not compared, because only one has such multiply-adds: all three - line" in (
        section(beyond)
    )


def test_gates_are_compared_by_the_seeds_that_both_have():
    # What two supernets gain is far apart. Both arms gain the same from each.
    runs = plan(TABLES["6"], arms=["all_three", "target_complexity"])
    runs = [run for run in runs if run.supernet]
    contrast = Contrast("all_three", "target_complexity", "dynamic", 0.01)
    generator = np.random.default_rng(0)
    rows = {}
    for run in runs:
        rate = (0.5, 0.4)[run.supernet.seed] + generator.normal(0, 0.001)
        rows[run.name] = (np.arange(IMAGES) < rate * IMAGES).astype("float64")
    measured = types.SimpleNamespace(top1=lambda run, path, weights: rows[run.name])
    for left_out in (set(), {2, 4}, {1, 3}, {0, 1, 2}):
        kept = [run for run in runs if run.arm.name == contrast.first or run.seed not in left_out]
        row = collection._contrast(contrast, kept, measured)
        assert abs(row["value"]) < 0.005
        assert row["num_seeds"] == (5 - len(left_out),) * 2


def test_widths_of_gates_are_no_further_seeds_of_their_supernets():
    every = plan(TABLES["3"])
    runs = [run for run in every if run.arm in TABLES["3"].arms and run.data == "cifar10"]
    generator = np.random.default_rng(0)
    rows = {run.name: generator.random(IMAGES).round() for run in runs if not run.supernet}
    rows |= {run.name: rows[run.supernet.name] for run in runs if run.supernet}
    measured = types.SimpleNamespace(top1=lambda run, path, weights: rows[run.name])
    contrast = Contrast("supernet", "from_scratch", "widest", 0.01)
    with_gates = collection._contrast(contrast, runs, measured)
    without = collection._contrast(contrast, [run for run in runs if not run.supernet], measured)
    assert (with_gates["low"], with_gates["high"]) == (without["low"], without["high"])


def test_the_limit_of_the_data_is_named(collect):
    result = {**collect([(700, 860), (790, 800)]), "data": "tiny_imagenet"}
    assert "must have ends 3 points apart on the images of every choice" in section(result)


def test_the_line_of_networks_trained_alone():
    arms = [
        {seed: {"hits": np.full(10, value), "madds": madds} for seed in (0, 1)}
        for value, madds in ((0.5, 1e6), (0.9, 3e6))
    ]
    np.testing.assert_allclose(gate_rows.line_of_arms(arms, 2e6), np.full((2, 10), 0.7))
    assert gate_rows.line_of_arms(arms, 4e6) is None
    assert gate_rows.line_of_arms([], 4e6) is None


def test_an_arm_of_own_images_reads_those_of_the_supernet():
    assert Arm("name", "program", "config").own_images is False
    runs = plan(TABLES["9"], arms=["ds_resnet_s_gate_own_images"], seeds=[0])
    assert "--train_split=train[:5000]" in runs[-1].arguments
    (quick,) = plan(TABLES["9"], arms=["ds_resnet_s_gate_own_images"], seeds=[0], quick=True)[1:]
    # The last one of several flags counts.
    splits = [flag for flag in quick.arguments if flag.startswith("--train_split")]
    assert splits[-1] == "--train_split=train[:20%]"
