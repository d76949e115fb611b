"""Files of `torch.save`, read without PyTorch.

Pickled code is never executed: only tensors and plain values can be unpickled.
"""

import collections
import io
import os
import pathlib
import pickle
import pickletools
import zipfile

import numpy as np
import tensorflow as tf

from keras_dsnet.utils import UserError

_ZIP_START = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_LENGTH_BYTES = 8

_DTYPES = {
    "DoubleStorage": np.dtype("float64"),
    "FloatStorage": np.dtype("float32"),
    "HalfStorage": np.dtype("float16"),
    "BFloat16Storage": np.dtype(tf.bfloat16.as_numpy_dtype),
    "LongStorage": np.dtype("int64"),
    "IntStorage": np.dtype("int32"),
    "ShortStorage": np.dtype("int16"),
    "CharStorage": np.dtype("int8"),
    "ByteStorage": np.dtype("uint8"),
    "BoolStorage": np.dtype("bool"),
}

# The opcodes that pickle's protocols 2 to 4 use for plain values, tensors and objects with
# attributes.
_OPCODE_NAMES = """
PROTO FRAME STOP MARK POP POP_MARK DUP MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET
NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
STRING BINSTRING SHORT_BINSTRING UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8
SHORT_BINBYTES BINBYTES BINBYTES8
EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS
EMPTY_DICT DICT SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET
GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD BINPERSID
"""
_OPCODES = frozenset(_OPCODE_NAMES.split())
_MEMO_OPCODES = ("PUT", "BINPUT", "LONG_BINPUT")


class TorchFile:
    """A file that `torch.save` wrote, in the zip format or the older legacy format.

    It is a context manager that opens and closes the file. The values and the structure are read
    at once, and each tensor when its `numpy()` is called inside the `with` block:
    `file.content["state_dict"]["conv_stem.weight"].numpy()`.

    Args:
        path: Path of the file.

    Attributes:
        path: `pathlib.Path` of the file.
        content: The object that was saved, with a `StoredTensor` for each tensor. Set on entering
            the block.

    Raises:
        OSError: The file cannot be opened.
        UserError: The file is damaged, was not written by `torch.save`, or refers to anything that
            weights do not need.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = pathlib.Path(path)

    def __enter__(self) -> "TorchFile":
        self._file = self.path.open("rb")
        self._num_bytes = self.path.stat().st_size
        try:
            self.content = self._read()
        except UserError as error:
            self._file.close()
            raise UserError(f"cannot read the checkpoint {self.path}: {error}") from None
        except Exception as error:
            # A damaged or hostile file can make Python raise almost any error.
            self._file.close()
            raise UserError(
                f"cannot read the checkpoint {self.path}: it is damaged "
                f"({type(error).__name__}: {' '.join(str(error).split())})"
            ) from error
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def _read(self):
        start = self._file.read(len(_ZIP_START))
        self._file.seek(0)
        if not start:
            raise UserError("the file is empty")
        if start == _ZIP_START:
            return self._read_zip()
        if start[:1] == b"\x80":
            return self._read_legacy()
        if start.lstrip()[:1] == b"<":
            raise UserError("it is a web page; download the file itself")
        raise UserError("it is not a file of torch.save")

    def _unpickle(self, pickled):
        unpickler = RestrictedUnpickler(io.BytesIO(pickled), self._num_bytes)
        return unpickler.load(), unpickler.storages

    def _read_zip(self):
        try:
            archive = zipfile.ZipFile(self._file)
        except zipfile.BadZipFile as error:
            raise UserError("it is damaged or was cut off: its end is missing") from error
        entries = archive.infolist()
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > entry.compress_size:
                raise UserError(
                    f"its part {entry.filename} is compressed, which torch.save never does"
                )
        if sum(entry.file_size for entry in entries) > self._num_bytes:
            raise UserError("its parts are larger than the whole file")
        roots = [e.filename for e in entries if e.filename.split("/", 1)[1:] == ["data.pkl"]]
        if len(roots) != 1:
            raise UserError("it is a zip file without one data.pkl: not a file of torch.save")
        folder = roots[0].removesuffix("data.pkl")
        order = _byte_order(archive, f"{folder}byteorder")
        content, storages = self._unpickle(take_pickle(io.BytesIO(archive.read(roots[0]))))

        def read(storage):
            try:
                data = archive.read(f"{folder}data/{storage.key}")
            except zipfile.BadZipFile as error:
                raise UserError(f"cannot read the checkpoint {self.path}: {error}") from error
            return self._array(storage, data, order)

        for storage in storages.values():
            storage.read = read
            archive.getinfo(f"{folder}data/{storage.key}")
        return content

    def _read_legacy(self):
        magic, protocol, system = [_plain_values(self._file) for _ in range(3)]
        if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL:
            raise UserError("it is a pickle, but not one of torch.save")
        order = "<" if system.get("little_endian", True) else ">"
        content, storages = self._unpickle(take_pickle(self._file))
        keys = _plain_values(self._file)
        if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
            raise UserError("its list of storages is not that of its tensors")
        places = self._legacy_places(keys, storages, order)

        def read(storage):
            self._file.seek(places[storage.key])
            return self._array(storage, self._file.read(_num_bytes(storage)), order)

        for storage in storages.values():
            storage.read = read
        return content

    def _legacy_places(self, keys, storages, order):
        """Returns the position of each storage's data, which follow their length in the file."""
        places = {}
        for key in keys:
            length = np.frombuffer(self._file.read(_LENGTH_BYTES), f"{order}i8")
            if len(length) != 1 or length[0] != storages[key].numel:
                raise UserError(f"it was cut off or is damaged at storage {key!r}")
            places[key] = self._file.tell()
            if places[key] + _num_bytes(storages[key]) > self._num_bytes:
                raise UserError(f"it was cut off in storage {key!r}")
            self._file.seek(_num_bytes(storages[key]), io.SEEK_CUR)
        return places

    def _array(self, storage, data, order):
        if len(data) != _num_bytes(storage):
            raise UserError(
                f"cannot read the checkpoint {self.path}: storage {storage.key!r} has {len(data)} "
                f"bytes instead of {_num_bytes(storage)}"
            )
        array = np.frombuffer(data, storage.dtype)
        return array.byteswap() if order == ">" else array


