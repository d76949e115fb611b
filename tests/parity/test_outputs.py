"""Logits, features, gates and MAdds against those of the authors' code."""

import dataclasses

import numpy as np
import pytest

from keras_dsnet.models.executors import SlicedExecutor

LARGEST = 14


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 64])
def test_logits_of_every_path(tiny_network, shared_numbers, to_images, size):
    io, model = shared_numbers("tiny_io"), tiny_network
    images = to_images(io[f"img{size}"])
    for width, expected in enumerate(io[f"logits{size}_uniform"]):
        np.testing.assert_allclose(model(images, path=width), expected, atol=1e-3)
    for path in ("largest", "slimmest"):
        expected = io[f"logits{size}_{'smallest' if path == 'slimmest' else path}"]
        np.testing.assert_allclose(model(images, path=path), expected, atol=1e-3)


@pytest.mark.slow
def test_logits_of_the_moving_average(new_tiny_network, shared_numbers, to_images):
    io, model = shared_numbers("tiny_io"), new_tiny_network(32, ema=True)
    images = to_images(io["img32"])
    for width, expected in enumerate(io["ema_logits32_uniform"]):
        np.testing.assert_allclose(model(images, path=width), expected, atol=1e-3)
    np.testing.assert_allclose(model(images, path="largest"), io["ema_logits32_largest"], atol=1e-3)
    np.testing.assert_array_equal(model.route(images)[:, 0], io["ema_gate32_index"])
    np.testing.assert_allclose(model(images), io["ema_dynamic32_logits"], atol=1e-3)


# The authors' names of features, and the step of this network whose output they are.
FEATURES = {
    "stem": "stem_norm",
    "stage0": "block_1_pointwise_norm",
    "stage1": "block_3_pointwise_norm",
    "stage2": "block_5_pointwise_norm",
    "gateblock_dw": "block_6_depthwise_norm",
    "gateblock_attn_out": "block_6_gate",
    "stage3": "block_11_pointwise_norm",
    "stage4": "block_13_pointwise_norm",
}


@pytest.mark.parametrize(("tag", "path"), [("u00", 0), ("u13", 13), ("largest", "largest")])
def test_features_of_every_stage(tiny_network, shared_numbers, to_images, tag, path):
    io, model = shared_numbers("tiny_io"), tiny_network
    x = to_images(io["img32"][:1])
    executor, outputs = SlicedExecutor(model.resolve_path(path)), {}
    for step in (step for steps in model.sections for step in steps):
        x = executor.run([step], x)
        outputs[step.layer.name if step.layer else step.kind] = x
    for theirs, ours in {**FEATURES, "pool": "pool"}.items():
        expected = io[f"feat_{tag}_{theirs}"]
        expected = expected[..., 0, 0] if ours == "pool" else np.moveaxis(expected, 1, -1)
        np.testing.assert_allclose(outputs[ours], expected, atol=1e-3, err_msg=theirs)


@pytest.mark.parametrize("size", [32, 64])
def test_gates_and_dynamic_logits(tiny_network, shared_numbers, to_images, size):
    io, model = shared_numbers("tiny_io"), tiny_network
    images = to_images(io[f"img{size}"])
    executor = SlicedExecutor(model.resolve_path(0))
    executor.run(model.sections[0], images)
    (scores,) = executor.scores
    np.testing.assert_allclose(scores[:, :4], io[f"gate{size}_logits"], atol=1e-3)
    assert model.routes == (0, 1, 2, 3)
    assert model.gates_trained
    np.testing.assert_array_equal(model.route(images)[:, 0], io[f"gate{size}_index"])
    np.testing.assert_allclose(model(images), io[f"dynamic{size}_logits"], atol=1e-3)


def test_the_dynamic_logits_are_those_of_the_chosen_widths(tiny_network, shared_numbers, to_images):
    io, model = shared_numbers("tiny_io"), tiny_network
    chosen = io["logits32_uniform"][io["gate32_index"], np.arange(4)]
    np.testing.assert_allclose(model(to_images(io["img32"])), chosen, atol=1e-3)


def test_madds_are_exact(tiny_network, shared_numbers):
    expected, model = shared_numbers("tiny_io")["madds64"], tiny_network
    shape = (64, 64, 3)
    assert [model.madds(width, shape) for width in range(14)] == expected[:LARGEST].tolist()
    assert model.madds("largest", shape) == expected[LARGEST]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "least"),
    [
        ({"attention": "tanh"}, 0.1),
        ({"activation": "relu"}, 0.1),
    ],
)
def test_another_network_is_told_apart(new_tiny_network, shared_numbers, to_images, change, least):
    """The tolerance is far below what a mistake does."""
    io, model = shared_numbers("tiny_io"), new_tiny_network(32)
    config = model.get_config()
    config["spec"] = {
        "family": "MobileNetSpec",
        **dataclasses.asdict(dataclasses.replace(model.spec, **change)),
    }
    other = type(model).from_config(config)
    other.set_weights(model.get_weights())
    difference = other(to_images(io["img32"]), path=0) - io["logits32_uniform"][0]
    assert np.max(np.abs(difference)) > least
