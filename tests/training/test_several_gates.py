"""Both stages of training on a network of several gates without batch norm."""

import dataclasses
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny_families import TINY_RESNET, tiny_images, tiny_network

from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, MobileNetStage
from keras_dsnet.models.executors import MaskedExecutor
from keras_dsnet.training import (
    L2SGD,
    GateTrainer,
    SupernetTrainer,
    evaluate_paths,
    recalibrate_batch_norm,
)

ROUTES = (0, 1, 2)
IMAGES = tf.constant(tiny_images())
LABELS = tf.constant(np.random.default_rng(2).integers(0, 5, len(IMAGES)), tf.int32)


@pytest.fixture(scope="module")
def network():
    """A network that no test trains."""
    return tiny_network(TINY_RESNET)


@pytest.fixture
def gate_trainer(network):
    trainer = GateTrainer(network, routes=ROUTES)
    trainer.compile(keras.optimizers.SGD(0.1))
    return trainer


def test_random_paths_draw_every_width_at_every_gate(network):
    trainer = SupernetTrainer(network, num_random=200)
    trainer.compile(L2SGD(0.1))
    widths = trainer.draw_widths().numpy()
    assert widths.shape == (200, 3)
    for gate in range(3):
        assert set(widths[:, gate]) == {0, 1, 2}
    pairs = {pair for row in widths.tolist() for pair in itertools.pairwise(row)}
    assert len(pairs) == 9, "steps up and down between any two widths are trained"


@pytest.mark.slow
def test_a_step_of_stage_1_has_the_gradients_of_the_papers_equations():
    network = tiny_network(TINY_RESNET)
    middle = (0, 2, 1)
    variables = [v for v in network.trainable_variables if v.name != "w2"]
    teach = [tf.nn.softmax(network(IMAGES, path=path)) for path in ("widest", middle)]
    with tf.GradientTape() as tape:
        losses = [
            tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(target, logits))
            for target, logits in (
                (tf.one_hot(LABELS, 5), network(IMAGES, path="widest", training=True)),
                (teach[0], network(IMAGES, path=middle, training=True)),
                (sum(teach) / 2, network(IMAGES, path="slimmest", training=True)),
            )
        ]
        total = tf.add_n(losses)
    expected = tape.gradient(total, [v.value for v in variables], unconnected_gradients="zero")
    trainer = SupernetTrainer(network, num_random=1)
    trainer.compile(L2SGD(0.1, weight_decay=0.0))
    got, _, gradients = trainer._gradients(
        IMAGES, LABELS, trainer._subnetworks(tf.constant([middle]))
    )
    np.testing.assert_allclose(got, losses, rtol=1e-4)
    by_path = dict(zip([v.path for v in trainer.optimized_variables], gradients))
    assert sorted(by_path) == sorted(v.path for v in variables)
    for variable, gradient in zip(variables, expected):
        scale = np.abs(gradient).max() + 1e-6
        name = variable.path
        np.testing.assert_allclose(by_path[name], gradient, atol=1e-3 * scale, err_msg=name)


@pytest.mark.long
def test_stage_1_lowers_every_loss_and_leaves_the_slimming_heads():
    network = tiny_network(dataclasses.replace(TINY_RESNET, stages=TINY_RESNET.stages[1:]))
    heads = [gate.w2.numpy() for gate in network.slimming_gates]
    trainer = SupernetTrainer(network, num_random=1)
    trainer.compile(L2SGD(0.05))
    dataset = tf.data.Dataset.from_tensors((IMAGES, LABELS)).repeat()
    fitted = trainer.fit(dataset, epochs=2, steps_per_epoch=15, shuffle=False, verbose=0)
    for name in ("widest_loss", "slimmest_loss", "random_loss"):
        assert fitted.history[name][1] < fitted.history[name][0], name
    for gate, head in zip(network.slimming_gates, heads):
        np.testing.assert_array_equal(gate.w2, head)
    assert recalibrate_batch_norm(network, None) == 0, "there is no batch norm to recalibrate"


def test_every_loss_of_stage_2_reaches_every_gate(network, gate_trainer):
    with tf.GradientTape(persistent=True) as tape:
        losses, _ = gate_trainer.losses(IMAGES, LABELS, tf.constant([0, 1]))
    for name, loss in losses.items():
        for gate in network.slimming_gates:
            gradient = tape.gradient(loss, gate.w2.value)
            assert np.abs(gradient).max() > 1e-6, (name, gate.name)


def test_expected_madds_of_soft_choices_are_the_sum_over_all_paths(network, gate_trainer):
    """A product of neighbouring choices equals the sum over 27 paths with their probabilities."""
    generator = np.random.default_rng(3)
    choices = generator.dirichlet(np.ones(3), size=(3, 4)).astype("float32")
    expected = np.zeros(4)
    for path in itertools.product(ROUTES, repeat=3):
        probability = np.prod([choices[gate, :, width] for gate, width in enumerate(path)], axis=0)
        expected += probability * network.madds(path)
    relative = gate_trainer.choice_madds.relative(list(map(tf.constant, choices)))
    np.testing.assert_allclose(relative, expected / network.madds("widest"), rtol=1e-5)


