"""The network with early exits on the layers of a supernet's widest path."""

import keras
import numpy as np
import pytest
from keras_dsnet_recipes.lib.early_exit import (
    EarlyExitTrainer,
    build_early_exit,
    collect_exits,
    exit_rows,
    recalibrate_exits,
)

from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, MobileNetStage
from keras_dsnet.training import L2SGD

IMAGES = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype("float32")
LABELS = np.arange(8) % 4


@pytest.fixture(scope="module")
def network():
    stages = MobileNetStage(1, 2, (8, 12)), MobileNetStage(3, 2, (8, 12, 16), gated=True)
    spec = MobileNetSpec(stem=(8, 12), stages=stages)
    return DynamicSlimmableNetwork(
        spec, (32, 32, 3), classes=4, classifier_activation=None, name="small"
    )


@pytest.fixture
def built(network):
    return build_early_exit(network, (1, 2))


def test_last_exit_is_the_widest_path(network, built):
    model, _ = built
    logits = model(IMAGES)
    assert [x.shape for x in logits] == [(8, 4)] * 3
    np.testing.assert_allclose(logits[-1], network(IMAGES, path="widest"), atol=1e-4)


def test_madds_are_those_of_the_path_and_the_exits(network, built):
    _, madds = built
    exits = [_exit_madds(features, 4) for features in ((8, 8, 8), (4, 4, 16))]
    assert madds.sum() == network.madds("widest") + sum(exits)
    assert (madds > 0).all()


def _exit_madds(shape, classes):
    height, width, channels = shape
    places = -(-height // 2) * -(-width // 2)
    return places * (9 * channels + 2 * channels**2 + 2 * channels) + 2 * channels * classes


@pytest.mark.parametrize("exits", [(0,), (4,), (1, 9)])
def test_an_exit_after_no_block_is_refused(network, exits):
    with pytest.raises(
        ValueError, match=r"--exits must be blocks from 1 to 3\. Received: --exits="
    ):
        build_early_exit(network, exits)


@pytest.mark.slow
def test_all_exits_are_trained_saved_and_measured(built, tmp_path):
    model, madds = built
    trainer = EarlyExitTrainer(model)
    trainer.compile(L2SGD(0.05))
    before = [np.array(v) for v in trainer.optimized_variables]
    history = trainer.fit(IMAGES, LABELS, epochs=1, batch_size=4, verbose=0)
    assert {"exit_1_loss", "exit_2_accuracy", "last_loss"} <= set(history.history)
    for was, variable in zip(before, trainer.optimized_variables):
        # The hidden units of an attention head can all be zero.
        assert "_gate_" in variable.path or (was != np.array(variable)).any()
    batches = [(keras.ops.convert_to_tensor(IMAGES), keras.ops.convert_to_tensor(LABELS))]
    recalibrate_exits(model, batches, 1)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    results = collect_exits(loaded, batches, madds)
    rows = exit_rows(results, (1, 2))
    assert [row["path"] for row in rows] == ["exit_1", "exit_2", "last"]
    assert rows[-1]["madds"] == madds.sum()
    for exit, logits in enumerate(model(IMAGES)):
        right = np.argmax(logits, 1) == LABELS
        assert (results.correct[:, exit] == right).all()


def test_recalibrated_statistics_are_the_mean_over_the_batches(built):
    model, _ = built
    norm = model.get_layer("stem_norm")
    batches = [(keras.ops.convert_to_tensor(part), None) for part in np.split(IMAGES, 2)]
    recalibrate_exits(model, iter(batches), 2)
    convolved = keras.Model(model.inputs, model.get_layer("stem_conv").output)([IMAGES])
    np.testing.assert_allclose(norm.moving_mean, np.mean(convolved, (0, 1, 2)), atol=1e-5)
    assert norm.momentum == 0.9


def test_norms_biases_and_gates_do_not_decay(built):
    model, _ = built
    trainer = EarlyExitTrainer(model)
    trainer.compile(L2SGD(0.0, weight_decay=1.0))
    decaying = [v for v in trainer.optimized_variables if trainer.optimizer._use_weight_decay(v)]
    assert decaying
    assert all(v.name == "kernel" and "_gate_" not in v.path for v in decaying)
