"""The network of a detector: every way to run it gives the same outputs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_dsnet.applications import DSMobileNet
from tiny_detectors import SPECS, detector_images, tiny_detector

from keras_dsnet.detection import FSSD
from keras_dsnet.models import DynamicSlimmableNetwork, Path
from keras_dsnet.models.executors import MaskedExecutor
from keras_dsnet.models.subnetwork import as_numpy

DESIGNS = [
    pytest.param(("mobilenet", "full"), id="mobilenet-full"),
    pytest.param(("resnet", "full"), id="resnet-full", marks=pytest.mark.slow),
    pytest.param(("efficientnet", "light"), id="efficientnet-light", marks=pytest.mark.slow),
]
PATHS = {"mobilenet": (2,), "resnet": (0, 2, 1), "efficientnet": (1,)}


def assert_equal_outputs(actual, expected, atol=2e-4):
    assert set(actual) == set(expected) == {"boxes", "scores"}
    for name, values in expected.items():
        scale = max(1.0, np.abs(values).max())
        np.testing.assert_allclose(actual[name] / scale, values / scale, atol=atol, err_msg=name)


@pytest.fixture(scope="module", params=DESIGNS)
def designed(request):
    return request.param[0], tiny_detector(*request.param)


@pytest.mark.slow
def test_plain_subnetworks_have_the_same_outputs(designed):
    family, detector = designed
    images, path = detector_images(3), PATHS[family]
    expected = detector(images, path=path)
    assert expected["boxes"].shape == (3, len(detector.anchors), 4)
    assert expected["scores"].shape == (3, len(detector.anchors), 4)
    assert np.abs(expected["boxes"]).max() > 0.1
    for fold in (False, True):
        plain = detector.subnetwork(path, fold_batch_norm=fold)
        assert {type(layer).__module__.split(".")[0] for layer in plain.layers} == {"keras"}
        assert_equal_outputs(plain(images), expected)
        kinds = {type(layer) for layer in plain.layers}
        assert (keras.layers.BatchNormalization in kinds) == (family != "resnet" and not fold)
    # The path matters: statistics and channels of another width give other outputs.
    other = detector(images, path="slimmest")
    assert np.abs(other["scores"] - expected["scores"]).max() > 1e-2


def test_one_trace_serves_every_width(designed):
    family, detector = designed
    images, path = detector_images(2), PATHS[family]

    @tf.function
    def run(gates):
        widths = (0, *tf.unstack(gates))
        return detector.run_sections(images, Path(widths, widths))

    for gates in (path, (0,) * len(path)):
        assert_equal_outputs(run(tf.constant(gates)), detector(images, path=gates))


@pytest.mark.slow
def test_a_routed_batch_equals_each_image_on_its_path(designed):
    _, detector = designed
    images = detector_images(8)
    paths = detector.route(images).numpy()
    assert len(np.unique(paths, axis=0)) > 1
    expected = [detector(images[i : i + 1], path=path) for i, path in enumerate(paths)]
    expected = {name: np.concatenate([e[name] for e in expected]) for name in expected[0]}
    assert_equal_outputs(detector(images), expected)
    if detector.num_gates == 1:
        assert_equal_outputs(tf.function(detector)(tf.constant(images)), expected)
        # `predict` joins batches.
        assert_equal_outputs(detector.predict(images, batch_size=8, verbose=0), expected)
    assert [found["path"] for found in detector.detect(images)] == [tuple(p) for p in paths]


def test_masked_outputs_equal_those_of_the_chosen_path(designed):
    family, detector = designed
    images, path, routes = detector_images(3), PATHS[family], range(detector.num_widths)

    def choose(gate, scores, index):
        return tf.one_hot([path[index]] * len(images), detector.num_widths)

    masked = MaskedExecutor(detector, tuple(routes), choose)
    features = detector.run_sections(images, None, last=0, executor=masked)
    outputs = detector.run_sections(features, None, first=1, executor=masked)
    assert_equal_outputs(outputs, detector(images, path=path))


@pytest.mark.slow
def test_sections_run_like_the_whole(designed):
    family, detector = designed
    images, path = detector_images(2), detector.resolve_path(PATHS[family])
    features = detector.run_sections(images, path, last=0)
    outputs = detector.run_sections(features, path, first=1)
    assert_equal_outputs(outputs, detector(images, path=path))
    trunk = detector.run_any_width(0, tf.constant(images), path)
    assert_equal_outputs(detector.run_any_width(1, trunk, path), outputs)


def counted_by_hand(model):
    """Returns the multiply-adds of a plain model from the shapes of its layers and kernels."""
    total = 0
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dense):
            total += layer.kernel.shape[0] * layer.kernel.shape[1]
        elif isinstance(layer, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)):
            _, height, width, _ = layer.output.shape
            total += height * width * int(np.prod(layer.kernel.shape))
        elif isinstance(layer, keras.layers.GlobalAveragePooling2D):
            total += int(np.prod(layer.input.shape[1:]))
    return total


def test_madds_equal_those_of_the_layers_of_the_plain_model(designed):
    family, detector = designed
    for path in (PATHS[family], "widest"):
        assert detector.madds(path) == counted_by_hand(detector.subnetwork(path))
    assert detector.madds("widest") > detector.madds("slimmest")


@pytest.mark.slow
def test_a_saved_detector_loads_without_custom_objects(designed, tmp_path):
    family, detector = designed
    detector.save(tmp_path / "d.keras")
    loaded = keras.models.load_model(tmp_path / "d.keras")
    images = detector_images(2)
    assert loaded.gates_trained
    path = PATHS[family]
    assert_equal_outputs(loaded(images, path=path), detector(images, path=path), atol=1e-6)
    assert loaded.routes == detector.routes
    np.testing.assert_array_equal(loaded.anchors, detector.anchors)
    assert loaded.get_config() == detector.get_config()
    detector.save_weights(tmp_path / "d.weights.h5")
    new = type(detector).from_config(detector.get_config())
    new.load_weights(tmp_path / "d.weights.h5")
    for values, expected in zip(new.get_weights(), detector.get_weights(), strict=True):
        np.testing.assert_array_equal(values, expected)


def test_every_trained_variable_has_a_gradient(designed):
    _, detector = designed
    slimming = {id(v) for gate in detector.slimming_gates for v in gate.slimming_variables}
    with tf.GradientTape() as tape:
        outputs = detector(detector_images(2), path="widest", training=True)
        loss = sum(tf.reduce_sum(value**2) for value in outputs.values())
    layers = [variable for layer in detector.supernet_layers for variable in layer.variables]
    variables = [v for v in layers if v.trainable and id(v) not in slimming]
    gradients = tape.gradient(loss, [v.value for v in variables])
    missing = [v.path for v, gradient in zip(variables, gradients) if gradient is None]
    assert not missing


@pytest.fixture(scope="module")
def detector():
    return tiny_detector()


@pytest.mark.slow
def test_a_plain_subnetwork_needs_no_code_of_this_package(detector, tmp_path):
    images = detector_images(2)
    expected = detector(images, path="largest")
    plain = detector.subnetwork("largest", fold_batch_norm=True)
    plain.save(tmp_path / "plain.keras")
    loaded = keras.models.load_model(tmp_path / "plain.keras", custom_objects={})
    # A call without `training` must not train: some layers of Keras would make it so.
    assert_equal_outputs(loaded(images), expected)
    assert_equal_outputs(loaded(images), expected)
    converter = tf.lite.TFLiteConverter.from_keras_model(plain)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    assert len(converter.convert()) > 1000


def test_training_moves_the_statistics_of_its_width_only(detector):
    def tables():
        return {
            layer.name: as_numpy(layer.moving_mean)
            for layer in detector.head_layers
            if hasattr(layer, "moving_mean")
        }

    before = tables()
    detector(detector_images(2), path=1, training=True)
    after = tables()
    assert "fusion_norm" in before
    for name, rows in after.items():
        changed = np.any(rows != before[name], axis=1)
        assert changed.tolist() == [False, True, False, False, False]


def test_mixed_precision_predicts_in_float32():
    half = tiny_detector(dtype="mixed_bfloat16")
    full = tiny_detector()
    images = detector_images(2) / 5
    outputs, expected = half(images, path=1), full(images, path=1)
    assert {value.dtype for value in outputs.values()} == {tf.float32}
    for name in expected:
        difference = np.abs(outputs[name] - expected[name]).mean()
        assert difference < 0.1 * np.abs(expected[name]).mean()
    assert half.detect(images, path=1)[0]["boxes"].dtype == np.float32


# Table 4 of the paper, in 1e9 multiply-adds. Its S, M and L are these widths of the backbone.
@pytest.mark.parametrize(("path", "paper"), [(1, 2.3), (7, 2.7), (13, 3.2)])
def test_madds_of_the_default_head_are_near_the_papers(paper_detector, path, paper):
    assert paper_detector.madds(path) / 1e9 == pytest.approx(paper, rel=0.07)


@pytest.mark.parametrize(
    ("options", "expected"), [({"channels": 224}, 4.36), ({"head": "light"}, 1.36)]
)
def test_madds_of_the_other_heads_in_the_reference(options, expected):
    backbone = DSMobileNet(include_top=False, input_shape=(300, 300, 3))
    assert FSSD(backbone, **options).madds("widest") / 1e9 == pytest.approx(expected, abs=5e-3)


@pytest.fixture(scope="module")
def paper_detector():
    return FSSD(DSMobileNet(include_top=False, input_shape=(300, 300, 3)), classes=20)


def test_maps_of_300_pixels_are_those_of_ssd(paper_detector):
    assert paper_detector.levels == ("stage_3", "stage_4", "stage_5")
    assert len(paper_detector.anchors) == 6 * (38**2 + 19**2 + 10**2 + 5**2) + 4 * (3**2 + 1)
    scales = (0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05)
    assert paper_detector.scales == pytest.approx(scales)


def test_seven_maps_of_512_pixels():
    backbone = DSMobileNet(include_top=False, input_shape=(512, 512, 3), alpha=0.5)
    detector = FSSD(backbone, head="light", channels=16, pyramid=16)
    positions = [side**2 for side in (64, 32, 16, 8, 4, 2, 1)]
    assert len(detector.anchors) == 6 * sum(positions[:5]) + 4 * sum(positions[5:])
    assert detector.scales == pytest.approx((0.07, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05))


def test_images_need_not_be_square():
    detector = tiny_detector(input_shape=(32, 48, 3), pyramid=(8, 8))
    outputs = detector(np.zeros((1, 32, 48, 3), "float32"), path=0)
    assert len(detector.anchors) == 6 * 8 * 12 + 4 * 4 * 6
    assert outputs["boxes"].shape == (1, len(detector.anchors), 4)


@pytest.mark.parametrize("family", SPECS)
def test_several_gates_need_group_norm(family):
    backbone = DynamicSlimmableNetwork(SPECS[family], (24, 24, 3), include_top=False)
    if backbone.num_gates == 1:
        FSSD(backbone, classes=3, norm="group", channels=8, pyramid=8)
    else:
        with pytest.raises(ValueError, match="'group' for a backbone with several gates"):
            FSSD(backbone, norm="batch")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 0}, "`classes` must be a positive int"),
        ({"levels": ("stage_9",)}, "`levels` must be different names among"),
        ({"levels": ("stage_1",)}, "after the last gate of the backbone, such as 'stage_3'"),
        ({"channels": 0}, "channels=0"),
        ({"pyramid": (8,) * 4}, "the channels of 1 to 3 maps: the first map has 6 x 6"),
        ({"pyramid": "8"}, "pyramid='8'"),
        ({"scales": (0.1, 0.2)}, "`scales` must have 4 numbers"),
        ({"scales": (0.1, 0.2, 0.4, -1)}, "scales=-1"),
        ({"scales": (0.1, 0.2, 0.2, 0.4)}, "`scales` must ascend"),
        ({"aspect_ratios": (2, 3)}, "`aspect_ratios` must have 3 tuples"),
        ({"aspect_ratios": ((1,), (), ())}, "aspect_ratios=1"),
        ({"head": "heavy"}, "`head` must be 'full' or 'light'"),
        ({"norm": "layer"}, "`norm` must be 'batch' or 'group'"),
        ({"activation": "rely"}, "`activation` must be the name of a Keras activation"),
        ({"bounding_box_format": "x"}, "`bounding_box_format` must be one of"),
        ({"class_names": ("a",)}, "class_names"),
    ],
)
def test_a_wrong_argument_is_named(options, message):
    with pytest.raises(ValueError, match=message) as error:
        tiny_detector(**options)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"include_top": True}, "include_top=True"),
        ({"pooling": "avg"}, "pooling='avg'"),
        ({"input_shape": (None, 24, 3)}, "`backbone` must have a fixed `input_shape`"),
    ],
)
def test_a_wrong_backbone_is_named(options, message):
    options = {"input_shape": (24, 24, 3), "include_top": False, **options}
    backbone = DynamicSlimmableNetwork(SPECS["mobilenet"], **options)
    with pytest.raises(ValueError, match=message):
        FSSD(backbone)


def test_another_backbone_is_refused():
    with pytest.raises(ValueError, match=r"must be a DynamicSlimmableNetwork.*a Sequential"):
        FSSD(keras.Sequential())


def test_a_wrong_call_is_named(detector):
    images = detector_images(1)
    with pytest.raises(ValueError, match="path=9"):
        detector(images, path=9)
    with pytest.raises(ValueError, match="Training needs a path"):
        detector(images, training=True)
    with pytest.raises(ValueError, match="images of shape"):
        detector.detect(images[:, 1:], path=0)
    with pytest.raises(ValueError, match="score_threshold=2"):
        detector.detect(images, path=0, score_threshold=2)
    with pytest.raises(ValueError, match="max_detections=0"):
        detector.detect(images, path=0, max_detections=0)
