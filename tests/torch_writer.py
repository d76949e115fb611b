"""Fixtures that write files as `torch.save` does, without PyTorch."""

import collections
import dataclasses
import io
import pickle
import struct
import zipfile

import numpy as np
import pytest

_STORAGES = {"f4": "FloatStorage", "f2": "HalfStorage", "i8": "LongStorage", "f8": "DoubleStorage"}


class _Global:
    """An object that is pickled as a name, whether or not the name exists."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class _Call:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class _Tensor:
    def __init__(self, key, array):
        self.key, self.array = key, array


class _Pickler(pickle._Pickler):
    """The Python pickler, extended to write names that do not exist here."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_name(self, obj):
        self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())

    def save_tensor(self, obj):
        self.save(_Global("torch._utils", "_rebuild_tensor_v2"))
        strides = tuple(n // obj.array.itemsize for n in obj.array.strides)
        storage = _Storage(obj)
        self.save((storage, 0, obj.array.shape, strides, False, collections.OrderedDict()))
        self.write(pickle.REDUCE)

    def save_call(self, obj):
        self.save(obj.function)
        self.save(obj.arguments)
        self.write(pickle.REDUCE)

    def persistent_id(self, obj):
        if not isinstance(obj, _Storage):
            return None
        name = _Global("torch", _STORAGES[obj.array.dtype.str[1:]])
        rest = (None,) if self.legacy else ()
        return ("storage", name, obj.key, "cpu", obj.array.size, *rest)

    dispatch[_Global] = save_name
    dispatch[_Tensor] = save_tensor
    dispatch[_Call] = save_call


class _Storage:
    def __init__(self, tensor):
        self.key, self.array = tensor.key, tensor.array


def _dumps(content, legacy):
    file = io.BytesIO()
    pickler = _Pickler(file, protocol=2)
    pickler.legacy = legacy
    pickler.dump(content)
    return file.getvalue()


def _replace_arrays(content, tensors):
    if isinstance(content, np.ndarray):
        tensors.append(_Tensor(str(len(tensors)), content))
        return tensors[-1]
    if isinstance(content, dict):
        pairs = [(key, _replace_arrays(value, tensors)) for key, value in content.items()]
        return type(content)(pairs)
    return content


def _write(path, content, legacy=False, compression=zipfile.ZIP_STORED):
    tensors = []
    pickled = _dumps(_replace_arrays(content, tensors), legacy)
    data = {tensor.key: tensor.array.tobytes() for tensor in tensors}
    if legacy:
        with path.open("wb") as file:
            for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
                file.write(pickle.dumps(value, protocol=2))
            file.write(pickled)
            file.write(pickle.dumps(list(data), protocol=2))
            for tensor in tensors:
                file.write(struct.pack("<q", tensor.array.size) + data[tensor.key])
        return path
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/byteorder", "little")
        for key, value in data.items():
            file.writestr(f"archive/data/{key}", value)
    return path


@pytest.fixture(scope="session")
def write_torch_file():
    """Writes plain values and arrays as `torch.save` does: (path, content, legacy=False)."""
    return _write


@pytest.fixture(scope="session")
def torch_name():
    """Makes an object that is pickled as a name: (module, name)."""
    return _Global


@pytest.fixture(scope="session")
def torch_call():
    """Makes an object that is pickled as a call: (function, *arguments)."""
    return _Call


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A checkpoint of the full DS-MBNet for 20 classes, with random weights."""
    from keras_dsnet.applications import DSMobileNet

    from keras_dsnet.weights.ds_mbnet import mobilenet_tensors

    generator = np.random.default_rng(0)
    state = collections.OrderedDict(
        (name, generator.uniform(0.5, 1.5, target.shape).astype("float32"))
        for name, target in mobilenet_tensors(DSMobileNet(attention="sigmoid", classes=20)).items()
    )
    return _write(tmp_path_factory.mktemp("release") / "net.pth.tar", {"state_dict": state})


@pytest.fixture(scope="session")
def steady_checkpoint(tmp_path_factory):
    """A checkpoint of the full DS-MBNet for 20 classes, whose features keep their scale.

    Its kernels are random and of both signs, so that images have different, finite outputs.
    """
    from keras_dsnet.applications import DSMobileNet

    from keras_dsnet.weights.ds_mbnet import mobilenet_tensors

    generator, state = np.random.default_rng(0), collections.OrderedDict()
    network = DSMobileNet(attention="sigmoid", classes=20)
    for name, target in mobilenet_tensors(network).items():
        # Sigmoid attention halves the features.
        scale = (4 / np.prod(target.shape[1:])) ** 0.5 if len(target.shape) > 1 else 0.1
        values = generator.normal(scale=scale, size=target.shape)
        if name.endswith("running_var") or ("bn" in name and name.endswith("weight")):
            values = 1 + np.abs(values)
        state[name] = values.astype("float32")
    return _write(tmp_path_factory.mktemp("steady") / "net.pth.tar", {"state_dict": state})


@pytest.fixture
def released_checkpoint(steady_checkpoint, tmp_path, monkeypatch):
    """Makes a local file in the format of the authors' code the released checkpoint."""
    from keras_dsnet.applications.ds_mobilenet import PRESETS

    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    preset = dataclasses.replace(PRESETS["imagenet"], url=steady_checkpoint.as_uri(), classes=20)
    monkeypatch.setitem(PRESETS, "imagenet", preset)
