"""The constructors with weights, and the arguments that may differ from the weights."""

import inspect

import numpy as np
import pytest
from keras_dsnet.applications import DSEfficientNetB0, DSMobileNet, DSResNet50

from keras_dsnet.models import MobileNetStage, Normalization
from keras_dsnet.utils import UserError
from keras_dsnet.weights import Preset, read_checkpoint

HALF = Normalization((0.5,) * 3, (0.5,) * 3)
IMAGES = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
SMALL = {"input_shape": (32, 32, 3), "classes": 5, "alpha": 0.25, "output_stride": 16}
TINY = {
    "stem": (2, 3),
    "stages": (
        MobileNetStage(1, 2, (4, 6)),
        MobileNetStage(1, 2, (4, 6, 8, 10, 12), gated=True),
    ),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A network with trained gates, and its file of weights."""
    model = DSMobileNet(**SMALL, attention="sigmoid", routes=(0, 3, 7))
    for variable in model.slimming_gates[0].slimming_variables:
        variable.assign(np.random.default_rng(1).normal(size=variable.shape))
    model.gates_trained = True
    path = tmp_path_factory.mktemp("weights") / "small.weights.h5"
    model.save_weights(path)
    return model, path


def test_a_file_says_what_network_it_is_for(small):
    model, path = small
    loaded = DSMobileNet(weights=path)
    assert loaded.spec == model.spec
    assert loaded.input_shape == (None, 32, 32, 3)
    assert (loaded.classes, loaded.routes, loaded.gates_trained) == (5, (0, 3, 7), True)
    np.testing.assert_array_equal(loaded(IMAGES), model(IMAGES))


def test_arguments_that_agree_or_change_no_weight(small):
    model, path = small
    with pytest.warns(UserWarning, match=r"not trained to choose \[1, 2\]"):
        loaded = DSMobileNet(
            weights=str(path),
            **{**SMALL, "input_shape": (None, None, 3)},
            attention="sigmoid",
            dropout=0.5,
            routes=(1, 2),
            classifier_activation=None,
            name="mine",
        )
    assert (loaded.input_shape, loaded.routes) == ((None, None, None, 3), (1, 2))
    assert (loaded.spec.dropout, loaded.name) == (0.5, "mine")
    np.testing.assert_allclose(
        np.exp(loaded(IMAGES, path=4))[0] / np.exp(loaded(IMAGES, path=4))[0].sum(),
        model(IMAGES, path=4)[0],
        rtol=1e-4,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention": "tanh"}, r"attention='sigmoid'\. Received: attention='tanh'"),
        ({"alpha": 0.5}, r"other channels.*alpha=0\.5$"),
        ({"alpha": 0.25, "front_alpha": 1.0}, "alpha=0.25, front_alpha=1.0"),
        ({"share_encoder": False}, "share_encoder=True"),
        ({"normalization": HALF}, "trained with another normalization"),
    ],
)
def test_arguments_that_contradict_the_weights(small, arguments, message):
    with pytest.raises(ValueError, match=message):
        DSMobileNet(weights=small[1], **arguments)


@pytest.mark.parametrize(
    ("arguments", "strides"),
    [
        ({"alpha": 0.25}, (1, 1, 2, 2, 2, 2)),
        ({"output_stride": 8}, (1, 1, 1, 2, 2, 2)),
        ({"alpha": 0.25, "output_stride": 32}, (2, 1, 2, 2, 2, 2)),
        ({"strides": (1, 1, 1, 1, 2, 2)}, (1, 1, 1, 1, 2, 2)),
    ],
)
def test_strides_may_differ_from_those_of_the_weights(small, arguments, strides):
    model, path = small
    loaded = DSMobileNet(weights=path, **arguments)
    assert loaded.spec.strides == strides
    assert (loaded.routes, loaded.gates_trained) == (model.routes, True)
    for value, expected in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.slow
def test_pooled_features_of_weights(small, tmp_path):
    model, path = small
    features = DSMobileNet(weights=path, include_top=False)
    pooled = DSMobileNet(weights=path, include_top=False, pooling="avg")
    expected = np.mean(features(IMAGES, path=3), (1, 2))
    np.testing.assert_allclose(pooled(IMAGES, path=3), expected, atol=1e-6)
    assert (pooled.routes, pooled.gates_trained) == (model.routes, True)
    other = DSMobileNet(weights=path, include_top=False, classes=3)
    assert (other.classes, other.routes, other.gates_trained) == (3, model.routes, True)
    # A file of features gives pooled features, or a network with a new classifier.
    features.save_weights(tmp_path / "features.weights.h5")
    again = DSMobileNet(weights=tmp_path / "features.weights.h5", include_top=False, pooling="avg")
    np.testing.assert_array_equal(again(IMAGES, path=3), pooled(IMAGES, path=3))
    assert (again.routes, again.gates_trained) == (model.routes, True)
    whole = DSMobileNet(weights=tmp_path / "features.weights.h5")
    assert (whole.routes, whole.gates_trained) == (tuple(range(14)), False)


@pytest.mark.slow
def test_features_get_a_classifier_with_dropout(small, tmp_path):
    _, path = small
    DSMobileNet(weights=path, include_top=False).save_weights(tmp_path / "features.weights.h5")
    model = DSMobileNet(weights=tmp_path / "features.weights.h5", classes=4, dropout=0.2)
    assert (model.classes, model.spec.dropout) == (4, 0.2)
    expected = DSMobileNet(weights=path, include_top=False).features(IMAGES, path=3)
    for level, features in model.features(IMAGES, path=3).items():
        np.testing.assert_array_equal(features, expected[level])


@pytest.mark.slow
def test_class_names_and_normalization(tmp_path):
    names = tuple("abcde")
    model = DSMobileNet(**SMALL, class_names=names, normalization=HALF)
    pixels = np.full((1, 32, 32, 3), 255, "uint8")
    np.testing.assert_allclose(model.preprocess_input(pixels), 1)
    model.save_weights(tmp_path / "half.weights.h5")
    loaded = DSMobileNet(weights=tmp_path / "half.weights.h5")
    assert (loaded.class_names, loaded.normalization) == (names, HALF)
    other = DSMobileNet(weights=tmp_path / "half.weights.h5", classes=3)
    assert (other.class_names, other.normalization) == (None, HALF)
    named = DSMobileNet(
        weights=tmp_path / "half.weights.h5", classes=3, class_names=["x", "y", "z"]
    )
    assert named.class_names == ("x", "y", "z")
    features = DSMobileNet(weights=tmp_path / "half.weights.h5", include_top=False)
    assert (features.class_names, features.normalization) == (names, HALF)
    with pytest.raises(ValueError, match="Received: 2 names"):
        DSMobileNet(weights=tmp_path / "half.weights.h5", class_names=("x", "y"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 2.5}, "classes=2.5"),
        ({"include_top": "no"}, "include_top='no'"),
        ({"input_shape": "32"}, "input_shape='32'"),
        ({"pooling": "avg"}, "include_top=False"),
        ({"classifier_activation": "soft"}, "classifier_activation='soft'"),
        ({"activation": "swosh"}, "activation='swosh'"),
        ({"alpha": np.inf}, "alpha=inf"),
        ({"strides": (1, 2)}, r"strides=\(1, 2\)"),
        ({"routes": (3, 1)}, r"routes=\(3, 1\)"),
        ({"class_names": "ab", "classes": 2}, "class_names='ab'"),
        ({"class_names": ("a", "b"), "classes": 3}, "2 names"),
        ({"normalization": "half"}, "normalization='half'"),
        ({"dtype": "float31"}, "float31"),
        ({"dtype": "float16"}, "dtype='float16'"),
        ({"ema": 3}, "ema=3"),
        ({"width": 3}, "'width'"),
    ],
)
def test_arguments_are_checked_before_a_download(arguments, message, monkeypatch):
    def download(*_):
        pytest.fail("the download began")

    monkeypatch.setattr(Preset, "filepath", download)
    with pytest.raises(ValueError, match=message) as caught:
        DSMobileNet(weights="imagenet", **arguments)
    assert "\n" not in str(caught.value)


def test_a_moving_average_of_nothing(small):
    with pytest.raises(ValueError, match="there are no weights"):
        DSMobileNet(ema=True)
    with pytest.raises(UserError, match="for checkpoints of PyTorch"):
        DSMobileNet(weights=small[1], ema=True)


def test_another_number_of_classes_loads_all_but_the_classifier(small, caplog):
    model, path = small
    loaded = DSMobileNet(weights=path, classes=7)
    (message,) = caplog.messages
    assert "5 classes" in message
    assert "7 classes" in message
    before = {v.path: np.array(v) for v in model.variables}
    for variable in loaded.variables:
        if not variable.path.startswith("classifier"):
            np.testing.assert_array_equal(variable, before[variable.path])
    # The gate and its routes were trained for other classes.
    assert (loaded.routes, loaded.gates_trained) == (tuple(range(14)), False)
    assert "all 14 widths are routes" in message


@pytest.mark.slow
def test_without_the_classifier(small, caplog):
    model, path = small
    features = DSMobileNet(weights=path, include_top=False)(IMAGES, path=3)
    pooled = np.mean(features, (1, 2))
    dense = model.supernet_layers[-1]
    logits = pooled @ np.array(dense.kernel)[: pooled.shape[1]] + np.array(dense.bias)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(model(IMAGES, path=3), expected, rtol=1e-4)
    assert not caplog.messages


@pytest.mark.slow
def test_a_file_without_its_network_needs_the_arguments(small, tmp_path):
    h5py = pytest.importorskip("h5py")
    old = tmp_path / "old.weights.h5"
    old.write_bytes(small[1].read_bytes())
    with h5py.File(old, "a") as file:
        del file["vars"]["config"]
    loaded = DSMobileNet(weights=old, **SMALL, attention="sigmoid")
    np.testing.assert_array_equal(loaded(IMAGES), small[0](IMAGES))
    with pytest.raises(UserError, match=r"old\.weights\.h5 is not of this network: "):
        DSMobileNet(weights=old)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.weights.h5", b"", "is damaged"),
        ("x.weights.h5", b"<html>", "is damaged"),
        ("x.pth.tar", b"<html>", "web page"),
        ("x.onnx", b"", "must end with"),
    ],
)
def test_files_that_hold_no_weights(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        DSMobileNet(weights=tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weights", ["imagenet21k", 3, True])
def test_unknown_weights_are_named(weights):
    with pytest.raises(ValueError, match=f"weights={weights!r}"):
        DSMobileNet(weights=weights)


def test_a_missing_file():
    for name in ("none.weights.h5", "none.pth.tar"):
        with pytest.raises(FileNotFoundError, match=name):
            DSMobileNet(weights=name)


def test_a_checkpoint_of_the_authors_code(checkpoint):
    model = DSMobileNet(weights=checkpoint, input_shape=(32, 32, 3))
    assert (model.classes, model.spec.attention) == (20, "sigmoid")
    assert (model.routes, model.gates_trained) == ((0, 1, 2, 3), True)
    kernel = read_checkpoint(checkpoint)["conv_stem.weight"]
    np.testing.assert_array_equal(model.supernet_layers[0].kernel, kernel.transpose(2, 3, 1, 0))
    with pytest.raises(ValueError, match="attention='sigmoid'"):
        DSMobileNet(weights=checkpoint, attention="tanh")
    with pytest.raises(UserError, match="state_dict_ema"):
        DSMobileNet(weights=checkpoint, ema=True)


@pytest.mark.parametrize("application", [DSMobileNet, DSResNet50, DSEfficientNetB0])
def test_the_docstring_of_a_constructor_describes_every_argument(application):
    arguments = inspect.getdoc(application).split("Args:\n")[1].split("\n\nReturns:")[0]
    described = [line.strip().split(":")[0] for line in arguments.splitlines() if line[4] != " "]
    assert described == [
        str(parameter).split(":")[0]
        for parameter in inspect.signature(application).parameters.values()
    ]
    assert "{" not in arguments
    assert max(map(len, inspect.getdoc(application).splitlines())) <= 100
