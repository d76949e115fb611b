"""The hits of trained networks: what the gates of one supernet share is measured once."""

import dataclasses
import json
import os

import numpy as np
import pytest
from keras_dsnet_recipes.lib.reproduction import gate_rows, hits
from routed_networks import SHORT_SPEC, small_network

import keras_dsnet.training
from keras_dsnet.data import evaluation_pipeline, load_source
from keras_dsnet.models import with_slimming_head
from keras_dsnet.training import calibrate_confidence, confidence, evaluate_paths

WIDTHS = "0123"
CONFIG = {
    "dataset": "digits",
    "data_dir": None,
    "train_split": "train[90%:95%]",
    "eval_split": "train[95%:]",
    "eval_batch_size": 50,
}

NARROW_FRONT = dataclasses.replace(
    SHORT_SPEC,
    stem=SHORT_SPEC.stem[:1],
    stages=tuple(
        stage if stage.gated else dataclasses.replace(stage, channels=stage.channels[:1])
        for stage in SHORT_SPEC.stages
    ),
)


def gated_network(seed=0, spec=SHORT_SPEC, **design):
    """Returns a network of the same supernet, whose slimming head depends on the seed."""
    network = with_slimming_head(small_network(classes=10, spec=spec), **design)
    for variable in network.slimming_gates[0].slimming_variables:
        noise = np.random.default_rng(seed).normal(size=variable.shape)
        variable.assign_add(noise * float(np.std(variable)) + 0.1 * noise)
    network.gates_trained = True
    return network


