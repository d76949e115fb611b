"""Networks with weights: from files of this package, of the authors, and from the release."""

import collections
import dataclasses
import hashlib
import os
import time

import keras
import numpy as np
import pytest
from keras_dsnet.applications import DSMobileNet, build_network
from keras_dsnet.applications.ds_mobilenet import PRESETS
from programs import run_program

from keras_dsnet.models import MobileNetStage, Normalization
from keras_dsnet.utils import UserError
from keras_dsnet.utils.atomic_file import temporary_path
from keras_dsnet.weights import convert_checkpoint, read_checkpoint
from keras_dsnet.weights.__main__ import write_weights
from keras_dsnet.weights.ds_mbnet import mobilenet_tensors
from keras_dsnet.weights.released_weights import cache_folder, check_trained, released_weights

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


def test_pooled_features_of_weights(small, tmp_path):
    model, path = small
    features = DSMobileNet(weights=path, include_top=False)
    pooled = DSMobileNet(weights=path, include_top=False, pooling="avg")
    expected = np.mean(features(IMAGES, path=3), (1, 2))
    np.testing.assert_allclose(pooled(IMAGES, path=3), expected, atol=1e-6)
    assert (pooled.routes, pooled.gates_trained) == (model.routes, True)
    other = DSMobileNet(weights=path, include_top=False, classes=3)
    assert (other.classes, other.routes, other.gates_trained) == (3, model.routes, True)
    # From a file of features to pooled ones, and to a classifier, which is a new one.
    features.save_weights(tmp_path / "features.weights.h5")
    again = DSMobileNet(weights=tmp_path / "features.weights.h5", include_top=False, pooling="avg")
    np.testing.assert_array_equal(again(IMAGES, path=3), pooled(IMAGES, path=3))
    assert (again.routes, again.gates_trained) == (model.routes, True)
    whole = DSMobileNet(weights=tmp_path / "features.weights.h5")
    assert (whole.routes, whole.gates_trained) == (tuple(range(14)), False)


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

    monkeypatch.setattr(build_network, "released_weights", download)
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
    # A gate that was trained for other classes, and its routes, are no choice for these.
    assert (loaded.routes, loaded.gates_trained) == (tuple(range(14)), False)
    assert "all 14 widths are routes" in message


def test_without_the_classifier(small, caplog):
    model, path = small
    features = DSMobileNet(weights=path, include_top=False)(IMAGES, path=3)
    pooled = np.mean(features, (1, 2))
    dense = model.supernet_layers[-1]
    logits = pooled @ np.array(dense.kernel)[: pooled.shape[1]] + np.array(dense.bias)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(model(IMAGES, path=3), expected, rtol=1e-4)
    assert not caplog.messages


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


def random_state(model):
    generator = np.random.default_rng(0)
    return collections.OrderedDict(
        (name, generator.uniform(0.5, 1.5, target.shape).astype("float32"))
        for name, target in mobilenet_tensors(model).items()
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, write_torch_file):
    """A checkpoint of the full network for 20 classes."""
    state = random_state(DSMobileNet(attention="sigmoid", classes=20))
    path = tmp_path_factory.mktemp("release") / "net.pth.tar"
    return write_torch_file(path, {"state_dict": state})


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


def run_module(folder, module, *arguments):
    """Runs `python -m MODULE ARGUMENTS...`."""
    program = folder / "program.py"
    program.write_text(f"import runpy; runpy.run_module({module!r}, None, '__main__', True)")
    return run_program(program, *arguments)


def test_the_converter(checkpoint, tmp_path, tmp_path_factory):
    target = tmp_path / "net.weights.h5"
    folder = tmp_path_factory.mktemp("converter")
    result = run_module(folder, "keras_dsnet.checkpoints", checkpoint, target)
    assert result.returncode == 0, result.stderr
    assert "`python -m keras_dsnet.checkpoints` is deprecated" in result.stderr
    assert "20 classes, routes (0, 1, 2, 3)" in result.stdout
    model = DSMobileNet(weights=checkpoint, input_shape=(32, 32, 3))
    converted = DSMobileNet(weights=target, input_shape=(32, 32, 3))
    for value, expected in zip(converted.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["net.weights.h5"]


@pytest.mark.parametrize("files", [[], ["a.pth"], ["a", "b", "c"]])
def test_the_converter_wants_two_files(files):
    with pytest.raises(UserError, match="usage"):
        write_weights(files)


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--help"], 0, "python -m keras_dsnet.weights SOURCE.keras TARGET.weights.h5 --float16"),
        (["--emma", "a.pth", "a.weights.h5"], 1, "error: Unknown command line flag 'emma'"),
        (["--float16", "a.pth", "a.weights.h5"], 1, "error: --float16 is for a .keras file"),
        (["none.pth", "a.weights.h5"], 1, "error: No such file or directory: none.pth"),
        (["none.keras", "a.weights.h5"], 1, "error: File not found"),
    ],
)
def test_mistakes_in_the_command_of_the_converter(tmp_path, arguments, code, line):
    result = run_module(tmp_path, "keras_dsnet.weights", *arguments)
    assert result.returncode == code
    assert line in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("error: ") == code


