"""The supernet that the authors released, downloaded and converted once into the cache."""

import dataclasses
import hashlib
import os
import socket
import struct
import threading
import time

import keras
import numpy as np
import pytest
from keras_dsnet.applications import DSMobileNet
from keras_dsnet.applications.ds_mobilenet import PRESETS

from keras_dsnet.utils import UserError
from keras_dsnet.utils.atomic_file import temporary_path
from keras_dsnet.weights import read_checkpoint
from keras_dsnet.weights.released_weights import cache_folder, check_trained, released_weights

IMAGES = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return cache_folder()


@pytest.fixture
def release(checkpoint, cache, monkeypatch):
    """Makes a local file the released checkpoint."""
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
    # The remains of a download that was killed are not used as the file either.
    temporary_path(cache / "net.pth.tar").write_bytes(b"half")
    assert released_weights(checkpoint.as_uri()).exists()
    assert {path.name for path in cache.iterdir()} == {"net.pth.tar", "net.weights.h5"}


def test_downloads_at_the_same_time_do_not_disturb_each_other(checkpoint, cache, monkeypatch):
    url, download = checkpoint.as_uri(), keras.utils.get_file

    def as_another_process_does_the_same(*arguments, **options):
        path = download(*arguments, **options)
        monkeypatch.setattr(keras.utils, "get_file", download)
        with monkeypatch.context() as patch:
            # The writer is a process that runs as long as this one.
            patch.setattr(os, "getpid", os.getppid)
            released_weights(url)
        return path

    monkeypatch.setattr(keras.utils, "get_file", as_another_process_does_the_same)
    assert released_weights(url).exists()
    assert {path.name for path in cache.iterdir()} == {"net.pth.tar", "net.weights.h5"}


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf"])
def test_a_connection_that_breaks_is_no_fault_of_the_cache(cache, answer):
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_answer_and_reset, args=(server, answer))
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/net.pth.tar"
        with pytest.raises(UserError, match=r"cannot download http.*: put the file at .*net\.pth"):
            released_weights(url)
        thread.join()
    assert not list(cache.iterdir())


def _answer_and_reset(server, answer):
    connection, _ = server.accept()
    connection.recv(1 << 16)
    connection.sendall(answer)
    # The connection is reset instead of closed.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch, checkpoint):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot write the cache .*KERAS_HOME"):
        released_weights(checkpoint.as_uri())