def save(folder, network):
    """Saves a finished run of stage II."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    network.save(folder / "model.keras")
    return folder


def images(network, kind="eval"):
    source = load_source("digits", None, kind, **{f"{kind}_split": CONFIG[f"{kind}_split"]})
    size, batch = network.input_shape[1:3], CONFIG["eval_batch_size"]
    return evaluation_pipeline(
        source,
        image_size=size,
        batch_size=batch,
        preprocess=network.normalization,
        # Digits are not augmented, so that training saw whole images.
        crop_fraction=1.0,
    )


def rows_of(network, paths=None, routings=()):
    """Returns the rows of one evaluation of everything."""
    rows = evaluate_paths(network, images(network), paths, per_image=True, routings=routings)
    return {str(row["path"]): row for row in rows}


def record(monkeypatch, evaluate):
    """Returns a list, to which each evaluation adds the names of the rows that it measured."""
    calls = []

    def recorded(model, dataset, paths=None, **options):
        rows = evaluate(model, dataset, paths, **options)
        calls.append([str(row["path"]) for row in rows])
        return rows

    monkeypatch.setattr(keras_dsnet.training, "evaluate_paths", recorded)
    return calls


@pytest.fixture
def measured(monkeypatch):
    return record(monkeypatch, evaluate_paths)


@pytest.fixture
def pretended(monkeypatch):
    """Evaluations that take no time, because the networks do not run."""

    def evaluate(model, dataset, paths, dynamic=None, **options):
        names = [*range(model.num_widths)] if paths is None else [*paths]
        names += ["dynamic"] if dynamic is None and model.gates_trained else []
        wrong = np.zeros(sum(len(labels) for _, labels in dataset), bool)
        return [{"path": name, "madds": 1, "top1": 0.0, "hits": wrong} for name in names]

    return record(monkeypatch, evaluate)


@pytest.mark.slow
def test_gates_of_one_supernet_measure_its_static_widths_once(tmp_path, measured):
    designs = [{}, {"gate_encoder": "regions"}]
    found = []
    for seed, design in enumerate(designs):
        network = gated_network(seed, **design)
        run = save(tmp_path / f"gate_s{seed}", network)
        found.append(hits.load_hits(run, tmp_path / "hits", None))
        expected = rows_of(network)
        # No row is of the path "largest", which the same network without a wide front lacks.
        stored = gated_network(seed, spec=NARROW_FRONT, **design).count_params()
        assert {row["parameters"] for row in found[-1].values()} == {stored}
        for name in (*WIDTHS, "dynamic"):
            np.testing.assert_array_equal(found[-1][name]["hits"], expected[name]["hits"])
            for value in ("madds", "top1", "top5"):
                assert found[-1][name][value] == expected[name][value]
    assert measured == [[*WIDTHS], *[["dynamic"]] * 2]
    # The gates are different ones.
    assert len({rows["dynamic"]["madds"] for rows in found}) == 2


def test_the_supernet_itself_shares_its_static_widths(tmp_path, pretended):
    network = gated_network()
    run = save(tmp_path / "gate_s0", network)
    network.gates_trained = False
    supernet = save(tmp_path / "supernet_s0", network)
    (supernet / "model.keras").rename(supernet / "supernet.keras")
    rows = hits.load_hits(supernet, tmp_path / "hits", None)
    gates = hits.load_hits(run, tmp_path / "hits", None)
    assert pretended == [[*WIDTHS], [], ["dynamic"]]
    assert list(rows) == [*WIDTHS]
    assert list(gates) == [*WIDTHS, "dynamic"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kernel", "moving_variance", "gate/w3"])
def test_a_run_with_another_supernet_is_measured_itself(name, tmp_path, pretended):
    network = gated_network()
    hits.load_hits(save(tmp_path / "gate_s0", network), tmp_path / "hits", None)
    variable = next(v for v in network.variables if name in v.path)
    value = variable.numpy()
    value.flat[-1] = np.nextafter(value.flat[-1], np.float32(9))
    variable.assign(value)
    hits.load_hits(save(tmp_path / "gate_s1", network), tmp_path / "hits", None)
    assert pretended[2:] == pretended[:2] == [[*WIDTHS], ["dynamic"]]


def test_other_images_are_measured_themselves(tmp_path, pretended):
    run = save(tmp_path / "gate_s0", gated_network())
    whole = hits.load_hits(run, tmp_path / "hits", None)
    part = hits.load_hits(run, tmp_path / "hits", "train[97%:]")
    assert pretended[2:] == pretended[:2] == [[*WIDTHS], ["dynamic"]]
    assert len(part["0"]["hits"]) < len(whole["0"]["hits"])


def test_a_killed_collection_goes_on(tmp_path, pretended, monkeypatch):
    run = save(tmp_path / "gate_s0", gated_network())
    recorded = keras_dsnet.training.evaluate_paths

    def killed(model, dataset, paths=None, **options):
        if paths == []:
            raise KeyboardInterrupt
        return recorded(model, dataset, paths, **options)

    with monkeypatch.context() as patch:
        patch.setattr(keras_dsnet.training, "evaluate_paths", killed)
        with pytest.raises(KeyboardInterrupt):
            hits.load_hits(run, tmp_path / "hits", None)
    hits.load_hits(run, tmp_path / "hits", None)
    hits.load_hits(run, tmp_path / "hits", None)
    assert pretended == [[*WIDTHS], ["dynamic"]]


def test_gates_that_were_trained_again_are_measured_again(tmp_path, pretended):
    run = save(tmp_path / "gate_s0", gated_network())
    hits.load_hits(run, tmp_path / "hits", None)
    save(run, gated_network(seed=1))
    # File systems may have coarse times.
    later = max(path.stat().st_mtime for path in (tmp_path / "hits").iterdir()) + 10
    os.utime(run / "model.keras", (later, later))
    hits.load_hits(run, tmp_path / "hits", None)
    assert pretended == [[*WIDTHS], ["dynamic"], ["dynamic"]]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Routing by confidence")
def test_gates_share_what_routing_by_confidence_measures(tmp_path, measured, monkeypatch):
    calls = []

    def collect_steps(*arguments):
        calls.append(arguments)
        return collect(*arguments)

    collect = confidence.collect_steps
    monkeypatch.setattr(confidence, "collect_steps", collect_steps)
    limits, rows = [0, 1e9, 1e9], []
    for seed, limit in enumerate(limits):
        network = gated_network(seed)
        run = save(tmp_path / f"gate_s{seed}", network)
        rows.append(gate_rows.confidence_row(run, tmp_path / "hits", None, limit))
    assert len(calls) == 1
    # The same thresholds are measured once.
    assert measured == [["confidence"]] * 2
    for row, limit in zip(rows, limits):
        least = network.madds(network.confidence_steps[0])
        calibrate_confidence(network, images(network, "train"), max_madds=max(limit, least))
        expected = rows_of(network, [], ["confidence"])["confidence"]
        assert row["thresholds"] == list(network.thresholds)
        np.testing.assert_array_equal(row["hits"], expected["hits"])
        assert (row["madds"], row["top1"]) == (expected["madds"], expected["top1"])
