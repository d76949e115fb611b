"""Accuracy against MAdds, recalibrated statistics, descriptions of gates."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tqdm
from tiny_families import TINY_RESNET, tiny_images, tiny_network
from trainers import gate_batch, gate_network

from keras_dsnet.models import DynamicSlimmableNetwork, with_dtype
from keras_dsnet.training import (
    better_excluded_widths,
    describe_gates,
    evaluate_paths,
    recalibrate_batch_norm,
)


def test_rows_are_the_accuracy_and_madds_of_each_path():
    network = gate_network()
    images, labels = gate_batch()
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(16)
    rows = evaluate_paths(network, dataset, paths=[0, "widest", "largest"])
    assert [row["path"] for row in rows] == [0, "widest", "largest"]
    for row in rows:
        predicted = np.argmax(network(images, path=row["path"]), axis=1)
        assert row["top1"] == np.mean(predicted == labels)
        assert row["madds"] == network.madds(row["path"])


@pytest.mark.slow
def test_paths_can_be_those_that_route_returned():
    network = tiny_network(TINY_RESNET)
    path = network.route(tiny_images())[0]
    rows = evaluate_paths(network, [(tiny_images(), np.zeros(24, int))], paths=[path, path.numpy()])
    assert [row["path"] for row in rows[:2]] == [tuple(path.numpy().tolist())] * 2


def test_dynamic_row_counts_the_chosen_paths_and_the_gate():
    network = gate_network()
    network.gates_trained = True
    images, labels = gate_batch()
    rows = evaluate_paths(network, [(images, labels)])
    widths = network.route(images).numpy()[:, 0]
    assert len(set(widths)) > 1
    madds = np.mean([network.madds(int(w)) for w in widths]) + network.costs(0).slimming
    assert rows[-1]["path"] == "dynamic"
    assert rows[-1]["madds"] == pytest.approx(madds, rel=1e-12)
    assert rows[-1]["top1"] == np.mean(np.argmax(network(images), axis=1) == labels)
    assert sum(rows[-1]["shares"][0].values()) == pytest.approx(1.0)


def test_rows_have_the_hits_of_each_image_where_asked():
    network = gate_network()
    network.gates_trained = True
    images, labels = gate_batch()
    batches = [(images[:5], labels[:5]), (images[5:], labels[5:])]
    rows = evaluate_paths(network, batches, per_image=True)
    for row in rows:
        assert (row["hits"].shape, row["hits"].dtype) == ((len(labels),), bool)
        assert row["top1"] == row["hits"].mean()
    predicted = np.argmax(network(images, path=1), axis=1)
    np.testing.assert_array_equal(rows[1]["hits"], predicted == labels)
    predicted = np.argmax(network(images), axis=1)
    np.testing.assert_array_equal(rows[-1]["hits"], predicted == labels)
    assert all("hits" not in row for row in evaluate_paths(network, batches))


@pytest.mark.slow
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
        evaluate_paths(gate_network(), [])
    with pytest.raises(ValueError, match="no batches"):
        recalibrate_batch_norm(gate_network(), [], verbose=False)


def norms_of(network, section):
    return [step.layer for step in network.sections[section] if step.kind == "norm"]


def test_recalibrated_statistics_are_the_means_over_the_batches():
    network = gate_network()
    images, _ = gate_batch()
    norm = norms_of(network, 0)[0]
    batches = [images[:20], images[20:]]
    assert recalibrate_batch_norm(network, batches, verbose=False) == 2
    conv = network.sections[0][0].layer
    for table, statistic in ((norm.moving_mean, 0), (norm.moving_variance, 1)):
        values = [np.asarray(conv(batch, width=0)).reshape(-1, 4) for batch in batches]
        expected = np.mean([v.var(0, ddof=1) if statistic else v.mean(0) for v in values], axis=0)
        np.testing.assert_allclose(table.numpy()[0, :4], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16", "float64"])
def test_statistics_are_means_in_every_precision(dtype):
    network, images = gate_network(), gate_batch(60)[0]
    other = with_dtype(network, dtype)
    for model in (network, other):
        recalibrate_batch_norm(model, [images[:20], images[20:40], images[40:]], verbose=False)
    for first, second in zip(norms_of(network, 0), norms_of(other, 0)):
        for name in ("moving_mean", "moving_variance"):
            expected, found = getattr(first, name).numpy()[0], getattr(second, name).numpy()[0]
            np.testing.assert_allclose(found, expected, rtol=0.02, atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("trainable", [True, False], ids=["trainable", "frozen"])
def test_recalibration_restores_destroyed_statistics_and_touches_nothing_else(trainable):
    network = gate_network(dropout=0.5)
    images, labels = gate_batch(60)
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
    network = gate_network()
    images, _ = gate_batch()
    norm = norms_of(network, 1)[0]
    before = norm.moving_mean.numpy().copy()
    recalibrate_batch_norm(network, [images], paths=[1, "largest"], verbose=False)
    moved = np.abs(norm.moving_mean.numpy() - before).max(axis=1) > 1e-6
    np.testing.assert_array_equal(moved, [False, True, False, False, True])


def pairs_of(images, labels):
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(16)


IMAGES, LABELS = gate_batch()
EVALUATED = {
    "column": (IMAGES, LABELS[:, None]),
    "one-hot": (IMAGES, tf.one_hot(LABELS, 4)),
    "floats": [(IMAGES, tf.cast(LABELS, tf.float64))],
    "arrays": (IMAGES.numpy(), LABELS.numpy()),
    "triples": [(IMAGES, LABELS, np.zeros(len(LABELS)))],
    "unknown length": pairs_of(IMAGES, LABELS).filter(lambda *_: True),
    "function": lambda: iter(pairs_of(IMAGES, LABELS)),
}


@pytest.fixture(scope="module")
def network():
    """A network that no test changes."""
    return gate_network()


@pytest.fixture(scope="module")
def expected_rows(network):
    return evaluate_paths(network, pairs_of(IMAGES, LABELS), paths=[0])


@pytest.mark.slow
@pytest.mark.parametrize("dataset", EVALUATED.values(), ids=EVALUATED)
def test_labels_and_data_sets_of_every_form_give_the_same_rows(network, expected_rows, dataset):
    assert evaluate_paths(network, dataset, paths=[0]) == expected_rows


def test_a_number_of_batches_ends_what_never_ends(network, capsys):
    endless = pairs_of(IMAGES, LABELS).repeat()
    for function, name in ((evaluate_paths, "num_batches"), (recalibrate_batch_norm, "steps")):
        with pytest.raises(ValueError, match=f"`dataset` never ends: pass `{name}`"):
            function(network, endless)
        for count in (0, -3, 1.5):
            with pytest.raises(ValueError, match=f"Received: {name}={count}"):
                function(network, endless, **{name: count})
    rows = evaluate_paths(network, endless, paths=[1], num_batches=1, verbose=True)
    assert rows == evaluate_paths(network, [(IMAGES[:16], LABELS[:16])], paths=[1])
    assert "evaluating: 100%" in capsys.readouterr().err


def test_steps_is_a_deprecated_name_of_the_number_of_batches(network):
    endless = pairs_of(IMAGES, LABELS).repeat()
    with pytest.warns(DeprecationWarning, match="`num_batches`") as caught:
        rows = evaluate_paths(network, endless, paths=[1], steps=1)
    assert [warning.filename for warning in caught] == [__file__]
    assert rows == evaluate_paths(network, endless, paths=[1], num_batches=1)
    for wrong in ({"steps": (2, 0)}, {"steps": 1, "num_batches": 1}, {"steps": 0}):
        with pytest.raises(ValueError, match=r"Received: steps=\S"):
            evaluate_paths(network, endless, paths=[1], **wrong)


def test_an_unbatched_data_set_after_a_batched_one_is_refused(network, expected_rows):
    for data in (pairs_of(IMAGES, LABELS).unbatch(), [(IMAGES[0], LABELS[0])]):
        with pytest.raises(ValueError, match=r"in batches .* Received: one image of shape \(16, 1"):
            evaluate_paths(network, data)
        with pytest.raises(ValueError, match=r"in batches .* Received: one image of shape \(16, 1"):
            recalibrate_batch_norm(network, data, verbose=False)
    assert evaluate_paths(network, pairs_of(IMAGES, LABELS), paths=[0]) == expected_rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "received"),
    [
        ((np.zeros((2, 32, 32, 3), "float32"), [0, 0]), r"images of shape \(2, 32, 32, 3\)"),
        ((np.zeros((2, 16, 16, 3), "uint8"), [0, 0]), "images of dtype uint8"),
        ((IMAGES[:0], LABELS[:0]), "0 images"),
        ((IMAGES * np.nan, LABELS), "NaN or infinite"),
        ({"image": IMAGES, "label": LABELS}, "a dict with the keys"),
    ],
)
def test_images_are_checked_alike_by_evaluation_and_recalibration(batch, received):
    network = gate_network()
    before = [v.numpy() for v in network.variables]
    data = [(IMAGES, LABELS), batch]
    for function in (evaluate_paths, recalibrate_batch_norm):
        with pytest.raises(ValueError, match=f"Received: .*{received}.*batch 1") as error:
            function(network, data, paths=[0])
        assert "\n" not in str(error.value)
    for variable, value in zip(network.variables, before):
        np.testing.assert_array_equal(variable, value, err_msg="statistics of few batches")


@pytest.mark.parametrize("labels", [LABELS + 5, LABELS - 9, LABELS.numpy() + 0.5, LABELS[:3]])
def test_labels_that_are_none_are_refused(network, labels):
    with pytest.raises(ValueError, match=r"^Labels must be class numbers 0 to 3, .* batch 0"):
        evaluate_paths(network, [(IMAGES, labels)], paths=[0])


def test_an_open_size_is_counted_at_the_sizes_that_were_seen():
    network = DynamicSlimmableNetwork(gate_network().spec, (None, None, 3), classes=4)
    network.set_weights(gate_network().get_weights())
    network.gates_trained = True
    larger = tf.image.resize(IMAGES, (32, 24))
    data = [(IMAGES, LABELS), (larger[:15], LABELS[:15])]
    rows = evaluate_paths(network, data, paths=[0])
    small, large = (16, 16, 3), (32, 24, 3)
    counts = np.array([len(LABELS), 15])
    costs = [network.madds(0, size) for size in (small, large)]
    assert rows[0]["madds"] == pytest.approx(np.average(costs, weights=counts), rel=1e-12)
    routed = [
        network.madds(int(width), size) + network.costs(0, size).slimming
        for images, size in ((IMAGES, small), (larger[:15], large))
        for width in network.route(images).numpy()[:, 0]
    ]
    assert rows[1]["madds"] == pytest.approx(np.mean(routed), rel=1e-12)
    one_size = evaluate_paths(network, data[1:], paths=[0], dynamic=False)
    assert one_size[0]["madds"] == costs[1]
    given = evaluate_paths(network, data, paths=[0], input_shape=small)
    assert given[0]["madds"] == costs[0]


def test_what_is_no_network_or_no_list_of_paths_is_refused(network):
    features = tiny_network(TINY_RESNET, include_top=False)
    with pytest.raises(ValueError, match="Received: a network with include_top=False"):
        evaluate_paths(features, [(IMAGES, LABELS)])
    for function in (evaluate_paths, recalibrate_batch_norm):
        with pytest.raises(ValueError, match=r"Received: a Sequential$"):
            function(keras.Sequential(), [(IMAGES, LABELS)])
        for paths in ("widest", 3):
            with pytest.raises(ValueError, match=f"`paths` must be a list .*: paths={paths!r}"):
                function(network, [(IMAGES, LABELS)], paths=paths)


def test_recalibration_takes_data_of_unknown_length_and_shows_what_is_done(monkeypatch):
    network, other = gate_network(), gate_network()
    shown, done = [], []

    class Bar(tqdm.tqdm):
        def update(self, n=1):
            shown.append((self.total, self.n + n, len(done)))
            super().update(n)

    monkeypatch.setattr(tqdm, "tqdm", Bar)

    def generate():
        for start in (0, 16, 32):
            yield IMAGES[start : start + 16]
        done.append("closed")

    assert recalibrate_batch_norm(network, generate, paths=[0]) == 3
    images = tf.data.Dataset.from_tensor_slices(IMAGES[:48]).batch(16)
    assert recalibrate_batch_norm(other, images, paths=[0]) == 3
    for variable, expected in zip(network.variables, other.variables):
        np.testing.assert_allclose(variable, expected, rtol=1e-5)
    assert shown[3] == (None, 3, 1), "the last batch counts when everything is done"
    assert [n for _, n, _ in shown] == [0, 1, 2, 3] * 2
    assert {total for total, *_ in shown[4:]} == {3}
    assert recalibrate_batch_norm(network, generate, paths=[0], steps=2, verbose=False) == 2


# A user's case: the routes were chosen for other classes, and another width is much better.
ROWS = [
    {"path": 0, "madds": 10, "top1": 0.50},
    {"path": 1, "madds": 20, "top1": 0.55},
    {"path": 2, "madds": 30, "top1": 0.56},
    {"path": 3, "madds": 40, "top1": 0.66},
    {"path": "dynamic", "madds": 15.0, "top1": 0.53, "shares": [{0: 1.0}, {0: 0.5, 1: 0.5}]},
]


def better(routes, images=None):
    return [
        (row["path"], widest["path"])
        for row, widest in better_excluded_widths(ROWS, routes, images)
    ]


def test_gates_are_numbered_from_1_as_in_the_plots():
    lines = describe_gates(ROWS).splitlines()
    assert lines[0].startswith("gate 1 collapsed")
    assert lines[1].startswith("gate 2 uses 2 widths")


def test_a_width_outside_the_routes_is_better_by_more_than_chance():
    assert better((0, 1)) == [(3, 1), (2, 1)]
    assert better((0, 1), images=1000) == [(3, 1)]
    assert better((0, 1), images=20) == []
    assert better((0, 3)) == []


def test_a_width_outside_the_routes_that_is_as_good_at_fewer_madds_is_better():
    rows = [{"path": 0, "madds": 10, "top1": 0.7}, {"path": 1, "madds": 20, "top1": 0.7}]
    assert better_excluded_widths(rows, (1,), 100) == [(rows[0], rows[1])]
    assert better_excluded_widths(rows, (0,), 100) == []


def test_paths_of_several_gates_and_missing_routes_are_left_out():
    rows = [{"path": (0, 1), "madds": 10, "top1": 0.9}, {"path": 0, "madds": 10, "top1": 0.5}]
    assert better_excluded_widths(rows, (0,)) == []
    assert better_excluded_widths(rows, (0, 5)) == []
