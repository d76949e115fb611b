"""Files of torch.save: contents that are read, and contents that are rejected."""

import argparse
import collections
import io
import pickle
import random
import struct
import zipfile

import numpy as np
import pytest

from keras_dsnet.utils import UserError
from keras_dsnet.weights import TorchFile
from keras_dsnet.weights.torch_file import StoredTensor

ARRAYS = {
    "kernel": np.arange(24, dtype="float32").reshape(2, 3, 4),
    "half": np.array([0.5, -2.0], "float16"),
    "count": np.array(7),
    "empty": np.zeros((0, 3), "float32"),
}


def read(path):
    with TorchFile(path) as file:
        return file.content, {
            key: value.numpy() for key, value in file.content["state_dict"].items()
        }


@pytest.fixture(params=[False, True], ids=["zip", "legacy"])
def legacy(request):
    return request.param


@pytest.fixture
def good(tmp_path, write_torch_file, legacy):
    content = {
        "epoch": 3,
        "state_dict": collections.OrderedDict(ARRAYS),
        "args": {"lr": 0.1, "name": "x", "none": None, "list": [1, (2, 3)], "yes": True},
    }
    return write_torch_file(tmp_path / "good.pth.tar", content, legacy)


def test_tensors_and_plain_values(good):
    content, arrays = read(good)
    assert content["epoch"] == 3
    assert content["args"] == {
        "lr": 0.1, "name": "x", "none": None, "list": [1, (2, 3)], "yes": True
    }  # fmt: skip
    for name, expected in ARRAYS.items():
        assert arrays[name].dtype == expected.dtype
        np.testing.assert_array_equal(arrays[name], expected)


@pytest.mark.parametrize("name", ["tiny_zip", "tiny_legacy", "tiny_zip_module_prefix"])
def test_the_authors_checkpoints(shared_dir, name):
    with np.load(shared_dir / "parity" / "tiny_state.npz") as state:
        expected = {key: state[key] for key in state.files}
    content, arrays = read(shared_dir / "parity" / f"{name}.pth.tar")
    assert vars(content["args"])["model"] == "slimmable_mbnet_v1_bn_uniform"
    assert not isinstance(content["args"], argparse.Namespace)
    arrays = {key.removeprefix("module."): value for key, value in arrays.items()}
    assert arrays.keys() == expected.keys()
    for key, value in arrays.items():
        np.testing.assert_array_equal(value, expected[key].astype(value.dtype))


def test_views_of_one_storage(tmp_path, write_torch_file):
    base = np.arange(12, dtype="float32")
    file = write_torch_file(tmp_path / "x.pth", {"state_dict": {"base": base}})
    with TorchFile(file) as opened:
        tensor = opened.content["state_dict"]["base"]
        view = type(tensor)(tensor.storage, 1, (2, 3), (1, 4))
        np.testing.assert_array_equal(view.numpy(), base[1:].reshape(-1)[[[0, 4, 8], [1, 5, 9]]])


