"""The program that makes the tables of the paper: its plan, its runs and its page."""

import json
import pathlib

import numpy as np
import pytest
from keras_dsnet_recipes.lib.reproduction import collection, hits, result_page
from keras_dsnet_recipes.lib.reproduction.paper_tables import STAGE_1, STAGE_2, TABLES
from keras_dsnet_recipes.lib.reproduction.planned_runs import arm_of, plan
from keras_dsnet_recipes.lib.reproduction.run_checks import _all_flags, _flag_value, check_runs
from light_programs import run_light_program
from programs import import_program, run_program

RECIPES = pathlib.Path(__file__).resolve().parents[2] / "recipes"
PROGRAM = RECIPES / "reproduce.py"
WITH_ARMS = [name for name, table in TABLES.items() if table.arms]


def run(*arguments, folder="."):
    return run_light_program(PROGRAM, *arguments, folder=folder)


@pytest.mark.parametrize("name", WITH_ARMS)
def test_every_arm_has_a_flag_file_and_a_seed_of_its_own(name):
    runs = plan(TABLES[name])
    assert len({r.name for r in runs}) == len(runs)
    for r in runs:
        assert pathlib.Path(r.arguments[0].partition("=")[2]).is_file()
        assert r.arguments[-1] == f"--seed={r.seed}"
        # A supernet comes before the gates that need it.
        assert r.supernet is None or runs.index(r.supernet) < runs.index(r)
        assert all(runs.index(needed) < runs.index(r) for _, needed in r.needs)
        assert (r.arm.program == STAGE_2) == (r.supernet is not None)


@pytest.mark.parametrize("name", WITH_ARMS)
def test_contrasts_name_arms_of_their_table(name):
    table = TABLES[name]
    names = {arm.name for arm in table.arms}
    if table.peers:
        pytest.skip("tests/recipes/test_peers.py has the contrasts of peers")
    for contrast in table.contrasts:
        assert contrast.first in names
        assert set(contrast.second.split("+")) <= names | {"line"}
        assert (contrast.path in ("gate", "confidence", "dynamic")) == all(
            arm.program == STAGE_2 for arm in table.arms if arm.name == contrast.first
        )


def test_every_claim_has_a_row_and_says_what_is_missing():
    assert {"2", "3", "5", "6", "7", "8", "9", "10"} <= set(TABLES)
    for table in TABLES.values():
        assert table.contrasts or table.missing or not table.claim


def test_five_seeds_of_gates_share_two_supernets():
    runs = plan(TABLES["3"], arms=["without_transfer"])
    assert [r.name for r in runs if r.arm.program == STAGE_1] == [
        "tablepretraining_tiny_imagenet_supernet_s0",
        "table3_supernet_s0",
        "table3_supernet_s1",
    ]
    gates = [r for r in runs if r.arm.program == STAGE_2]
    assert [r.supernet.name[-1] for r in gates] == ["0", "1", "0", "1", "0"]


def test_a_network_ships_for_some_data_only():
    for data, ships in (("cifar10", True), ("tiny_imagenet", False)):
        supernet, gate = plan(TABLES["9"], data, arms=["ds_resnet_s_gate"], seeds=[3])
        assert (supernet.ships, gate.ships) == (ships, False)
        assert gate.supernet == supernet
        (supernet, _) = plan(TABLES["9"], data, arms=["ds_mbnet_gate"], seeds=[0])
        assert supernet.ships


def test_an_arm_of_two_tables_is_run_once():
    (run,) = plan(TABLES["10"], arms=["temperature_1"], seeds=[0])
    assert (run.name, run.arm.name) == ("table5_ensemble_s0", "temperature_1")
    gates = {name: plan(TABLES[name]) for name in ("9", "6", "7", "beyond")}
    own = {run.name: run.arguments for runs in gates.values() for run in runs if run.supernet}
    # One setting is one run: no two of these differ in their name only.
    assert len(own) == len(set(own.values())) == len(set(own)) < sum(map(len, gates.values())) - 20
    (shared,) = [run for run in gates["7"] if run.arm.name == "one_hot_shared" and run.seed == 0]
    assert (shared.name, shared.flags) == ("table6_try_best_s0", ("--loss_weights=0,0,1",))


