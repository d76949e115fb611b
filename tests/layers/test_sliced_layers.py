"""Sliced layers against stock Keras layers that hold the sliced weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_dsnet.layers import (
    DoubleHeadedGate,
    SlicedConv2D,
    SlicedDense,
    SlicedDepthwiseConv2D,
    SlicedGroupNormalization,
    SwitchableBatchNormalization,
)

OPTIONS = (8, 16, 24)
IMAGES = np.random.default_rng(0).normal(size=(2, 7, 6, 24)).astype("float32")
MAKERS = {
    "conv": lambda options: SlicedConv2D(options, 3, use_bias=True, input_channels=24),
    "depthwise": lambda options: SlicedDepthwiseConv2D(options, 3, use_bias=True),
    "dense": lambda options: SlicedDense(options, input_channels=24),
    "batch_norm": lambda options: SwitchableBatchNormalization(options),
    "group_norm": lambda options: SlicedGroupNormalization(options, 4),
}
# The gate has no stock layer to equal, but is built into networks like the others.
WITH_GATE = {**MAKERS, "gate": lambda options: DoubleHeadedGate(options, num_choices=3)}


def made(kind, options=OPTIONS):
    layer = WITH_GATE[kind](options)
    layer.build((None, None, None, 24))
    generator = np.random.default_rng(1)
    for variable in layer.variables:
        value = generator.normal(size=variable.shape)
        variable.assign(np.abs(value) + 0.5 if "variance" in variable.name else value)
    return layer


def inputs_of(kind, width):
    if kind == "dense":
        return IMAGES[:, 0, 0, : OPTIONS[width]]
    return IMAGES[..., : OPTIONS[width]]


def stock_of(kind, layer, width):
    """A stock Keras layer with the first channels of the layer's weights."""
    channels, weights = OPTIONS[width], [v.numpy() for v in layer.variables]
    if kind == "conv":
        stock = keras.layers.Conv2D(channels, 3, padding="same")
        weights = [weights[0][:, :, :channels, :channels], weights[1][:channels]]
    elif kind == "depthwise":
        stock = keras.layers.DepthwiseConv2D(3, padding="same")
        weights = [weights[0][:, :, :channels], weights[1][:channels]]
    elif kind == "dense":
        stock = keras.layers.Dense(channels)
        weights = [weights[0][:channels, :channels], weights[1][:channels]]
    elif kind == "batch_norm":
        stock = keras.layers.BatchNormalization(epsilon=1e-5)
        weights = [w[:channels] for w in weights[:2]] + [w[width, :channels] for w in weights[2:]]
    else:
        stock = keras.layers.GroupNormalization(channels // 4, epsilon=1e-5)
        weights = [w[:channels] for w in weights]
    stock.build(inputs_of(kind, width).shape)
    stock.set_weights(weights)
    return stock


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("width", range(3))
def test_each_width_equals_a_stock_layer_with_the_first_weights(kind, width):
    layer, inputs = made(kind), inputs_of(kind, width)
    expected = stock_of(kind, layer, width)(inputs)
    np.testing.assert_allclose(layer(inputs, width=width), expected, atol=1e-4)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_tensor_width_serves_every_width_in_one_trace(kind):
    layer, traces = made(kind), []
    rank = inputs_of(kind, 0).ndim

    @tf.function(
        input_signature=[tf.TensorSpec([None] * rank, tf.float32), tf.TensorSpec([], tf.int32)]
    )
    def run(inputs, width):
        traces.append(1)
        return layer(tf.ensure_shape(inputs, [None] * rank), width=width)

    for width in range(3):
        inputs = inputs_of(kind, width)
        expected = layer(inputs, width=width)
        np.testing.assert_allclose(run(inputs, tf.constant(width)), expected, atol=1e-5)
    assert len(traces) == 1


@pytest.mark.parametrize("kind", WITH_GATE)
@pytest.mark.parametrize("width", [3, -1, None, True, 0.5])
def test_a_width_that_the_layer_does_not_have_is_named(kind, width):
    inputs = inputs_of(kind, 0)
    for received in (inputs, keras.Input(inputs.shape[1:])):
        with pytest.raises(ValueError, match="has the widths 0 to 2"):
            made(kind)(received, width=width)


def assert_equal_outputs(actual, expected):
    actual, expected = map(keras.tree.flatten, (actual, expected))
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def saved_and_loaded(model, folder):
    model.save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras")


@pytest.mark.parametrize("kind", WITH_GATE)
@pytest.mark.parametrize(
    ("options", "width"), [(OPTIONS, 1), (16, None)], ids=["fixed width", "one width"]
)
def test_a_functional_model_runs_saves_and_loads(kind, options, width, tmp_path):
    layer, images = made(kind, options), inputs_of(kind, 1)
    inputs = keras.Input(images.shape[1:])
    outputs = layer(inputs, width=width)
    expected = layer(images, width=width)
    for symbolic, real in zip(*map(keras.tree.flatten, (outputs, expected)), strict=True):
        assert symbolic.shape[1:] == real.shape[1:]
    model = keras.Model(inputs, outputs)
    assert_equal_outputs(model(images), expected)
    loaded = saved_and_loaded(model, tmp_path)
    assert_equal_outputs(loaded.predict(images, verbose=0), expected)


@pytest.mark.parametrize("kind", WITH_GATE)
def test_a_functional_model_takes_the_width_as_an_input(kind):
    layer, rank = made(kind), inputs_of(kind, 0).ndim
    inputs = keras.Input([None] * (rank - 1)), keras.Input(batch_shape=(), dtype="int32")
    model = keras.Model(inputs, layer(inputs[0], width=inputs[1]))
    for width in range(3):
        images = tf.constant(inputs_of(kind, width))
        expected = layer(images, width=width)
        assert_equal_outputs(model([images, tf.constant(width)]), expected)


def test_a_sequential_model_of_static_layers_runs_saves_and_loads(tmp_path):
    layers = [
        SlicedConv2D(8, 3),
        SwitchableBatchNormalization(8),
        SlicedDepthwiseConv2D(8, 3, strides=2),
        SlicedGroupNormalization(8, 4),
        DoubleHeadedGate(8),
        keras.layers.GlobalAveragePooling2D(),
        SlicedDense(5),
    ]
    model = keras.Sequential([keras.Input(IMAGES.shape[1:]), *layers])
    assert model.output_shape == (None, 5)
    expected = IMAGES
    for layer in layers:
        expected = layer(expected)
    assert_equal_outputs(model(IMAGES), expected)
    assert_equal_outputs(saved_and_loaded(model, tmp_path)(IMAGES), expected)


@pytest.mark.parametrize("kind", ["conv", "depthwise", "dense"])
def test_narrow_path_ignores_unused_channels(kind):
    layer = made(kind)
    inputs = inputs_of(kind, 0)
    before = layer(inputs, width=0).numpy()
    kernel = layer.kernel.numpy()
    if kind == "depthwise":
        kernel[:, :, 8:] = np.nan
    else:
        kernel[..., 8:, :] = np.nan
        kernel[..., 8:] = np.nan
    layer.kernel.assign(kernel)
    np.testing.assert_array_equal(layer(inputs, width=0), before)


@pytest.mark.parametrize("kind", MAKERS)
def test_config_brings_back_an_equal_layer(kind):
    layer = made(kind)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    copy.set_weights(layer.get_weights())
    inputs = inputs_of(kind, 1)
    np.testing.assert_array_equal(copy(inputs, width=1), layer(inputs, width=1))
    assert copy.get_config() == layer.get_config()


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_computes_low_and_keeps_variables_float32(kind, policy):
    keras.config.set_dtype_policy(policy)
    try:
        layer = made(kind)
    finally:
        keras.config.set_dtype_policy("float32")
    full = made(kind)
    inputs = inputs_of(kind, 1)
    outputs = layer(inputs, width=1)
    assert outputs.dtype == policy.removeprefix("mixed_")
    assert layer(keras.Input(inputs.shape[1:]), width=1).dtype == outputs.dtype
    assert {v.dtype for v in layer.variables} == {"float32"}
    expected = full(inputs, width=1)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(tf.cast(outputs, "float32"), expected, atol=0.03 * scale)


def test_symmetric_padding_pads_both_sides_at_stride_2():
    images = IMAGES[:, :6, :6, :8]
    conv = SlicedConv2D((8,), 3, strides=2)
    depthwise = SlicedDepthwiseConv2D((8,), 3, strides=2)
    for layer, stock in (
        (conv, keras.layers.Conv2D(8, 3, 2, use_bias=False)),
        (depthwise, keras.layers.DepthwiseConv2D(3, 2, use_bias=False)),
    ):
        outputs = layer(images)
        padded = keras.layers.ZeroPadding2D(1)(images)
        stock.build(padded.shape)
        stock.set_weights(layer.get_weights())
        np.testing.assert_allclose(outputs, stock(padded), atol=1e-5)
        assert layer.compute_output_shape(images.shape) == outputs.shape


def test_bad_channel_options_are_named():
    for options in ((8, 8), (16, 8), (), (0, 8), (1.5,)):
        with pytest.raises(ValueError, match="`filters` must be"):
            SlicedConv2D(options, 1)
    with pytest.raises(ValueError, match="divide"):
        SlicedGroupNormalization((8, 12), 8)
    with pytest.raises(ValueError, match="at most 24 input channels"):
        made("conv")(np.ones((1, 3, 3, 25), "float32"), width=0)


class TestSwitchableBatchNormalization:
    def test_training_moves_the_row_of_its_width_by_unbiased_statistics(self):
        layer = made("batch_norm")
        mean, variance = layer.moving_mean.numpy(), layer.moving_variance.numpy()
        images = inputs_of("batch_norm", 1)
        layer(images, width=1, training=True)
        values = images.reshape(-1, 16)
        expected_mean, expected_variance = mean.copy(), variance.copy()
        expected_mean[1, :16] = 0.9 * mean[1, :16] + 0.1 * values.mean(0)
        expected_variance[1, :16] = 0.9 * variance[1, :16] + 0.1 * values.var(0, ddof=1)
        np.testing.assert_allclose(layer.moving_mean, expected_mean, atol=1e-5)
        np.testing.assert_allclose(layer.moving_variance, expected_variance, atol=1e-5)

    def test_one_gamma_and_beta_and_statistics_per_row(self):
        layer = SwitchableBatchNormalization(OPTIONS, num_statistics=5)
        layer.build((None, None, None, 24))
        assert layer.gamma.shape == layer.beta.shape == (24,)
        assert layer.moving_mean.shape == layer.moving_variance.shape == (5, 24)

    def test_synchronized_statistics_on_one_replica_are_the_plain_ones(self):
        images = tf.constant(IMAGES)
        synchronized = SwitchableBatchNormalization((24,), synchronized=True)
        plain = SwitchableBatchNormalization((24,))
        np.testing.assert_allclose(
            synchronized(images, training=True), plain(images, training=True), atol=1e-4
        )
        np.testing.assert_allclose(synchronized.moving_variance, plain.moving_variance, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        SlicedConv2D(8, 3),
        SlicedDepthwiseConv2D(4, 3),
        SwitchableBatchNormalization(4),
        SlicedGroupNormalization(4, 2),
        DoubleHeadedGate(4, num_choices=2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_an_image_without_a_batch_is_refused(layer):
    # TensorFlow's convolutions end the process.
    for image in (np.ones((6, 6, 4), "float32"), keras.Input((6, 4))):
        with pytest.raises(ValueError, match="expected ndim=4, found ndim=3"):
            layer(image)


@pytest.mark.parametrize(
    "layer",
    [
        SlicedDepthwiseConv2D((4, 8), 3),
        SwitchableBatchNormalization((4, 8)),
        SlicedGroupNormalization((4, 8), 2),
        DoubleHeadedGate((4, 8), num_choices=2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_an_input_of_another_width_is_refused(layer):
    layer.build((None, 5, 5, 8))
    with pytest.raises(ValueError, match=r"has 8 channels at width 1\. Received: inputs"):
        layer(np.ones((1, 5, 5, 4), "float32"), width=1)


@pytest.mark.parametrize("value", [0, -1, 3.0, (3, 3), True, "3"])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda value: SlicedConv2D(8, value), "kernel_size"),
        (lambda value: SlicedConv2D(8, 3, value), "strides"),
        (lambda value: SlicedConv2D(8, 3, input_channels=value), "input_channels"),
        (lambda value: SlicedDense(8, input_channels=value), "input_channels"),
        (lambda value: SlicedDepthwiseConv2D(8, value), "kernel_size"),
        (lambda value: SlicedDepthwiseConv2D(8, 3, value), "strides"),
        (lambda value: SwitchableBatchNormalization(8, value), "num_statistics"),
        (lambda value: SlicedGroupNormalization(8, value), "channels_per_group"),
        (lambda value: DoubleHeadedGate(8, value), "hidden_units"),
        (lambda value: DoubleHeadedGate(8, num_choices=value), "num_choices"),
    ],
)
def test_an_argument_that_is_no_positive_int_is_named(make, name, value):
    with pytest.raises(ValueError, match=rf"^`{name}` must be an int of 1 or more\. Received: "):
        make(value)


def test_a_momentum_outside_of_0_to_1_is_refused():
    with pytest.raises(ValueError, match=r"^`momentum` must be from 0 to 1\..*momentum=-1$"):
        SwitchableBatchNormalization(8, momentum=-1)
