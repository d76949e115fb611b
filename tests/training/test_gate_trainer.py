"""Stage II: the variables that it trains, and its losses against their equations."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from trainers import gate_batch, gate_network

from keras_dsnet.models import (
    DynamicSlimmableNetwork,
    with_dtype,
)
from keras_dsnet.training import (
    GateTrainer,
    describe_gates,
    evaluate_paths,
    exponential_schedule,
    static_gain,
)
from keras_dsnet.training.losses import gate_cross_entropy

ROUTES = (0, 2, 3)


def make_trainer(network=None, learning_rate=0.1, eagerly=True, **options):
    """Runs eagerly by default, because a trace takes longer than a few steps."""
    trainer = GateTrainer(network or gate_network(), **{"routes": ROUTES, **options})
    trainer.compile(keras.optimizers.SGD(learning_rate, momentum=0.9), run_eagerly=eagerly)
    return trainer


def right(network, images, labels, path):
    return np.argmax(network(images, path=path), axis=1) == labels.numpy()


def chosen_of(results):
    return np.array(ROUTES)[np.argmax(results["choices"][0], axis=1)]


def test_the_rate_of_the_log_is_the_rate_of_the_step():
    images, labels = gate_batch(8)
    trainer = GateTrainer(gate_network(), routes=ROUTES)
    trainer.compile(keras.optimizers.SGD(exponential_schedule(0.05, 2)), run_eagerly=True)
    rates = [
        float(trainer.train_on_batch(images, labels, return_dict=True)["learning_rate"])
        for _ in range(3)
    ]
    assert rates == pytest.approx([0.05, 0.05, 0.045])


def test_a_network_of_open_image_size_counts_the_images_it_is_told():
    fixed = gate_network()
    config = {**fixed.get_config(), "input_shape": (None, None, 3)}
    network = DynamicSlimmableNetwork.from_config(config)
    network.set_weights(fixed.get_weights())
    with pytest.raises(ValueError, match=r"pass `input_shape=\(height, width, 3\)`"):
        make_trainer(network)
    images, labels = gate_batch(8)
    trainer = make_trainer(network, input_shape=(16, 16, 3))
    expected = make_trainer(fixed)
    logs, same = (
        each.test_on_batch(images, labels, return_dict=True) for each in (trainer, expected)
    )
    assert logs["madds"] == same["madds"]
    assert GateTrainer.from_config(trainer.get_config()).get_config()["input_shape"] == (16, 16, 3)


@pytest.mark.parametrize("options", [{}, {"share_encoder": False}, {"slimming_head": "scalar"}])
def test_only_the_slimming_head_moves(options):
    network = gate_network(**options)
    images, labels = gate_batch()
    trainer = make_trainer(network)
    before = {v.path: v.numpy().copy() for v in network.variables}
    for _ in range(3):
        trainer.train_on_batch(images, labels)
    moved = {v.path for v in network.variables if not np.array_equal(v, before[v.path])}
    assert moved == {v.path for v in trainer.optimized_variables}
    assert {path.split("/")[-1] for path in moved} <= {"w2", "w1_slimming", "b1_slimming"}


def test_losses_are_those_of_the_equations():
    network = gate_network()
    images, labels = gate_batch()
    trainer = make_trainer(network, loss_weights=(1, 0.5, 1))
    losses, results = trainer.losses(images, labels)
    chosen = chosen_of(results)
    assert len(set(chosen)) > 1
    logits = np.stack([network(images[i : i + 1], path=int(k))[0] for i, k in enumerate(chosen)])
    log_softmax = tf.nn.log_softmax(logits).numpy()
    classification = -log_softmax[np.arange(40), labels].mean()
    ratios = np.array([network.madds(int(k)) for k in chosen]) / network.madds("widest")
    scores = network.run_section(0, None, (0, 0), images)[1].numpy()[:, list(ROUTES)]
    targets = np.where(right(network, images, labels, 0), 0, 2)
    sgs = -tf.nn.log_softmax(scores).numpy()[np.arange(40), targets].mean()
    np.testing.assert_allclose(losses["classification_loss"], classification, rtol=1e-4)
    np.testing.assert_allclose(losses["complexity_loss"], np.mean(ratios**2), rtol=1e-5)
    np.testing.assert_allclose(losses["sgs_loss"], sgs, rtol=1e-5)
    expected = classification + 0.5 * np.mean(ratios**2) + sgs
    np.testing.assert_allclose(losses["loss"], expected, rtol=1e-4)


def test_a_perfect_gate_scores_zero():
    network = gate_network()
    trainer = make_trainer(network)
    images, labels = gate_batch()
    easy = right(network, images, labels, 0)
    (gate,) = network.slimming_gates
    scores = np.zeros((40, 4), "float32")
    scores[np.arange(40), np.where(easy, 0, 3)] = 50.0
    assert float(gate_cross_entropy(gate, tf.constant(scores), trainer.routes, ~easy)) < 1e-6


@pytest.mark.parametrize("strategy", ["try_best", "give_up"])
def test_soft_targets_are_how_sure_the_slimmest_route_is(strategy):
    network = gate_network()
    images, labels = gate_batch()
    trainer = make_trainer(network, strategy=strategy, soft_targets=True)
    losses, results = trainer.losses(images, labels)
    doubt = 1 - tf.nn.softmax(network(images, path=0)).numpy().max(axis=1)
    if strategy == "give_up":
        doubt *= right(network, images, labels, 3)
    scores = network.run_section(0, None, (0, 0), images)[1].numpy()[:, list(ROUTES)]
    logs = tf.nn.log_softmax(scores).numpy()
    expected = -((1 - doubt) * logs[:, 0] + doubt * logs[:, -1])
    np.testing.assert_allclose(losses["sgs_loss"], expected.mean(), rtol=1e-5)
    np.testing.assert_array_equal(results["easy"], right(network, images, labels, 0))
    hard = make_trainer(network, strategy=strategy).losses(images, labels)
    np.testing.assert_array_equal(results["gate_right"], hard[1]["gate_right"])
    assert abs(float(losses["sgs_loss"] - hard[0]["sgs_loss"])) > 1e-3


def test_soft_targets_of_a_scalar_head_are_its_sigmoid():
    network = gate_network(slimming_head="scalar")
    images, labels = gate_batch()
    losses, _ = make_trainer(network, soft_targets=True).losses(images, labels)
    doubt = 1 - tf.nn.softmax(network(images, path=0)).numpy().max(axis=1)
    scores = network.run_section(0, None, (0, 0), images)[1].numpy()[:, 0]
    p = 1 / (1 + np.exp(-scores))
    expected = -(doubt * np.log(p) + (1 - doubt) * np.log(1 - p))
    np.testing.assert_allclose(losses["sgs_loss"], expected.mean(), rtol=1e-4)


def test_reported_madds_are_the_mean_of_the_chosen_paths_exactly():
    network = gate_network()
    images, labels = gate_batch()
    trainer = make_trainer(network)
    _, results = trainer.losses(images, labels)
    expected = np.mean([network.madds(int(k)) for k in chosen_of(results)], dtype="float64")
    logs = trainer.test_on_batch(images, labels, return_dict=True)
    np.testing.assert_allclose(float(logs["madds"]), expected, rtol=1e-9)


def test_try_best_sends_hard_images_wide_and_give_up_sends_them_slim():
    network = gate_network()
    images, labels = gate_batch()
    easy = right(network, images, labels, ROUTES[0])
    solvable = right(network, images, labels, ROUTES[-1])
    assert np.any(~easy & ~solvable)
    for strategy, wide in (("try_best", ~easy), ("give_up", ~easy & solvable)):
        trainer = make_trainer(network, strategy=strategy)
        run = {"route_logits": lambda width: network(images, path=width)}
        _, target, _ = trainer._targets(run, labels)
        np.testing.assert_array_equal(target, wide)


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_any_loss_alone_trains_the_gate(kept):
    images, labels = gate_batch()
    trainer = make_trainer(loss_weights=[float(i == kept) for i in range(3)])
    before = [v.numpy().copy() for v in trainer.optimized_variables]
    trainer.train_on_batch(images, labels)
    assert any(np.abs(v - b).max() > 0 for v, b in zip(trainer.optimized_variables, before))


def test_complexity_loss_alone_ends_at_the_slimmest_route():
    images, labels = gate_batch()
    network = gate_network()
    trainer = make_trainer(network, 10.0, eagerly=False, loss_weights=(0, 1, 0))
    dataset = tf.data.Dataset.from_tensors((images, labels)).repeat()
    trainer.fit(dataset, steps_per_epoch=150, epochs=1, shuffle=False, verbose=0)
    network.gates_trained = True
    assert np.mean(network.route(images).numpy() == ROUTES[0]) > 0.95


def test_sgs_loss_learns_to_tell_easy_images_it_can_tell():
    network = gate_network()
    images, _ = gate_batch()
    # Labels that make the bright half of the images easy.
    images = images + np.repeat([1.5, -1.5], 20)[:, None, None, None].astype("float32")
    slim = np.argmax(network(images, path=0), axis=1)
    labels = tf.constant(np.where(np.arange(40) < 20, slim, (slim + 1) % 4), tf.int32)
    trainer = make_trainer(network, 0.5, eagerly=False, loss_weights=(0, 0, 1))
    dataset = tf.data.Dataset.from_tensors((images, labels)).repeat()
    trainer.fit(dataset, steps_per_epoch=150, epochs=1, shuffle=False, verbose=0)
    network.gates_trained = True
    chosen = network.route(images).numpy()[:, 0]
    assert np.mean(chosen[:20] == ROUTES[0]) > 0.75
    assert np.mean(chosen[20:] == ROUTES[-1]) > 0.75


def test_routes_are_given_to_the_model():
    network = gate_network()
    make_trainer(network)
    assert network.routes == ROUTES


def test_noise_is_a_function_of_the_seed():
    network = gate_network()
    images, labels = gate_batch()
    trainer = make_trainer(network)
    draws = [trainer.losses(images, labels, tf.constant([s, 5]))[1] for s in (0, 0, 1)]
    first, same, other = (chosen_of(draw) for draw in draws)
    np.testing.assert_array_equal(first, same)
    assert np.any(first != other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "best"}, "'best'"),
        ({"loss_weights": (0, 0, 0)}, "not all 0"),
        ({"loss_weights": (1, -1, 0)}, "0 or more"),
        ({"routes": (0, 4)}, r"\(0, 4\)"),
        ({"routes": (2, 1)}, r"\(2, 1\)"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        GateTrainer(gate_network(), **options)


def test_a_collapsed_gate_is_reported_in_words():
    images, labels = gate_batch()
    network = gate_network()
    network.gates_trained = True
    network.routes = (1,)
    rows = evaluate_paths(network, [(images, labels)], paths=[0])
    assert "collapsed: 100.0% of the images take width 1" in describe_gates(rows)
    network.routes = (0, 1, 2, 3)
    rows = evaluate_paths(network, [(images, labels)], paths=[0])
    assert "collapsed" not in describe_gates(rows)


@pytest.mark.parametrize("options", [{}, {"share_encoder": False}, {"slimming_head": "scalar"}])
def test_the_exact_estimator_is_the_expectation_over_the_routes(options):
    network = gate_network(**options)
    images, labels = gate_batch()
    trainer = make_trainer(network, estimator="exact", temperature=2.0)
    (gate,) = network.slimming_gates
    variables = [variable.value for variable in trainer.optimized_variables]
    logits = [network(images, path=width) for width in ROUTES]
    entropies = np.stack(
        [tf.nn.sparse_softmax_cross_entropy_with_logits(labels, rows) for rows in logits], 1
    )
    costs = np.array([network.madds(width) / network.madds("widest") for width in ROUTES])
    costs = tf.constant(costs**2, "float32")
    with tf.GradientTape(persistent=True) as tape:
        losses, results = trainer.losses(images, labels, noise_seed=[0, 1])
        scores = network.run_section(0, None, (0, 0), images)[1]
        soft = gate.soft_choice(scores, ROUTES, 2.0)
        expected = {
            "classification_loss": tf.reduce_mean(tf.reduce_sum(soft * entropies, 1)),
            "complexity_loss": tf.reduce_mean(tf.linalg.matvec(soft, costs)),
        }
    np.testing.assert_allclose(tf.reduce_sum(soft, 1), 1, rtol=1e-5)
    for name, loss in expected.items():
        np.testing.assert_allclose(losses[name], loss, rtol=1e-4)
    chosen = network.slimming_gates[0].choose(scores, ROUTES).numpy()
    np.testing.assert_array_equal(chosen_of(results), chosen)
    rights = [right(network, images, labels, width) for width in range(4)]
    np.testing.assert_array_equal(results["right"], np.choose(chosen, rights))
    assert all(tape.gradient(losses["classification_loss"], v) is not None for v in variables)


@pytest.mark.slow
def test_the_exact_estimator_follows_what_a_route_is_worth():
    """The gradient of a gate at either end points to the route with the smaller loss."""
    network = gate_network()
    images, labels = gate_batch()
    routes = (0, 3)
    entropies = [
        float(
            np.mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, network(images, path=w)))
        )
        for w in routes
    ]
    better = int(np.argmin(entropies))
    (gate,) = network.slimming_gates
    for start in routes:
        head = np.zeros(gate.w2.shape, "float32")
        head[:, start] = 0.1
        gate.w2.assign(head)
        options = {"routes": routes, "estimator": "exact", "loss_weights": (1, 0, 0)}
        trainer = make_trainer(network, 3.0, eagerly=False, **options)
        for _ in range(150):
            trainer.train_on_batch(images, labels)
        assert trainer.losses(images, labels)[0]["classification_loss"] < np.mean(entropies)
        shares = np.mean(trainer.losses(images, labels)[1]["choices"][0], axis=0)
        assert shares[better] >= 0.5


def test_estimators_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="'guess'"):
        make_trainer(estimator="guess")


def test_the_gain_is_over_the_line_between_neighbouring_static_paths():
    rows = [
        {"path": 0, "madds": 10, "top1": 0.5},
        {"path": 1, "madds": 20, "top1": 0.7},
        {"path": 2, "madds": 40, "top1": 0.8},
        {"path": "dynamic", "madds": 25.0, "top1": 0.75, "shares": [{0: 0.4, 2: 0.6}]},
    ]
    assert static_gain(rows) == pytest.approx(0.025)
    assert describe_gates(rows).splitlines() == [
        "gate 1 uses 2 widths, width 2 for 60.0% of the images",
        "top-1 is 2.50% above the line between the static widths at the same 0.00M MAdds",
    ]
    assert static_gain([rows[2], rows[3]]) is None
    # A path with a wider front does not belong to that line.
    assert static_gain([*rows, {"path": "largest", "madds": 30, "top1": 0.9}]) == static_gain(rows)


def test_a_network_of_float64_trains_as_one_of_float32_does():
    network, (images, labels) = gate_network(), gate_batch()
    losses = [
        GateTrainer(model).losses(tf.cast(images, model.dtype), labels)[0]["loss"]
        for model in (network, with_dtype(network, "float64"))
    ]
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-4)
