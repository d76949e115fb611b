"""The gate's attention, its choices, and their gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_dsnet.layers import DoubleHeadedGate

IMAGES = np.random.default_rng(0).normal(size=(30, 4, 4, 24)).astype("float32")
ROUTES = (0, 2, 3)


def made(randomize=True, **options):
    gate = DoubleHeadedGate((8, 16, 24), num_choices=4, **options)
    gate.build((None, None, None, 24))
    generator = np.random.default_rng(1)
    for variable in gate.variables if randomize else []:
        variable.assign(generator.normal(size=variable.shape))
    return gate


def scalar(**options):
    return made(slimming_head="scalar", choice_ratios=(0.25, 0.5, 0.75, 1.0), **options)


def test_attention_starts_at_one():
    outputs, _ = made(randomize=False)(IMAGES, width=2)
    np.testing.assert_array_equal(outputs, IMAGES)


@pytest.mark.parametrize(
    ("attention", "function"),
    [("tanh", lambda x: 1 + np.tanh(x)), ("sigmoid", lambda x: 1 / (1 + np.exp(-x)))],
)
def test_heads_are_equations_8_and_9_at_a_narrow_width(attention, function):
    gate = made(attention=attention)
    images = IMAGES[..., :16]
    w1, b1, w3, b3, w2 = (getattr(gate, name).numpy() for name in ("w1", "b1", "w3", "b3", "w2"))
    hidden = np.maximum(images.mean((1, 2)) @ w1[:16] + b1, 0)
    expected = images * function(hidden @ w3[:, :16] + b3[:16])[:, None, None]
    outputs, scores = gate(images, width=1)
    np.testing.assert_allclose(outputs, expected, atol=1e-4)
    np.testing.assert_allclose(scores, hidden @ w2, atol=1e-4)


def test_choices_stay_within_the_routes():
    gate = made()
    scores = gate(IMAGES, width=2)[1].numpy()
    scores[:, 1] = 1e9
    chosen = gate.choose(tf.constant(scores), ROUTES).numpy()
    assert set(chosen) <= set(ROUTES)
    best = np.array(ROUTES)[np.argmax(scores[:, ROUTES], axis=1)]
    np.testing.assert_array_equal(chosen, best)


@pytest.mark.parametrize("make", [made, scalar])
def test_samples_are_one_hot_and_carry_a_gradient(make):
    gate = make()
    with tf.GradientTape() as tape:
        scores = gate(IMAGES, width=2)[1]
        choice = gate.sample(scores, ROUTES)
        loss = tf.reduce_sum(choice * [1.0, 2.0, 4.0])
    values = choice.numpy()
    np.testing.assert_allclose(np.sort(values, axis=1), [[0, 0, 1]] * 30, atol=1e-6)
    chosen = np.array(ROUTES)[np.argmax(values, axis=1)]
    np.testing.assert_array_equal(chosen, gate.choose(scores, ROUTES))
    assert np.abs(tape.gradient(loss, gate.w2.value)).max() > 0


def test_gumbel_noise_is_a_function_of_its_seed():
    gate = made()
    scores = tf.zeros((200, 4))
    first, same, other = (gate.sample(scores, ROUTES, seed=[s, 0]) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 0.9
    # Equal scores and noise: every route is drawn about as often.
    assert np.min(np.sum(first, axis=0)) > 40


def test_a_scalar_head_picks_the_nearest_ratio():
    gate = scalar()
    ratios = np.array([0.1, 0.6, 0.7, 0.88, 0.99])
    scores = np.log(ratios / (1 - ratios))[:, None].astype("float32")
    np.testing.assert_array_equal(gate.choose(scores, (0, 1, 2, 3)), [0, 1, 2, 3, 3])
    np.testing.assert_array_equal(gate.choose(scores, (0, 3)), [0, 0, 3, 3, 3])


def test_a_scalar_head_has_a_slope_between_its_routes_only():
    gate = made(slimming_head="scalar", choice_ratios=(0.35, 0.55, 0.7, 1.0))
    scores = tf.linspace(-6.0, 6.0, 400)[:, None]
    ratio = tf.sigmoid(scores)[:, 0].numpy()
    with tf.GradientTape() as tape:
        tape.watch(scores)
        soft = gate.soft_choice(scores, (1, 2), 1.0)
        cost = tf.reduce_sum(soft * [1.0, 3.0])
    slope = tape.gradient(cost, scores)[:, 0].numpy()
    inside = (ratio > 0.55) & (ratio < 0.7)
    np.testing.assert_array_equal(slope[~inside], 0)
    # The cost rises by 2 on the way from a ratio of 0.55 to 0.7.
    expected = 2 / 0.15 * ratio * (1 - ratio)
    np.testing.assert_allclose(slope[inside], expected[inside], rtol=1e-4)
    np.testing.assert_allclose(tf.reduce_sum(soft, axis=1), 1, atol=1e-6)


def test_w1_is_shared_or_not():
    shared, separate = made(), made(share_encoder=False)
    assert [v.name for v in shared.slimming_variables] == ["w2"]
    assert [v.name for v in separate.slimming_variables] == ["w1_slimming", "b1_slimming", "w2"]
    extra = separate.count_params() - shared.count_params()
    assert extra == 24 * 6 + 6


def test_without_choices_there_is_attention_alone():
    gate = DoubleHeadedGate((24,))
    outputs = gate(IMAGES)
    np.testing.assert_array_equal(outputs, IMAGES)
    assert gate.slimming_variables == []


@pytest.mark.parametrize(
    "options",
    [{"attention": "relu"}, {"slimming_head": "two_hot"}, {"slimming_head": "scalar"}],
)
def test_unknown_options_are_named(options):
    with pytest.raises(ValueError, match="Received"):
        made(**options)


def test_scores_are_float32_under_mixed_precision():
    gate = made(dtype="mixed_bfloat16")
    for images in (IMAGES, keras.Input(IMAGES.shape[1:])):
        outputs, scores = gate(images, width=2)
        assert outputs.dtype == "bfloat16"
        assert scores.dtype == "float32"


def test_pooled_inputs_of_float16_may_add_up_to_more_than_it_holds():
    images = tf.fill((1, 112, 112, 8), 20.0)
    expected = made()(images, width=0)[1].numpy()
    scores = made(dtype="mixed_float16")(images, width=0)[1]
    np.testing.assert_allclose(scores, expected, atol=0.01 * np.abs(expected).max())


def test_config_brings_back_the_gate():
    gate = scalar(share_encoder=False, attention="sigmoid")
    copy = DoubleHeadedGate.from_config(gate.get_config())
    copy.build((None, None, None, 24))
    copy.set_weights(gate.get_weights())
    for expected, got in zip(gate(IMAGES, width=2), copy(IMAGES, width=2)):
        np.testing.assert_array_equal(expected, got)


@pytest.mark.parametrize("share_encoder", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (7, 1)], ids="{0[0]}x{0[1]}".format)
def test_an_encoder_of_regions_adds_five_means(size, share_encoder):
    gate = made(encoder="regions", share_encoder=share_encoder)
    images = np.random.default_rng(2).normal(size=(3, *size, 16)).astype("float32")
    height, width = size
    halves = [
        (slice(0, (side + 1) // 2), slice(side // 2, side), slice(side // 4, side - side // 4))
        for side in (height, width)
    ]
    (top, bottom, middle), (left, right, centre) = halves
    parts = [(top, left), (top, right), (bottom, left), (bottom, right), (middle, centre)]
    names = ("w1", "b1") if share_encoder else ("w1_slimming", "b1_slimming")
    weights, bias = (getattr(gate, name).numpy() for name in names)
    code = images.mean((1, 2)) @ weights[:16] + bias
    for region, (rows, columns) in enumerate(parts):
        assert images[:, rows, columns].size
        mean = images[:, rows, columns].mean((1, 2))
        code = code + mean @ gate.w1_regions.numpy()[region, :16]
    expected = np.maximum(code, 0) @ gate.w2.numpy()
    outputs, scores = gate(images, width=1)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
    attended = made(share_encoder=share_encoder)
    for name in ("w1", "b1", "w3", "b3"):
        getattr(attended, name).assign(getattr(gate, name))
    np.testing.assert_allclose(outputs, attended(images, width=1)[0], rtol=1e-5)
    traced = tf.function(lambda x: gate(x, width=1)[1])
    open_size = tf.TensorSpec((None, None, None, 16))
    np.testing.assert_allclose(traced.get_concrete_function(open_size)(images), scores, atol=1e-4)


def test_an_encoder_of_regions_starts_as_the_global_one():
    gate = made(randomize=False, encoder="regions")
    assert [v.name for v in gate.slimming_variables] == ["w2", "w1_regions"]
    hidden = np.maximum(IMAGES.mean((1, 2)) @ gate.w1.numpy(), 0)
    np.testing.assert_allclose(gate(IMAGES, width=2)[1], hidden @ gate.w2.numpy(), atol=1e-4)
    clone = DoubleHeadedGate.from_config(gate.get_config())
    assert clone.encoder == "regions"
    with pytest.raises(ValueError, match=r"one of \('global', 'regions'\). Received: .*'local'"):
        DoubleHeadedGate(8, encoder="local")


@pytest.mark.parametrize("routes", [(0, 5), (1, 1), (1, 0), (-1, 0), ()])
def test_routes_that_the_gate_does_not_have_are_refused(routes):
    gate = DoubleHeadedGate(8, num_choices=2)
    with pytest.raises(ValueError, match=r"must be ascending widths from 0 to 1\. Received: "):
        gate.choose(np.zeros((3, 2), "float32"), routes)


@pytest.mark.parametrize("ratios", [(1.0, 0.5), (0.5, 0.5), (0.0, 1.0), (0.5, 1.5)])
def test_ratios_of_choices_are_checked(ratios):
    with pytest.raises(ValueError, match="`choice_ratios` must be in ascending order, above 0"):
        DoubleHeadedGate(8, num_choices=2, slimming_head="scalar", choice_ratios=ratios)


def test_a_sample_is_exactly_one_hot():
    gate = DoubleHeadedGate(8, num_choices=3)
    scores = np.random.default_rng(0).normal(size=(500, 3)).astype("float32")
    assert set(np.unique(gate.sample(scores, (0, 1, 2), seed=(1, 2)))) == {0.0, 1.0}