def test_the_converter_leaves_nothing_half_written(checkpoint, tmp_path):
    with pytest.raises(UserError, match=r"must end with \.weights\.h5"):
        convert_checkpoint(checkpoint, tmp_path / "net.h5")
    (tmp_path / "cut.pth.tar").write_bytes(checkpoint.read_bytes()[:9000])
    with pytest.raises(UserError, match="cut"):
        convert_checkpoint(tmp_path / "cut.pth.tar", tmp_path / "net.weights.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["cut.pth.tar"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return cache_folder()


@pytest.fixture
def release(checkpoint, cache, monkeypatch):
    """Makes a local file the release."""
    preset = dataclasses.replace(PRESETS["imagenet"], url=checkpoint.as_uri(), classes=20)
    monkeypatch.setitem(PRESETS, "imagenet", preset)
    return checkpoint


def test_imagenet_weights_are_fetched_and_converted_once(release, cache):
    first = DSMobileNet(weights="imagenet", input_shape=(32, 32, 3))
    files = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert set(files) == {"net.pth.tar", "net.weights.h5"}
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        again = DSMobileNet(weights="imagenet", input_shape=(32, 32, 3))
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 2
    assert files == {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    for value, expected in zip(again.get_weights(), first.get_weights(), strict=True):
        np.testing.assert_array_equal(value, expected)


def test_the_released_gates_are_not_trained(release):
    model = DSMobileNet(weights="imagenet", input_shape=(32, 32, 3))
    assert not model.gates_trained
    with pytest.warns(UserWarning, match="not trained"):
        outputs = model(IMAGES)
    np.testing.assert_allclose(outputs, model(IMAGES, path=3), atol=1e-6)
    np.testing.assert_array_equal(model.route(IMAGES), 3)


def test_a_file_that_was_put_into_the_cache(checkpoint, cache):
    cache.mkdir(parents=True)
    (cache / "net.pth.tar").write_bytes(checkpoint.read_bytes())
    assert released_weights("http://127.0.0.1:9/net.pth.tar").name == "net.weights.h5"


def test_without_a_network_the_line_says_where_to_put_the_file(cache):
    url = "http://127.0.0.1:9/net.pth.tar"
    with pytest.raises(UserError, match="cannot download") as caught:
        released_weights(url)
    assert str(cache / "net.pth.tar") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(cache.iterdir())


def sha256_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_with_another_checksum_never_stays(checkpoint, cache):
    url, right = checkpoint.as_uri(), sha256_of(checkpoint)
    with pytest.raises(UserError, match=f"SHA-256 is {right} instead of {'0' * 64}$") as caught:
        released_weights(url, "0" * 64)
    assert "\n" not in str(caught.value)
    assert not list(cache.iterdir())
    assert released_weights(url, right.upper(), classes=20).exists()


def spoil_variance(state):
    next(v for k, v in state.items() if k.endswith("running_var"))[0] = -1


def zero_a_kernel(state):
    state["conv_stem.weight"][:] = 0


def huge_value(state):
    state["classifier.weight"][3, 3] = 1e6


def new_statistics(state):
    for name, value in state.items():
        if "running_" in name:
            value[:] = name.endswith("var")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_variance, "running_var' has the variance -1$"),
        (zero_a_kernel, "conv_stem.weight' is 0 everywhere"),
        (huge_value, r"classifier.weight' has the value 1e\+06"),
        (new_statistics, "seen no image"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_tensors_that_no_trained_network_has(spoil, message, checkpoint):
    tensors = {name: np.array(value) for name, value in read_checkpoint(checkpoint).items()}
    check_trained("net.pth.tar", tensors, classes=20)
    spoil(tensors)
    with pytest.raises(UserError, match=f"net.pth.tar does not hold a trained network.*{message}"):
        check_trained("net.pth.tar", tensors, classes=20)


def test_a_file_of_other_tensors_never_stays(checkpoint, cache, tmp_path, write_torch_file):
    state = {name: np.array(value) for name, value in read_checkpoint(checkpoint).items()}
    spoil_variance(state)
    wrong = write_torch_file(tmp_path / "net.pth.tar", {"state_dict": state})
    with pytest.raises(UserError, match="does not hold a trained network") as caught:
        released_weights(wrong.as_uri(), classes=20)
    assert "\n" not in str(caught.value)
    assert not list(cache.iterdir())


def test_a_file_of_other_classes_never_stays(checkpoint, cache):
    with pytest.raises(UserError, match="20 classes instead of 1000"):
        released_weights(checkpoint.as_uri(), classes=1000)
    assert not list(cache.iterdir())


@pytest.mark.parametrize("data", [b"", b"<html>Not Found</html>", None])
def test_a_broken_download_never_stays(checkpoint, cache, tmp_path, data):
    broken = tmp_path / "net.pth.tar"
    broken.write_bytes(checkpoint.read_bytes()[:100_000] if data is None else data)
    with pytest.raises(UserError, match=r"net\.pth\.tar"):
        released_weights(broken.as_uri())
    assert not list(cache.iterdir())
    # What a killed download left behind is not taken for the file either.
    temporary_path(cache / "net.pth.tar").write_bytes(b"half")
    assert released_weights(checkpoint.as_uri()).exists()
    assert {path.name for path in cache.iterdir()} == {"net.pth.tar", "net.weights.h5"}


def test_downloads_at_the_same_time_do_not_disturb_each_other(checkpoint, cache, monkeypatch):
    url, download = checkpoint.as_uri(), keras.utils.get_file

    def as_another_process_does_the_same(*arguments, **options):
        path = download(*arguments, **options)
        monkeypatch.setattr(keras.utils, "get_file", download)
        with monkeypatch.context() as patch:
            # A process that runs as long as this one.
            patch.setattr(os, "getpid", os.getppid)
            released_weights(url)
        return path

    monkeypatch.setattr(keras.utils, "get_file", as_another_process_does_the_same)
    assert released_weights(url).exists()
    assert {path.name for path in cache.iterdir()} == {"net.pth.tar", "net.weights.h5"}


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch, checkpoint):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot write the cache .*KERAS_HOME"):
        released_weights(checkpoint.as_uri())
