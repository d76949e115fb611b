"""DS-MobileNet against the figures of the authors' network, and its arguments."""

import hashlib
import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_dsnet.applications import DSMobileNet, ds_efficientnet_b0, ds_mobilenet, ds_resnet50
from keras_dsnet.applications.ds_mobilenet import PRESETS, preprocess_input

from keras_dsnet.models import MobileNetSpec

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

# Multiply-adds of the released network at 224x224, counted by the authors' own code.
MADDS = (
    132890144, 152917184, 175151968, 199594496, 226244768, 255102784, 286168544,
    319442048, 354923296, 392612288, 432509024, 474613504, 518925728, 565445696,
)  # fmt: skip
# Those of the 18 widths that the paper describes.
PAPER_MADDS = (
    104310680, 120507624, 135379712, 151297664, 168683264, 188152728, 214284520, 237234944,
    260980352, 286193408, 313741208, 349807848, 380836608, 412409472, 445449984, 481076120,
    527077608, 566184704,
)  # fmt: skip


def test_madds_and_parameters_are_the_authors():
    model = DSMobileNet()
    assert (model.num_gates, model.num_widths, model.routes) == (1, 14, tuple(range(14)))
    assert tuple(model.madds(width) for width in range(14)) == MADDS
    assert model.madds("largest") == 819883136
    assert model.madds("widest") == model.madds((13,)) == MADDS[-1]
    # The authors' slimming head has 4 rows of 66 weights; this one has 14.
    parameters = sum(np.prod(v.shape) for v in model.trainable_variables)
    assert parameters == 7676204 + 10 * 66


def test_convolutions_and_linear_layers_alone_cost_less():
    model = DSMobileNet()
    pools = MADDS[0] - model.madds(0, include_pooling=False)
    assert pools == model.costs(0).pooling > 0


def test_alpha_keeps_multiples_of_8_and_output_stride_the_early_size():
    model = DSMobileNet(input_shape=(32, 32, 3), classes=10, alpha=0.25, output_stride=8)
    channels = {c for stage in model.spec.stages for c in stage.channels} | set(model.spec.stem)
    assert all(c % 8 == 0 for c in channels)
    assert min(channels) == 8
    assert model.spec.gated_channels == tuple(range(56, 161, 8))
    features = DSMobileNet(input_shape=(32, 32, 3), alpha=0.25, output_stride=8, include_top=False)
    assert features(np.zeros((1, 32, 32, 3), "float32"), path=0).shape == (1, 4, 4, 184)


def test_front_alpha_scales_what_stands_before_the_gate_alone():
    small = {"input_shape": (32, 32, 3), "classes": 10, "alpha": 0.25}
    spec = DSMobileNet(**small, front_alpha=1.0).spec
    whole, narrow = DSMobileNet().spec, DSMobileNet(**small).spec
    assert spec.stem == whole.stem
    assert spec.stages[:3] == whole.stages[:3]
    assert spec.stages[3:] == narrow.stages[3:]
    assert DSMobileNet(**small, front_alpha=0.25).spec == narrow