def _plain_values(file):
    """Reads one pickle that holds no tensor."""
    return RestrictedUnpickler(io.BytesIO(take_pickle(file)), num_bytes=0).load()


def _num_bytes(storage):
    return storage.numel * storage.dtype.itemsize


def _byte_order(archive, name):
    if name not in archive.namelist():
        return "<"
    return {b"little": "<", b"big": ">"}[archive.read(name)]


def take_pickle(file):
    """Reads one pickle from a binary file without executing it.

    Args:
        file: Binary file at the first byte of the pickle. Afterwards it is at the byte after the
            last.

    Returns:
        Bytes of the pickle.

    Raises:
        UserError: The pickle is incomplete, or uses operations that pickles of checkpoints do not.
    """
    start, size = file.tell(), 0
    try:
        for opcode, argument, _ in pickletools.genops(file):
            size += 1
            if opcode.name not in _OPCODES:
                raise UserError(f"its pickle uses the operation {opcode.name}")
            # The unpickler would allocate a list up to this index.
            if opcode.name in _MEMO_OPCODES and not 0 <= argument <= size:
                raise UserError(f"its pickle stores an object at the memo index {argument}")
    except UserError:
        raise
    except Exception as error:
        raise UserError("its pickle is incomplete or not a pickle") from error
    end = file.tell()
    file.seek(start)
    return file.read(end - start)