@pytest.mark.slow
def test_losses_and_reports_are_those_of_the_chosen_paths(network, gate_trainer):
    losses, results = gate_trainer.losses(IMAGES, LABELS)
    chosen = np.argmax(results["choices"], axis=2).T
    np.testing.assert_array_equal(chosen, network.route(IMAGES))
    assert len({tuple(path) for path in chosen}) >= 3
    madds = np.array([network.madds(tuple(map(int, path))) for path in chosen])
    relative = madds / network.madds("widest")
    np.testing.assert_allclose(losses["complexity_loss"], np.mean(relative**2), rtol=1e-5)
    entropies = tf.nn.sparse_softmax_cross_entropy_with_logits(LABELS, network(IMAGES))
    np.testing.assert_allclose(losses["classification_loss"], np.mean(entropies), rtol=1e-4)
    logs = gate_trainer.test_on_batch(IMAGES, LABELS, return_dict=True)
    np.testing.assert_allclose(logs["madds"], madds.mean(), rtol=1e-9)
    for gate, width in itertools.product(range(3), ROUTES):
        share = np.mean(chosen[:, gate] == width)
        np.testing.assert_allclose(logs[f"share_{gate}_{width}"], share, rtol=1e-5)


def test_a_step_of_stage_2_moves_all_slimming_heads_and_nothing_else():
    network = tiny_network(TINY_RESNET)
    trainer = GateTrainer(network, routes=ROUTES)
    trainer.compile(keras.optimizers.SGD(0.1))
    before = {v.path: v.numpy() for v in network.variables}
    trainer.train_step((IMAGES, LABELS))
    moved = {v.path for v in network.variables if not np.array_equal(v, before[v.path])}
    assert moved == {gate.w2.path for gate in network.slimming_gates}


def brute_force(network):
    """Returns the cross entropy and the relative MAdds of every image on each of 27 paths."""
    widest = network.madds("widest")
    losses = {}
    for path in itertools.product(ROUTES, repeat=3):
        logits = network(IMAGES, path=path)
        entropies = tf.nn.sparse_softmax_cross_entropy_with_logits(LABELS, logits).numpy()
        losses[path] = entropies, (network.madds(path) / widest) ** 2
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("seed", [None, (0, 5)], ids=["greedy", "sampled"])
def test_exact_gradients_of_one_gate_at_a_time_are_those_of_brute_force(network, seed):
    trainer = GateTrainer(network, ROUTES, estimator="exact", loss_weights=(1, 0.5, 0))
    noise = None if seed is None else tf.constant(seed)
    heads = [gate.w2.value for gate in network.slimming_gates]
    with tf.GradientTape() as tape:
        losses, results = trainer.losses(IMAGES, LABELS, noise)
    gradients = tape.gradient(losses["loss"], heads)
    chosen = np.argmax(results["choices"], axis=2)
    assert (np.array_equal(chosen.T, network.route(IMAGES))) == (seed is None)
    known = brute_force(network)
    expected = np.zeros(3)
    one_hot = [tf.one_hot(choice, 3) for choice in chosen]
    for gate in range(3):
        table = np.zeros((len(IMAGES), 3))
        for image, width in itertools.product(range(len(IMAGES)), ROUTES):
            path = [*chosen[:gate, image], width, *chosen[gate + 1 :, image]]
            entropies, cost = known[tuple(map(int, path))]
            table[image, width] = entropies[image] + 0.5 * cost
        with tf.GradientTape() as tape:
            masked = MaskedExecutor(network, ROUTES, lambda gate, scores, index: one_hot[index])
            network.run_sections(IMAGES, None, executor=masked)
            soft = tf.nn.softmax(masked.scores[gate])
            expectation = tf.reduce_mean(tf.reduce_sum(soft * table.astype("float32"), axis=1))
        expected[gate] = expectation
        gradient = tape.gradient(expectation, heads[gate])
        scale = np.abs(gradient).max()
        assert scale > 1e-4
        np.testing.assert_allclose(gradients[gate], gradient, atol=1e-3 * scale)
    np.testing.assert_allclose(losses["loss"], expected.mean(), rtol=1e-4)


def test_exact_gradients_of_several_gates_are_finite_differences():
    network = tiny_network(TINY_RESNET)
    trainer = GateTrainer(network, ROUTES, estimator="exact", loss_weights=(1, 0.5, 0))
    last = network.slimming_gates[-1].w2
    with tf.GradientTape() as tape:
        loss = trainer.losses(IMAGES, LABELS)[0]["loss"]
    gradient = tape.gradient(loss, last.value).numpy()
    place = np.unravel_index(np.argmax(np.abs(gradient)), gradient.shape)
    start, step, values = last.numpy(), 1e-2, []
    for sign in (1, -1):
        moved = start.copy()
        moved[place] += sign * step
        last.assign(moved)
        values.append(float(trainer.losses(IMAGES, LABELS)[0]["loss"]))
    # The last head moves one of three expectations, of which the loss is the mean.
    slope = 3 * (values[0] - values[1]) / (2 * step)
    np.testing.assert_allclose(gradient[place], slope, rtol=0.05)


