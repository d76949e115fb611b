"""Tables of accuracy and cost, and batch-norm statistics computed anew."""

import numpy as np
import pytest
import tensorflow as tf
from tiny_families import TINY_RESNET, tiny_images, tiny_network

from keras_dsnet.training import describe_gates, evaluate_paths, recalibrate_batch_norm
from tests.training.test_gate_trainer import make_batch, make_network


def test_rows_are_the_accuracy_and_madds_of_each_path():
    network = make_network()
    images, labels = make_batch()
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(16)
    rows = evaluate_paths(network, dataset, paths=[0, "widest", "largest"])
    assert [row["path"] for row in rows] == [0, "widest", "largest"]
    for row in rows:
        predicted = np.argmax(network(images, path=row["path"]), axis=1)
        assert row["top1"] == np.mean(predicted == labels)
        assert row["madds"] == network.madds(row["path"])


def test_dynamic_row_counts_the_chosen_paths_and_the_gate():
    network = make_network()
    network.gates_trained = True
    images, labels = make_batch()
    rows = evaluate_paths(network, [(images, labels)])
    widths = network.route(images).numpy()[:, 0]
    assert len(set(widths)) > 1
    madds = np.mean([network.madds(int(w)) for w in widths]) + network.costs(0).slimming
    assert rows[-1]["path"] == "dynamic"
    assert rows[-1]["madds"] == pytest.approx(madds, rel=1e-12)
    assert rows[-1]["top1"] == np.mean(np.argmax(network(images), axis=1) == labels)
    assert sum(rows[-1]["shares"][0].values()) == pytest.approx(1.0)


def test_several_gates_have_the_shares_of_their_paths_too():
    network, images = tiny_network(TINY_RESNET), tiny_images(32)
    rows = evaluate_paths(network, [(images, np.zeros(32, "int32"))])
    taken = [tuple(path) for path in network.route(images).numpy().tolist()]
    wanted = {"-".join(map(str, path)): taken.count(path) / 32 for path in set(taken)}
    assert rows[-1]["path_shares"] == wanted
    assert list(wanted.values()) != [1.0]
    shares = list(rows[-1]["path_shares"].values())
    assert shares == sorted(shares, reverse=True)
    most = next(iter(rows[-1]["path_shares"]))
    assert f"{len(wanted)} paths are in use, {most} for {shares[0]:.1%}" in describe_gates(rows)


def test_empty_data_is_an_error():
    with pytest.raises(ValueError, match="no images"):
        evaluate_paths(make_network(), [])
    with pytest.raises(ValueError, match="no batches"):
        recalibrate_batch_norm(make_network(), [], verbose=False)


def norms_of(network, section):
    return [step.layer for step in network.sections[section] if step.kind == "norm"]


def test_recalibrated_statistics_are_the_means_over_the_batches():
    network = make_network()
    images, _ = make_batch()
    norm = norms_of(network, 0)[0]
    batches = [images[:20], images[20:]]
    assert recalibrate_batch_norm(network, batches, verbose=False) == 2
    conv = network.sections[0][0].layer
    for table, statistic in ((norm.moving_mean, 0), (norm.moving_variance, 1)):
        values = [np.asarray(conv(batch, width=0)).reshape(-1, 4) for batch in batches]
        expected = np.mean([v.var(0, ddof=1) if statistic else v.mean(0) for v in values], axis=0)
        np.testing.assert_allclose(table.numpy()[0, :4], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trainable", [True, False], ids=["trainable", "frozen"])
def test_recalibration_restores_destroyed_statistics_and_touches_nothing_else(trainable):
    network = make_network(dropout=0.5)
    images, labels = make_batch(60)
    batches = [(images, labels)]
    recalibrate_batch_norm(network, batches, verbose=False)
    expected = [network(images, path=k).numpy() for k in range(4)]
    others = {v.path: v.numpy().copy() for v in network.variables if "moving" not in v.name}
    for section in (0, 1):
        for norm in norms_of(network, section):
            norm.moving_mean.assign(norm.moving_mean + 100.0)
            norm.moving_variance.assign(norm.moving_variance * 0.0 + 7.0)
    network.trainable = trainable
    trained = [v.path for v in network.trainable_variables]
    recalibrate_batch_norm(network, batches, verbose=False)
    for width in range(4):
        np.testing.assert_allclose(network(images, path=width), expected[width], atol=1e-3)
    for variable in network.variables:
        if "moving" not in variable.name:
            np.testing.assert_array_equal(variable, others[variable.path])
    assert [v.path for v in network.trainable_variables] == trained
    assert {layer.trainable for layer in network.supernet_layers} == {trainable}


def test_only_the_paths_asked_for_are_recalibrated():
    network = make_network()
    images, _ = make_batch()
    norm = norms_of(network, 1)[0]
    before = norm.moving_mean.numpy().copy()
    recalibrate_batch_norm(network, [images], paths=[1, "largest"], verbose=False)
    moved = np.abs(norm.moving_mean.numpy() - before).max(axis=1) > 1e-6
    np.testing.assert_array_equal(moved, [False, True, False, False, True])