class RestrictedUnpickler(pickle.Unpickler):
    """An unpickler that reads weights without importing anything.

    A pickle is a program that may call everything it can import. This unpickler knows only tensors,
    storages, `OrderedDict`, `argparse.Namespace` and plain values. The few names that checkpoints
    use refer to substitutes; any other name ends the loading.

    Args:
        pickled: Binary file that holds one pickle, as `take_pickle` returns it.
        num_bytes: Int, size of the checkpoint's file. No storage can be larger.

    Attributes:
        storages: Dict that maps keys to the `Storage` objects that the pickle refers to.
    """

    def __init__(self, pickled, num_bytes):
        super().__init__(pickled)
        self.num_bytes = num_bytes
        self.storages = {}
        # A separate class for each file, because a pickle can set attributes of a class.
        namespace = type("Namespace", (), {})
        self._names = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("argparse", "Namespace"): namespace,
            ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
            ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
            ("torch", "Size"): tuple,
        }

    def find_class(self, module, name):
        if module in ("torch", "torch.cuda") and name in _DTYPES:
            return name
        try:
            return self._names[module, name]
        except KeyError:
            raise UserError(
                f"it asks for '{module}.{name}', which no checkpoint of weights needs; only "
                "tensors, OrderedDict, argparse.Namespace and plain values are read"
            ) from None

    def persistent_load(self, pid):
        kind, dtype, key, _, numel, *rest = pid
        known = kind == "storage" and type(dtype) is str and dtype in _DTYPES
        if not known or type(key) is not str or type(numel) is not int or any(rest):
            raise UserError("it refers to something that is not a tensor's storage")
        itemsize = _DTYPES[dtype].itemsize
        if not 0 <= numel * itemsize <= self.num_bytes:
            raise UserError(
                f"it declares a storage of {numel} elements, more than the {self.num_bytes:,} "
                "bytes of the whole file"
            )
        storage = self.storages.setdefault(key, Storage(key, _DTYPES[dtype], numel))
        if storage.numel != numel or storage.dtype != _DTYPES[dtype]:
            raise UserError(f"it describes storage {key!r} twice and differently")
        return storage


class _RebuildTensor:
    """Replaces `torch._utils._rebuild_tensor_v2`. Slots keep a pickle from setting attributes."""

    __slots__ = ()

    def __call__(self, storage, offset, shape, strides, *_):
        return StoredTensor(storage, offset, shape, strides)


class _RebuildParameter:
    """Replaces `torch._utils._rebuild_parameter`."""

    __slots__ = ()

    def __call__(self, tensor, *_):
        if not isinstance(tensor, StoredTensor):
            raise UserError("a parameter in it is not a tensor")
        return tensor


class StoredTensor:
    """A tensor in a file, which is read when `numpy` is called.

    Args:
        storage: `Storage` that holds the elements.
        offset: Int, index of the first element in the storage.
        shape: Tuple of ints.
        strides: Tuple of ints, in elements.

    Raises:
        UserError: The tensor is not inside its storage.
    """

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage, offset, shape, strides):
        sizes = (offset, *shape, *strides)
        if not isinstance(storage, Storage) or not all(type(n) is int and n >= 0 for n in sizes):
            raise UserError("a tensor in it has no storage or no shape")
        num_elements = np.prod(shape, dtype=object)
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides))
        # With a stride of 0 a single number could claim to be a tensor of any size.
        if len(shape) != len(strides) or num_elements > storage.numel:
            raise UserError(f"a tensor in it of shape {list(shape)} is larger than its storage")
        if num_elements and last >= storage.numel:
            raise UserError(f"a tensor in it of shape {list(shape)} reaches beyond its storage")
        self.storage = storage
        self.offset = offset
        self.shape = shape
        self.strides = strides

    @property
    def dtype(self) -> np.dtype:
        """The NumPy dtype of the elements."""
        return self.storage.dtype

    def numpy(self) -> np.ndarray:
        """Reads the tensor and returns it as a NumPy array."""
        flat = self.storage.read(self.storage)
        if not np.prod(self.shape):
            return np.zeros(self.shape, self.dtype)
        strides = [stride * self.dtype.itemsize for stride in self.strides]
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides)
        return np.array(view)


class Storage:
    """A flat array in a file, which tensors are views of.

    Args:
        key: Str, the name of the storage in the file.
        dtype: `np.dtype` of the elements.
        numel: Int, number of elements.

    Attributes:
        read: Function that takes the storage and returns its elements as a flat array. The
            `TorchFile` sets it.
    """

    __slots__ = ("dtype", "key", "numel", "read")

    def __init__(self, key, dtype, numel):
        self.key = key
        self.dtype = dtype
        self.numel = numel
        self.read = None