HOSTILE = {
    "os.system": ("os", "system", ("touch /tmp/never",)),
    "posix.system": ("posix", "system", ("touch /tmp/never",)),
    "builtins.eval": ("builtins", "eval", ("1 + 1",)),
    "builtins.getattr": ("builtins", "getattr", ("x", "y")),
    "subprocess.Popen": ("subprocess", "Popen", (["ls"],)),
    "torch.load": ("torch", "load", ("x",)),
    "numpy.load": ("numpy", "load", ("x",)),
    "collections.namedtuple": ("collections", "namedtuple", ("x", "y")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_other_names_are_refused(tmp_path, write_torch_file, torch_name, torch_call, legacy, name):
    module, function, arguments = HOSTILE[name]
    content = {"state_dict": torch_call(torch_name(module, function), *arguments)}
    path = write_torch_file(tmp_path / "x.pth", content, legacy)
    with pytest.raises(UserError, match=rf"asks for '{name}'"):
        read(path)


def test_nested_calls_are_refused(tmp_path, write_torch_file, torch_name, torch_call, legacy):
    inner = torch_call(torch_name("builtins", "eval"), "__import__('os')")
    outer = torch_call(torch_name("collections", "OrderedDict"), [("a", inner)])
    path = write_torch_file(tmp_path / "x.pth", {"state_dict": outer}, legacy)
    with pytest.raises(UserError, match=r"builtins\.eval"):
        read(path)


def test_dotted_names_do_not_reach_around(tmp_path, write_torch_file, torch_name, torch_call):
    call = torch_call(torch_name("collections", "OrderedDict.fromkeys.__self__"), "x")
    path = write_torch_file(tmp_path / "x.pth", {"state_dict": call})
    with pytest.raises(UserError, match="asks for"):
        read(path)


def test_stand_ins_cannot_be_changed(tmp_path, good):
    for state in ({"x": 1}, (None, {"__call__": 1})):
        pickled = (
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + pickle.dumps(state, 2)[2:-1] + b"b."
        )
        path = tmp_path / "x.pth"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("archive/data.pkl", pickled)
        with pytest.raises(UserError, match="damaged"):
            read(path)
    read(good)


def _rewrite_pickle(path, change):
    """Changes the pickle inside a zip file."""
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    parts["archive/data.pkl"] = change(parts["archive/data.pkl"])
    with zipfile.ZipFile(path, "w") as file:
        for name, data in parts.items():
            file.writestr(name, data)
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # The storage of 24 numbers claims to have 2**31 - 1.
        (b"K\x18", b"J\xff\xff\xff\x7f", "2147483647 elements"),
        # The shape (2, 3, 4) becomes (200, 3, 4), then a negative one.
        (b"K\x02K\x03K\x04\x87", b"K\xc8K\x03K\x04\x87", "larger than its storage"),
        (b"K\x02K\x03K\x04\x87", b"J\xfe\xff\xff\xffK\x03K\x04\x87", "no shape"),
        # The strides (12, 4, 1) become (99, 4, 1).
        (b"K\x0cK\x04K\x01\x87", b"KcK\x04K\x01\x87", "reaches beyond its storage"),
        # An object has a memo index so large that a list up to it would fill the memory.
        (b"q\x00", b"r\xff\xff\xff\xff", "stores an object at the memo index 4294967295"),
    ],
)
def test_huge_and_impossible_sizes(tmp_path, write_torch_file, old, new, message):
    path = write_torch_file(tmp_path / "x.pth", {"state_dict": {"kernel": ARRAYS["kernel"]}})
    _rewrite_pickle(path, lambda pickled: pickled.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        read(path)


def test_a_stride_of_zero_makes_no_huge_tensor(tmp_path, write_torch_file):
    path = write_torch_file(tmp_path / "x.pth", {"state_dict": {"kernel": ARRAYS["kernel"]}})
    huge = b"J\xff\xff\xff\x7fK\x03K\x04\x87"
    _rewrite_pickle(
        path,
        lambda p: p.replace(b"K\x02K\x03K\x04\x87", huge).replace(b"K\x0cK\x04K\x01", b"K\0K\0K\0"),
    )
    with pytest.raises(UserError, match="larger than its storage"):
        read(path)


@pytest.mark.parametrize("opcode", [b"\x82\x01", b"i", b"\x96" + struct.pack("<Q", 1 << 40)])
def test_operations_that_no_checkpoint_uses(tmp_path, opcode):
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x04" + opcode + b"os\nsystem\n.")
    with pytest.raises(UserError, match=r"operation|incomplete"):
        read(path)


def test_a_file_that_was_cut_at_every_kibibyte(tmp_path, write_torch_file, legacy):
    arrays = {f"block.{i}.weight": np.full(2000, i, "float32") for i in range(24)}
    whole = write_torch_file(tmp_path / "x.pth", {"state_dict": arrays}, legacy).read_bytes()
    assert len(whole) > 190_000
    for cut in range(1024, len(whole), 1024):
        refuses(tmp_path / "cut.pth.tar", whole[:cut])


def test_a_file_that_was_cut_anywhere(tmp_path, good):
    whole = good.read_bytes()
    for cut in range(1, len(whole), 7):
        refuses(tmp_path / "cut.pth.tar", whole[:cut])


@pytest.mark.parametrize("name", ["tiny_zip", "tiny_legacy"])
def test_the_authors_checkpoints_cut(shared_dir, tmp_path, name):
    whole = (shared_dir / "parity" / f"{name}.pth.tar").read_bytes()
    for cut in range(1024, len(whole), 100 * 1024):
        refuses(tmp_path / "cut.pth.tar", whole[:cut])


def refuses(path, data):
    """Checks that reading a file of `data` raises one line that names the file."""
    path.write_bytes(data)
    with pytest.raises(UserError, match=path.name) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_damaged_bytes_never_raise_anything_else(tmp_path, good):
    whole, generator = good.read_bytes(), random.Random(0)
    path, refused = tmp_path / "damaged.pth.tar", 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(3):
            data[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(data)
        try:
            with TorchFile(path) as file:
                for tensor in tensors_in(file.content):
                    tensor.numpy()
        except UserError:
            refused += 1
    assert 50 < refused < 300


def tensors_in(content):
    """Yields the tensors in a content whose names may be damaged."""
    for value in content.values() if isinstance(content, dict) else ():
        if isinstance(value, StoredTensor):
            yield value
        yield from tensors_in(value)


def test_a_compressed_file_is_refused_before_it_grows(tmp_path, write_torch_file):
    zeros = np.zeros(5_000_000, "float32")
    path = tmp_path / "bomb.pth"
    write_torch_file(path, {"state_dict": {"zeros": zeros}}, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1e5
    with pytest.raises(UserError, match="is compressed"):
        read(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>Not Found</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not a file of torch.save"),
        (pickle.dumps(1, 2) * 3, "not one of torch.save"),
        (b"\x80\x02", "incomplete"),
    ],
)
def test_other_files(tmp_path, data, message):
    path = tmp_path / "x.pth.tar"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        read(path)


def test_a_zip_file_of_something_else(tmp_path):
    path = tmp_path / "x.pth.tar"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "hello")
    path.write_bytes(file.getvalue())
    with pytest.raises(UserError, match="without one data"):
        read(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.pth.tar")
