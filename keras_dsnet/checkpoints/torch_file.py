"""Files of `torch.save`, read without PyTorch."""

import io
import pathlib
import zipfile

import numpy as np

from keras_dsnet.checkpoints.restricted_unpickler import RestrictedUnpickler, take_pickle
from keras_dsnet.utils import UserError

_ZIP_START = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_LENGTH_BYTES = 8


class TorchFile:
    """A file that `torch.save` wrote, in the zip format or in the older legacy format.

    A context manager: tensors are read from the file when they are asked for, inside the block.

    Args:
        path: of the file.

    Raises:
        OSError: it cannot be opened.
        UserError: it is damaged, or not such a file, or asks for more than weights need.

    Example:

    >>> with TorchFile("model.pth.tar") as file:
    ...     kernel = file.content["state_dict"]["conv_stem.weight"].numpy()
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)

    def __enter__(self):
        self._file = self.path.open("rb")
        self._num_bytes = self.path.stat().st_size
        try:
            self.content = self._read()
        except UserError as error:
            self._file.close()
            raise UserError(f"cannot read the checkpoint {self.path}: {error}") from None
        except Exception as error:
            # Whatever else a damaged or hostile file makes Python raise.
            self._file.close()
            raise UserError(
                f"cannot read the checkpoint {self.path}: it is damaged "
                f"({type(error).__name__}: {' '.join(str(error).split())})"
            ) from error
        return self

    def __exit__(self, *exception):
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
                raise UserError(f"its part {entry.filename} is compressed; torch.save never does")
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
        """Returns where the data of each storage begin: behind their length, one after another."""
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
    """Reads one pickle of plain values."""
    return RestrictedUnpickler(io.BytesIO(take_pickle(file)), num_bytes=0).load()


def _num_bytes(storage):
    return storage.numel * storage.dtype.itemsize


def _byte_order(archive, name):
    if name not in archive.namelist():
        return "<"
    return {b"little": "<", b"big": ">"}[archive.read(name)]