def test_strides_one_by_one():
    small = {"input_shape": (32, 32, 3), "alpha": 0.25, "include_top": False}
    late = DSMobileNet(**small, strides=(1, 1, 2, 2, 1, 2))
    assert late(np.zeros((1, 32, 32, 3), "float32"), path=0).shape == (1, 4, 4, 184)
    early = DSMobileNet(**small, output_stride=8)
    assert DSMobileNet(**small, strides=(1, 1, 1, 2, 2, 2)).spec == early.spec
    assert late.spec != early.spec


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": (1, 2)}, r"strides=\(1, 2\)"),
        ({"strides": (1, 1, 3, 2, 2, 2)}, "3, 2, 2, 2"),
        ({"strides": (1, 1, 1, 2, 2, 2), "output_stride": 8}, "output_stride=8"),
        ({"front_alpha": 0}, "front_alpha=0"),
        ({"alpha": 0.1}, "alpha=0.1"),
        ({"alpha": -1.0}, "alpha=-1.0"),
        ({"output_stride": 4}, "output_stride=4"),
        ({"input_shape": (16, 16, 3)}, r"\(16, 16, 3\)"),
        ({"input_shape": (64, 64)}, r"\(64, 64\)"),
        ({"classes": 0}, "classes=0"),
        ({"width": 2}, "'width'"),
        ({"attention": "relu"}, "'relu'"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DSMobileNet(**options)


def test_preprocessing_is_imagenets_normalisation():
    images = np.array([[[[0, 128, 255]]]], "uint8")
    expected = (images / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(preprocess_input(images), expected, atol=1e-5)
    tensor = preprocess_input(tf.constant(images))
    assert tensor.dtype == "float32"
    np.testing.assert_allclose(tensor, expected, atol=1e-5)


def test_the_widths_of_the_paper_are_its_ratios_of_mobilenet_in_multiples_of_8():
    spec = MobileNetSpec.paper(dropout=0.1)
    assert spec.dropout == 0.1
    assert spec.stem == (16,)
    assert [stage.channels for stage in spec.stages[:3]] == [(32,), (64,), (128,)]
    ratios = np.arange(35, 125, 5) / 100
    assert spec.num_widths == len(ratios) == 18
    for stage, channels in zip(spec.stages[3:], (512, 1024)):
        assert all(count % 8 == 0 for count in stage.channels)
        assert np.abs(np.array(stage.channels) - ratios * channels).max() <= 4
    np.testing.assert_allclose(spec.ratios, ratios, atol=4 / 512)
    assert spec.base_channels == 512
    assert spec.scaled(0.5).ratios[-1] == pytest.approx(spec.ratios[-1])
    with pytest.raises(ValueError, match="widest_ratio=0"):
        MobileNetSpec(widest_ratio=0).check_options()


def test_madds_of_the_paper_widths_are_those_of_the_docs():
    model = DSMobileNet(widths="paper")
    assert (model.num_widths, model.routes) == (18, tuple(range(18)))
    assert tuple(model.madds(width) for width in range(18)) == PAPER_MADDS
    page = (REPOSITORY / "docs" / "networks.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| (\d+), (\d+) \| ([\d.]+) \|$", page, re.MULTILINE)
    gated, last = (stage.channels for stage in model.spec.stages[3:])
    assert [tuple(map(float, row)) for row in rows] == [
        (k, round(0.35 + 0.05 * k, 2), gated[k], last[k], round(PAPER_MADDS[k] / 1e6, 1))
        for k in range(18)
    ]


def test_a_network_of_the_paper_widths_is_saved_and_loaded(tmp_path):
    model = DSMobileNet(widths="paper", input_shape=(32, 32, 3), classes=10, alpha=1 / 3)
    model.save(tmp_path / "net.keras")
    weights = tmp_path / "net.weights.h5"
    model.save_weights(weights)
    loaded = keras.models.load_model(tmp_path / "net.keras")
    assert loaded.spec == model.spec
    assert loaded.spec.ratios == model.spec.ratios
    strides = (1, 1, 1, 2, 2, 2)
    asked = DSMobileNet(weights, widths="paper", alpha=1 / 3, strides=strides)
    assert asked.spec == model.spec.with_strides(strides)
    for network in (loaded, asked):
        for value, expected in zip(network.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(value, expected)
    with pytest.raises(ValueError, match=r"other channels.*alpha=0\.75"):
        DSMobileNet(weights, widths="paper", alpha=0.75)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": "18"}, "`widths` must be 'paper' or None. Received: widths='18'"),
        ({"widths": "paper", "weights": "cifar10"}, "'cifar10' are of a network with the 14"),
        ({"widths": "paper", "stem": (8,)}, "`widths` sets `stem`"),
    ],
)
def test_widths_that_contradict_another_argument_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DSMobileNet(**options)


@pytest.mark.parametrize(
    ("shipped", "name"),
    [
        (PRESETS["cifar10"], "cifar10"),
        (PRESETS["tiny_imagenet"], "tiny_imagenet"),
        (ds_resnet50.PRESETS["cifar10"], "cifar10_resnet"),
    ],
)
def test_presets_hold_what_is_known_of_their_files(shipped, name):
    assert hashlib.sha256(shipped.file.read_bytes()).hexdigest() == shipped.sha256
    page = (REPOSITORY / "docs" / "results" / f"{name}.md").read_text(encoding="utf-8")
    section = page.split("## All widths")[1].split("\n## ")[0]
    row = r"^\| (\d+|confidence) \| [\d.]+ \| [\d.]+ \| ([\d.]+) \| [\d.]+ \|"
    rows = re.findall(row, section, re.MULTILINE)
    percent = {int(path) if path.isdigit() else "dynamic": float(top1) for path, top1 in rows}
    assert {path: round(100 * top1, 2) for path, top1 in shipped.accuracy.items()} == percent


def test_the_preset_of_the_authors_says_what_they_report():
    released = PRESETS["imagenet"]
    assert released.sha256 is None
    assert released.url.startswith("https://github.com/changlin31/DS-Net/releases/")
    assert list(released.accuracy) == list(range(14))
    assert (released.accuracy[0], released.accuracy[13]) == (0.701, 0.746)
    assert ds_efficientnet_b0.PRESETS == {}
    assert all(preset.url is None for preset in ds_resnet50.PRESETS.values())


def test_variants_end_at_the_madds_of_the_paper():
    # Tables 2 and 8, in millions. S of the paper's widths ends at rho = 0.5, which is 151M.
    for variants, madds, targets in (
        (ds_mobilenet.VARIANTS, MADDS, {"M": 319, "L": 565}),
        (ds_mobilenet.PAPER_VARIANTS, PAPER_MADDS, {"M": 319, "L": 565, "S": 153}),
    ):
        for name, target in targets.items():
            last = (variants[name].routes or range(len(madds)))[-1]
            assert np.argmin(np.abs(np.array(madds) / 1e6 - target)) == last
    assert ds_mobilenet.VARIANTS["S"].routes == ds_mobilenet.PAPER_VARIANTS["S"].routes
    assert ds_mobilenet.VARIANTS["S"].routes == (0, 1, 2, 3)
    assert {name: v.loss_weights for name, v in ds_resnet50.VARIANTS.items()} == {
        "S": (0.0, 0.5, 1.0),
        "M": (1.0, 0.5, 1.0),
        "L": (0.0, 0.0, 1.0),
    }
    efficientnet = ds_efficientnet_b0.VARIANTS
    assert {name: len(v.routes) for name, v in efficientnet.items()} == {"S": 5, "L": 10}


def test_the_channels_before_the_gate_may_be_told_alone():
    assert DSMobileNet(weights="cifar10", front_alpha=0.75).spec.ratios
    with pytest.raises(ValueError, match=r"other channels.*front_alpha=0\.5"):
        DSMobileNet(weights="cifar10", front_alpha=0.5)
