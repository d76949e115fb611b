"""One stage-II step against the authors', and what is wrong in theirs."""

import numpy as np
import pytest
import tensorflow as tf

from keras_dsnet.training import L2SGD, GateTrainer

ROUTES = 4


@pytest.fixture(scope="module")
def step(shared_numbers):
    return shared_numbers("tiny_gate_step")


@pytest.fixture
def trainer(new_tiny_network):
    trainer = GateTrainer(new_tiny_network(64))
    trainer.compile()
    return trainer


@pytest.fixture
def batch(step, to_images):
    return tf.constant(to_images(step["img"])), tf.constant(step["label"], tf.int32)


def gradient(trainer, batch, weights):
    """Returns the gradient of the slimming head by a weighted sum of the losses."""
    variables = [variable.value for variable in trainer.optimized_variables]
    with tf.GradientTape() as tape:
        losses, _ = trainer.losses(*batch)
        loss = tf.add_n([losses[name] * weight for name, weight in weights.items()])
    return tape.gradient(loss, variables)[0][:, :ROUTES]


def scores_of(trainer, images):
    features = trainer.model.run_section(0, None, (0, 0), images)
    return features[1][:, :ROUTES]


def sgs_of_the_authors(trainer, batch, targets):
    """Their SGS loss, a cross entropy that takes softmax's output for logits; and its gradient."""
    (w2,) = trainer.optimized_variables
    with tf.GradientTape() as tape:
        tape.watch(w2.value)
        soft = tf.nn.softmax(scores_of(trainer, batch[0]))
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, soft)
        loss = tf.reduce_mean(losses)
    return loss, tape.gradient(loss, w2.value)[:, :ROUTES]


@pytest.mark.slow
def test_what_the_step_sees(trainer, step, batch):
    model = trainer.model
    np.testing.assert_allclose(model(batch[0], path=0), step["smallest_logits"], atol=1e-3)
    np.testing.assert_allclose(model(batch[0]), step["dynamic_logits"], atol=1e-3)
    soft = tf.nn.softmax(scores_of(trainer, batch[0]))
    np.testing.assert_allclose(soft, step["gate_soft"], atol=1e-4)
    losses, results = trainer.losses(*batch)
    np.testing.assert_allclose(losses["classification_loss"], step["ce_loss"], rtol=1e-5)
    np.testing.assert_array_equal(np.argmax(results["choices"][0], 1), step["gate_index"])
    np.testing.assert_array_equal(np.where(results["easy"], 0, ROUTES - 1), step["gate_target"])


def test_the_gradient_is_the_authors_but_for_their_sgs_loss(trainer, step, batch):
    """Their complexity loss is so small that its gradient is below the tolerance."""
    classification = gradient(trainer, batch, {"classification_loss": 1.0})
    _, sgs = sgs_of_the_authors(trainer, batch, step["gate_target"])
    expected = step["grad"][:, :, 0, 0].T
    tolerance = 1e-4 * np.max(np.abs(expected))
    np.testing.assert_allclose(classification + sgs, expected, atol=tolerance)
    assert np.max(np.abs(classification - expected)) > 100 * tolerance


def test_the_optimizer_moves_the_head_as_theirs(step):
    head = tf.Variable(step["w2_before"])
    optimizer = L2SGD(
        float(step["lr"]), float(step["momentum"]), weight_decay=float(step["weight_decay"])
    )
    optimizer.build([head])
    optimizer.apply_gradients([(step["grad"], head)])
    np.testing.assert_allclose(head, step["w2_after"], atol=1e-6)


def test_first_fault_sgs_of_the_softmax_never_ends(trainer, step, batch):
    """A gate that is right and sure still pays 0.74 there, and nothing here."""
    loss, _ = sgs_of_the_authors(trainer, batch, step["gate_target"])
    np.testing.assert_allclose(loss, step["gate_loss"], rtol=1e-5)
    sure = 50.0 * tf.one_hot(step["gate_target"], ROUTES)
    soft = tf.nn.softmax(sure)
    target = tf.constant(step["gate_target"])
    theirs = tf.nn.sparse_softmax_cross_entropy_with_logits(target, soft)
    np.testing.assert_allclose(theirs, 0.7437, atol=1e-4)
    ours = tf.nn.sparse_softmax_cross_entropy_with_logits(target, sure)
    np.testing.assert_allclose(ours, 0.0, atol=1e-6)
    losses, _ = trainer.losses(*batch)
    scores = scores_of(trainer, batch[0])
    expected = tf.nn.sparse_softmax_cross_entropy_with_logits(target, scores)
    np.testing.assert_allclose(losses["sgs_loss"], tf.reduce_mean(expected), rtol=1e-5)


def test_second_fault_madds_of_depthwise_layers_are_too_many(trainer, step, batch):
    """Their count of the masked network exceeds that of the same static one; here it is equal."""
    _, results = trainer.losses(*batch)
    exact = trainer.choice_madds.exact(results["choices"])
    expected = [trainer.model.madds(int(width)) for width in step["gate_index"]]
    np.testing.assert_array_equal(exact, expected)
    surplus = step["madds_reported"].astype("float64") - expected
    assert np.all(surplus > 0)
    assert surplus[step["gate_index"] == 3].min() > 100 * surplus[step["gate_index"] == 0].max()
    np.testing.assert_allclose(
        step["flops_loss"], (np.mean(step["madds_reported"]) / 1e9) ** 2, rtol=1e-6
    )