@pytest.mark.parametrize("name", [name for name in TABLES if TABLES[name].arms])
def test_runs_of_seconds_are_never_those_of_a_table(name):
    quick, real = plan(TABLES[name], quick=True), plan(TABLES[name])
    assert not {run.name for run in quick} & {run.name for run in real}
    assert all("_digits_" in run.name for run in quick)
    for run in quick:
        assert arm_of(run.name) == run.arm.name or run.arm.same_as


def test_list_tells_what_arms_cost_without_tensorflow():
    done = run("--list")
    assert done.returncode == 0, done.stderr
    assert "--table=5" in done.stdout
    assert "ensemble: 2 seeds" in done.stdout
    assert ("not built yet" in done.stdout) == any(table.missing for table in TABLES.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--table must be given"),
        (("--table=11",), "Received: --table=11"),
        (("--table=5", "--arms=ema,us_net"), "Received: --arms=ema,us_net"),
        (("--table=5", "--seeds=0,x"), "Received: --seeds=0,x"),
        (("--table=3", "--arms=from_scratch", "--seeds=2"), "that these arms of --table=3 have"),
        (("--table=3", "--data=tiny_imagenet", "--data_dir=."), "no flag file"),
        (("--table=3",), "--table=3 needs --pretraining_dir, the images of Tiny-ImageNet"),
        (("--table=3", "--pretraining_dir=nowhere"), "nowhere: there is no such folder"),
        (("--table=5", "--data_dir=nowhere"), "--data_dir=nowhere: there is no such folder"),
    ],
)
def test_mistakes_are_named_before_work(arguments, message, tmp_path):
    done = run(*arguments, f"--workdir={tmp_path}/run", folder=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "run").exists()


