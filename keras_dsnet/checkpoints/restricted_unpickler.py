"""Unpickles what a PyTorch checkpoint may hold, and nothing that could run code."""

import collections
import pickle
import pickletools

from keras_dsnet.checkpoints.stored_tensor import DTYPES, Storage, StoredTensor
from keras_dsnet.utils import UserError

# What pickle's protocols 2 to 4 write for plain values, tensors and objects with attributes.
_NAMES = """
PROTO FRAME STOP MARK POP POP_MARK DUP MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET
NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
STRING BINSTRING SHORT_BINSTRING UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8
SHORT_BINBYTES BINBYTES BINBYTES8
EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS
EMPTY_DICT DICT SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET
GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD BINPERSID
"""
_OPCODES = frozenset(_NAMES.split())
_MEMO_OPCODES = ("PUT", "BINPUT", "LONG_BINPUT")


class RestrictedUnpickler(pickle.Unpickler):
    """An unpickler that knows tensors, storages, `OrderedDict`, `argparse.Namespace`, plain values.

    A pickle is a program that may call whatever it can import. This one can import nothing: the
    few names that checkpoints use stand for stand-ins, and every other name ends the loading.

    Args:
        pickled: bytes of one pickle, as `take_pickle` returns.
        num_bytes: int, size of the checkpoint's file: no storage in it can be larger.
    """

    def __init__(self, pickled, num_bytes):
        super().__init__(pickled)
        self.num_bytes = num_bytes
        self.storages = {}
        # Made anew for each file, since a pickle can set attributes of a class.
        namespace = type("Namespace", (), {})
        self._names = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("argparse", "Namespace"): namespace,
            ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
            ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
            ("torch", "Size"): tuple,
        }

    def find_class(self, module, name):
        if module in ("torch", "torch.cuda") and name in DTYPES:
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
        known = kind == "storage" and type(dtype) is str and dtype in DTYPES
        if not known or type(key) is not str or type(numel) is not int or any(rest):
            raise UserError("it refers to something that is not a tensor's storage")
        itemsize = DTYPES[dtype].itemsize
        if not 0 <= numel * itemsize <= self.num_bytes:
            raise UserError(
                f"it declares a storage of {numel} elements, more than the {self.num_bytes:,} "
                "bytes of the whole file"
            )
        storage = self.storages.setdefault(key, Storage(key, DTYPES[dtype], numel))
        if storage.numel != numel or storage.dtype != DTYPES[dtype]:
            raise UserError(f"it describes storage {key!r} twice and differently")
        return storage


class _RebuildTensor:
    """Stands for `torch._utils._rebuild_tensor_v2`; without attributes that a pickle could set."""

    __slots__ = ()

    def __call__(self, storage, offset, shape, strides, *_):
        return StoredTensor(storage, offset, shape, strides)


class _RebuildParameter:
    """Stands for `torch._utils._rebuild_parameter`."""

    __slots__ = ()

    def __call__(self, tensor, *_):
        if not isinstance(tensor, StoredTensor):
            raise UserError("a parameter in it is not a tensor")
        return tensor


def take_pickle(file):
    """Reads one pickle from a binary file, without executing it, and returns its bytes.

    Args:
        file: positioned at the first byte of the pickle; afterwards behind its last.

    Raises:
        UserError: it is not a whole pickle, or uses what pickles of checkpoints do not.
    """
    start, size = file.tell(), 0
    try:
        for opcode, argument, _ in pickletools.genops(file):
            size += 1
            if opcode.name not in _OPCODES:
                raise UserError(f"its pickle uses the operation {opcode.name}")
            # The unpickler would make a list of that length.
            if opcode.name in _MEMO_OPCODES and not 0 <= argument <= size:
                raise UserError(f"its pickle remembers an object at the place {argument}")
    except UserError:
        raise
    except Exception as error:
        raise UserError("its pickle is not whole or not a pickle") from error
    end = file.tell()
    file.seek(start)
    return file.read(end - start)