def test_exact_gradients_move_all_slimming_heads_and_nothing_else():
    network = tiny_network(TINY_RESNET)
    trainer = GateTrainer(network, routes=ROUTES, estimator="exact")
    trainer.compile(keras.optimizers.SGD(0.1))
    before = {v.path: v.numpy() for v in network.variables}
    trainer.train_step((IMAGES, LABELS))
    moved = {v.path for v in network.variables if not np.array_equal(v, before[v.path])}
    assert moved == {gate.w2.path for gate in network.slimming_gates}


def test_the_gradient_of_a_width_is_what_more_channels_would_change(network):
    """Groups do not mix, so the mask of a slim stage has the gradient of its other channels."""
    share = tf.Variable([0.0])

    def choose(gate, scores, index):
        if index < 2:
            return tf.one_hot([0] * len(IMAGES), 3)
        mix = tf.stack([1.0 - share, tf.zeros_like(share), share], axis=1)
        return tf.tile(mix, (len(IMAGES), 1))

    def mean_logit(share_value):
        share.assign([share_value])
        executor = MaskedExecutor(network, ROUTES, choose)
        return tf.reduce_mean(network.run_sections(IMAGES, None, executor=executor)[:, 0])

    with tf.GradientTape() as tape:
        start = mean_logit(0.0)
    slope = float(tape.gradient(start, share)[0])
    step = 1e-3
    difference = float(mean_logit(step) - start) / step
    assert abs(slope) > 1e-3
    np.testing.assert_allclose(slope, difference, rtol=0.1)


def test_evaluation_gives_the_uniform_paths_and_a_share_for_every_gate(network):
    network.routes = ROUTES
    rows = evaluate_paths(network, [(IMAGES, LABELS)])
    routings = ["gate", "confidence", "gate+confidence"]
    assert [row["path"] for row in rows] == [0, 1, 2, *routings, "dynamic"]
    assert rows[0]["rho"] == pytest.approx(1 / 3)
    shares = rows[-1]["shares"]
    widths = network.route(IMAGES).numpy()
    assert len(shares) == 3
    for gate, share in enumerate(shares):
        assert sum(share.values()) == pytest.approx(1)
        assert share == {int(w): np.mean(widths[:, gate] == w) for w in np.unique(widths[:, gate])}
    (row,) = evaluate_paths(network, [(IMAGES, LABELS)], paths=[(0, 2, 1)], dynamic=False)
    assert row["madds"] == network.madds((0, 2, 1))


@pytest.mark.parametrize(
    ("gates", "paths", "same"),
    [
        (1, [(2,), (2,)], [(2,)]),
        # Behind the first gate both paths see the same features up to the second one.
        (2, [(1, 0), (1, 2)], [(1, 0)]),
    ],
)
def test_a_section_that_paths_share_is_recalibrated_once(gates, paths, same):
    generator = np.random.default_rng(0)
    batches = [generator.normal(scale=s, size=(8, 16, 16, 3)).astype("float32") for s in (1, 2, 4)]

    def means(paths):
        keras.utils.set_random_seed(0)
        gated = [MobileNetStage(1, 2, (4, 6, 8), gated=True)] * gates
        spec = MobileNetSpec(stem=(4, 6), stages=(MobileNetStage(1, 2, (4, 6)), *gated))
        network = DynamicSlimmableNetwork(spec, input_shape=(16, 16, 3), classes=5)
        recalibrate_batch_norm(network, batches, paths, verbose=False)
        tables = {v.path: v.numpy() for v in network.variables if "moving_mean" in v.path}
        # Those before the gate have a row for the trunk and one for its maximum.
        return {path: table[paths[0][0]] for path, table in tables.items() if len(table) > 2}

    together, alone = means(paths), means(same)
    # The rows of the first path, but not those that the last section has for the second one.
    assert together.keys() == alone.keys()
    moved = [path for path in alone if np.abs(alone[path]).max() > 0]
    assert moved
    for path in moved:
        np.testing.assert_allclose(together[path], alone[path], atol=1e-6, err_msg=path)


def test_statistics_that_different_features_share_are_the_mean_over_all():
    images = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype("float32")

    def last_means(paths):
        keras.utils.set_random_seed(0)
        gated = [MobileNetStage(1, 2, (4, 6, 8), gated=True)] * 2
        spec = MobileNetSpec(stem=(4, 6), stages=(MobileNetStage(1, 2, (4, 6)), *gated))
        network = DynamicSlimmableNetwork(spec, input_shape=(16, 16, 3), classes=5)
        recalibrate_batch_norm(network, [images, 2 * images], paths, verbose=False)
        tables = [v.numpy() for v in network.variables if "moving_mean" in v.path]
        return tables[-1][1]

    both = last_means([(0, 1), (2, 1)])
    expected = (last_means([(0, 1)]) + last_means([(2, 1)])) / 2
    np.testing.assert_allclose(both, expected, atol=1e-6)