def save_run(workdir, run, **flags):
    """Writes what a finished run leaves, without a network."""
    folder = workdir / run.name
    (folder / "tables").mkdir(parents=True)
    (folder / "tables" / "paths.json").write_text("[]")
    config = {"seed": run.seed, "epochs": 15, "eval_split": "train[45000:]", "data_dir": None}
    config |= {"target": run.arm.name, "momentum": 0.9, **flags}
    (folder / "config.json").write_text(json.dumps(config))
    drop = 0.1 if run.arm.name == "in_place" else 0.0
    lines = ["epoch,val_top1_slimmest", "1,0.5", f"2,{0.6 - 2 * drop}", "3,0.7"]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Runs of Table 5 whose ensemble is four points above in-place distillation."""
    top1 = {"in_place": 0.70, "ema": 0.70, "ensemble": 0.74}

    def load_hits(path, folder, split, weights, data_dir):
        arm, seed = path.name.removeprefix("table5_").rsplit("_s", 1)
        easy = np.random.default_rng(0).random(4000)
        rate = top1[arm] + 0.002 * int(seed)
        return {
            str(width): {
                "path": str(width),
                "hits": easy < rate + 0.01 * width,
                "madds": 1e6 + width,
            }
            for width in range(3)
        }

    monkeypatch.setattr(hits, "load_hits", load_hits)
    runs = plan(TABLES["5"])
    for r in runs:
        save_run(tmp_path, r)
    return tmp_path, runs


def test_collection_has_rows_differences_verdicts_and_drops(saved):
    workdir, runs = saved
    result = collection.collect(TABLES["5"], runs, workdir, "cifar10", None)
    found = {(c["first"], c["path"], c["weights"]): c for c in result["contrasts"]}
    best = found["ensemble", "slimmest", "saved"]
    assert best["value"] == pytest.approx(0.04, abs=0.01)
    assert best["low"] < best["value"] < best["high"]
    assert best["verdict"] == "holds"
    equal = found["ema", "slimmest", "saved"]
    assert (equal["value"], equal["verdict"]) == (0, "does not hold")
    assert found["ema", "slimmest", "online"]["verdict"] is None
    assert result["verdict"] == "does not hold"
    assert result["drops"] == {r.name: int("in_place" in r.name) for r in runs}
    assert result["images"] == "train[45000:]"
    json.dumps(result)


def test_a_record_names_no_folder_of_this_machine(saved):
    workdir, runs = saved
    folders = {"supernet": "/data/runs/net", "data_dir": "/data/tfds", "gates_from": None}
    for run in runs:
        change(workdir, run, **folders, places={"supernet": "/data/runs/net", "gates_from": None})
    record = collection.collect(TABLES["5"], runs, workdir, "cifar10", None)["record"]
    configs = [run["config"] for run in record["runs"]]
    assert all(config["supernet"] == "net" and config["gates_from"] is None for config in configs)
    assert "/data" not in json.dumps(record)


def test_runs_of_other_schedules_are_not_compared(saved):
    workdir, runs = saved
    change(workdir, runs[0], momentum=0.8)
    with pytest.raises(ValueError, match=r"one schedule.* Received: --momentum of 0.8 and 0.9"):
        collection.collect(TABLES["5"], runs, workdir, "cifar10", None)
    # Runs of a flag file that has changed since.
    for run in runs:
        change(workdir, run, momentum=0.9, epochs=14)
    with pytest.raises(ValueError, match=r"_s0 must have --epochs=15.* Received: --epochs of 14"):
        collection.collect(TABLES["5"], runs, workdir, "cifar10", None)


def change(workdir, run, **flags):
    path = workdir / run.name / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | flags))


def test_runs_that_are_not_their_arms_are_not_collected(saved):
    workdir, runs = saved
    change(workdir, runs[1], target="in_place")
    with pytest.raises(ValueError, match=r"table5_ema_s0 must have --target=ema.* of in_place"):
        collection.collect(TABLES["5"], runs, workdir, "cifar10", None)
    change(workdir, runs[1], target="ema", dataset="digits")
    with pytest.raises(ValueError, match=r"must be on cifar10.* table5_ema_s0 on digits"):
        collection.collect(TABLES["5"], runs, workdir, "cifar10", None)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", list(TABLES))
def test_the_runs_of_every_table_can_be_compared(name, quick):
    runs = plan(TABLES[name], quick=quick)
    names = {flag.partition("=")[0] for run in runs for flag in _all_flags(run.arguments)}
    negated = {flag for flag in names if flag.startswith("--no") and flag != "--nodecay"}
    configs = {}
    for run in runs:
        config = dict.fromkeys(flag[2:] for flag in names - negated)
        config |= dict.fromkeys((flag[4:] for flag in negated), True)
        for flag in _all_flags(run.arguments):
            key, value = _flag_value(flag, config)
            config[key] = value
        configs[run.name] = config
    check_runs(TABLES[name].title, runs, configs, "digits" if quick else "cifar10")


def test_a_flag_of_one_arm_is_the_same_in_all_others():
    runs = plan(TABLES["3"], arms=["with_transfer", "without_transfer", "transfer_only"], seeds=[0])
    own = [run for run in runs if run.arm in TABLES["3"].arms and run.supernet]
    configs = {run.name: {"learning_rate": 0.2, "epochs": 8} for run in own}
    (only,) = [run for run in own if run.arm.name == "transfer_only"]
    configs[only.name] = {"learning_rate": 0.0, "epochs": 1}
    check_runs("Table 3", own, configs, "cifar10")
    (transferred,) = [run for run in own if run.arm.name == "with_transfer"]
    configs[transferred.name] = {"learning_rate": 0.4, "epochs": 8}
    with pytest.raises(
        ValueError, match=r"with_transfer_s0 must have --learning_rate=0.2.* of 0.4"
    ):
        check_runs("Table 3", own, configs, "cifar10")


def test_test_images_are_not_read_before_all_runs_are_finished(saved):
    workdir, runs = saved
    (workdir / runs[-1].name / "tables" / "paths.json").unlink()
    with pytest.raises(ValueError, match=rf"reads the test images once.* {runs[-1].name} not"):
        collection.collect(TABLES["5"], runs, workdir, "cifar10", "test")


def test_unfinished_runs_are_left_out_and_named(saved):
    workdir, runs = saved
    (workdir / runs[-1].name / "tables" / "paths.json").unlink()
    result = collection.collect(TABLES["5"], runs, workdir, "cifar10", None)
    assert result["record"]["not_finished"] == [runs[-1].name]
    assert len(result["record"]["runs"]) == len(runs) - 1
    with pytest.raises(ValueError, match=r"no run of Table 5.* is finished"):
        collection.collect(TABLES["5"], runs, workdir / "elsewhere", "cifar10", None)


def test_page_has_every_table_and_says_what_was_not_run(saved):
    workdir, runs = saved
    result = collection.collect(TABLES["5"], runs, workdir, "cifar10", None)
    folder = workdir / "reproduction"
    folder.mkdir()
    (folder / "table5.json").write_text(json.dumps(result))
    page = result_page.write_page(workdir / "reproduction.md", folder)
    text = page.read_text()
    assert "No ImageNet figure was measured here" in text.splitlines()[4]
    for table in TABLES.values():
        assert not table.claim or f"| {table.title} | " in text
    rows = [line for line in text.splitlines() if line.startswith("| Table")]
    (first,) = [row for row in rows if row.startswith("| Table 5")]
    assert "**does not hold**" in first
    assert all("not run yet" in row for row in rows if "| Table 6" in row)


def test_published_page_is_the_one_that_the_program_writes(tmp_path):
    docs = RECIPES.parent / "docs" / "results"
    page = result_page.write_page(tmp_path / "page.md", docs / "reproduction")
    assert page.read_text() == (docs / "reproduction.md").read_text()


def test_times_of_a_table_are_not_published_as_a_result(tmp_path, monkeypatch, saved):
    program = import_program("keras_dsnet_recipes.reproduce")
    workdir, runs = saved
    (workdir / "results").mkdir()
    result = collection.collect(TABLES["5"], runs, workdir, "cifar10", None)
    for ending, text in {".json": json.dumps(result), "_latency.json": "{}", ".md": "-"}.items():
        (workdir / "results" / f"table5{ending}").write_text(text)
    monkeypatch.setattr(program, "RECIPES", tmp_path / "elsewhere" / "recipes")
    program.publish([(workdir / "results", "table5")])
    docs = tmp_path / "elsewhere" / "docs" / "results"
    assert [path.name for path in (docs / "reproduction").iterdir()] == ["table5.json"]
    assert "## Table 5" in (docs / "reproduction.md").read_text()


def test_a_published_result_is_not_replaced_by_a_part_of_it(tmp_path, monkeypatch, saved):
    program = import_program("keras_dsnet_recipes.reproduce")
    workdir, runs = saved
    (workdir / "results").mkdir()
    monkeypatch.setattr(program, "RECIPES", tmp_path / "elsewhere" / "recipes")
    published = tmp_path / "elsewhere" / "docs" / "results" / "reproduction" / "table5.json"

    def publish(arms=("ema", "ensemble", "in_place"), **more):
        chosen = [run for run in runs if run.arm.name in arms]
        result = collection.collect(TABLES["5"], chosen, workdir, "cifar10", None) | more
        (workdir / "results" / "table5.json").write_text(json.dumps(result))
        program.publish([(workdir / "results", "table5")])

    publish(read_test=True)
    (published.parent / "table5_curves.png").write_text("of an earlier result")
    before = published.read_text()
    with pytest.raises(ValueError, match=r"would replace .*table5.json, and lose the figures of"):
        publish()
    with pytest.raises(ValueError, match=r"lose in_place of seed 0, in_place of seed 1\. The new"):
        publish(("ema", "ensemble"), read_test=True)
    assert published.read_text() == before
    publish(read_test=True)
    assert not (published.parent / "table5_curves.png").exists()


@pytest.mark.parametrize("name", [name for name in TABLES if TABLES[name].claim])
def test_the_command_of_a_part_of_a_table_names_its_arms_and_folders(name):
    table = TABLES[name]
    known = {arm.name for arm in table.arms}
    peers = [peer.name for peer in table.peers][:2]
    rows = [{"arm": arm, "seed": 0} for arm in peers or sorted(known)[:1]]
    result = {"table": name, "data": "cifar10", "rows": rows}
    words = result_page._command(result).split()
    given = dict(word.partition("=")[::2] for word in words if word.startswith("--"))
    assert set(given["--arms"].split(",")) <= known
    assert ("--pretraining_dir" in given) == (name == "3")
    assert given["--data_dir"] == "/data/tfds"


def test_quick_table_runs_resumes_and_collects(tmp_path):
    flags = ("--table=5", "--quick", "--arms=ema", "--seeds=0", f"--workdir={tmp_path}")
    done = run_program(PROGRAM, *flags)
    assert done.returncode == 0, done.stderr
    results = tmp_path / "results"
    for ending in (".md", ".csv", ".json", "_curves.png"):
        assert (results / f"table5_digits{ending}").stat().st_size
    result = json.loads((results / "table5_digits.json").read_text())
    rows = {(row["arm"], row["weights"], row["path"]): row["top1"] for row in result["rows"]}
    assert len(rows) == 4
    table = json.loads((tmp_path / "table5_digits_ema_s0" / "tables" / "paths.json").read_text())
    assert rows["ema", "saved", "slimmest"] == pytest.approx(table[0]["top1"])
    assert rows["ema", "saved", "widest"] == pytest.approx(table[-1]["top1"])
    assert all(run["hours"] > 0 for run in result["record"]["runs"])
    again = run_program(PROGRAM, *flags)
    assert again.returncode == 0, again.stderr
    assert "table5_digits_ema_s0 is finished" in again.stdout
    assert "$ python" not in again.stdout


@pytest.mark.long
def test_quick_table_compares_two_arms(tmp_path):
    flags = ("--table=5", "--quick", "--arms=in_place,ema", "--seeds=0", f"--workdir={tmp_path}")
    done = run_program(PROGRAM, *flags)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results" / "table5_digits_differences.png").stat().st_size
    result = json.loads((tmp_path / "results" / "table5_digits.json").read_text())
    assert len(result["rows"]) == 6
    assert all(run["hours"] > 0 for run in result["record"]["runs"])


@pytest.mark.long
def test_quick_table_of_stage_1(tmp_path):
    done = run_program(PROGRAM, "--table=10", "--quick", "--seeds=0", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results" / "table10_digits.md").is_file()


@pytest.mark.long
@pytest.mark.parametrize("name", ["2", "8"])
def test_quick_tables_of_peers(name, tmp_path):
    flags = (f"--table={name}", "--quick", "--seeds=0", "--latency", f"--workdir={tmp_path}")
    done = run_program(PROGRAM, *flags)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "results" / f"table{name}_digits.json").read_text())
    assert all(result["lines"].values())
    assert any("ms" in row for row in result["rows"])
    for ending in ("lines", "latency"):
        assert (tmp_path / "results" / f"table{name}_digits_{ending}.png").stat().st_size


@pytest.mark.long
@pytest.mark.parametrize("name", ["6", "7"])
def test_quick_tables_of_gates(name, tmp_path):
    done = run_program(PROGRAM, f"--table={name}", "--quick", "--seeds=0", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "results" / f"table{name}_digits.json").read_text())
    assert {row["path"] for row in result["rows"]} == {"slimmest", "widest", "gate"}
    for ending in ("differences", "gates", "shares"):
        assert (tmp_path / "results" / f"table{name}_digits_{ending}.png").stat().st_size


@pytest.mark.long
def test_quick_table_of_gates_beside_confidence(tmp_path):
    done = run_program(PROGRAM, "--table=9", "--quick", "--seeds=0", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "results" / "table9_digits.json").read_text())
    rows = {(row["arm"], row["path"]): row for row in result["rows"]}
    assert {path for _, path in rows} == {"slimmest", "widest", "gate", "confidence"}
    for (arm, path), row in rows.items():
        assert (path == "gate") == ("easy" in row)
        gate = rows[arm, "gate"]["madds"]
        assert path != "confidence" or row["madds"] < 1.2 * gate
    assert "easy images" in (tmp_path / "results" / "table9_digits.md").read_text()
    assert "easy" in (tmp_path / "results" / "table9_digits.csv").read_text()


@pytest.mark.long
def test_quick_table_of_transfer(tmp_path):
    done = run_program(PROGRAM, "--table=3", "--quick", "--seeds=0", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "results" / "table3_digits.json").read_text())
    arms = {row["arm"] for row in result["rows"]}
    assert arms == {arm.name for arm in TABLES["3"].arms}
    config = json.loads((tmp_path / "table3_digits_with_transfer_s0" / "config.json").read_text())
    assert config["gates_from"].endswith("tablepretraining_digits_tiny_imagenet_gate_s0")
    seconds = {contrast["second"] for contrast in result["contrasts"]}
    assert "from_scratch" in seconds


def test_a_page_says_what_is_missing_and_which_gates_choose_nothing():
    rows = [
        {"arm": arm, "seed": seed, "weights": "saved", "path": "gate", "madds": 8.0, "top1": 0.9}
        for arm in ("ds_mbnet_gate", "ds_mbnet_gate_chosen")
        for seed in (0, 1)
    ]
    shares = {
        "table9_ds_mbnet_gate_s0": [{"0": 1.0, "3": 0.0}, {"0": 0.0005, "3": 0.9995}],
        "table9_ds_mbnet_gate_s1": [{"0": 1.0, "3": 0.0}, {"0": 0.0, "3": 1.0}],
        "table9_ds_mbnet_gate_chosen_s0": [{"0": 1.0, "3": 0.0}],
        "table9_ds_mbnet_gate_chosen_s1": [{"0": 0.9, "3": 0.1}],
    }
    record = dict.fromkeys(("commit", "keras", "tensorflow", "python"), "1")
    accelerator = {"jax": "9.8.7", "device": "a GPU"}
    run = {"name": "table9_x_s0", "hours": 1.0, "commit": None, "accelerator": accelerator}
    result = {
        **dict.fromkeys(("title", "images", "verdict"), "x"),
        **dict.fromkeys(("contrasts", "drops"), ()),
        "shares": shares,
        "table": "9",
        "data": "cifar10",
        "rows": rows,
        "record": {**record, "runs": [run], "not_finished": []},
    }
    text = result_page.section(result)
    assert "9_x_s0: JAX 9.8.7 on a GPU." in text
    assert "Not run yet: ds mbnet s gate, ds resnet s gate, ds resnet s gate own images." in text
    assert "--arms=ds_mbnet_gate,ds_mbnet_gate_chosen " in text
    assert "The gates of ds mbnet gate take the path 0-3 for every image: they" in text
    assert "The gates of ds mbnet gate chosen take" not in text
    shares["table9_ds_mbnet_gate_chosen_s1"] = [{"0": 0.9689, "3": 0.0311}]
    text = result_page.section(result)
    assert (
        "The gates of ds mbnet gate chosen take width 0 for 96.8 % or more of the images at each "
        "gate: they choose next to nothing."
    ) in text


@pytest.mark.parametrize(
    ("seconds", "ours"),
    [
        (("give_up", "give_up"), "try best gate +1.00 (one seed); all gate +2.00 (one seed)"),
        (
            ("give_up", "line"),
            "try best - give up gate +1.00 (one seed); all - line gate +2.00 (one seed)",
        ),
    ],
)
def test_the_first_table_names_both_arms_where_they_are_compared_with_several(seconds, ours):
    contrasts = [
        {"first": first, "second": second, "path": "gate", "value": value, "low": None}
        for first, second, value in zip(("try_best", "all"), seconds, (0.01, 0.02), strict=True)
    ]
    contrasts = [{**contrast, "verdict": "undecided", "high": None} for contrast in contrasts]
    arms = {arm.name for arm in TABLES["6"].arms}
    result = {"table": "6", "contrasts": contrasts, "rows": [{"arm": arm} for arm in arms]}
    assert result_page._ours(result) == ours
