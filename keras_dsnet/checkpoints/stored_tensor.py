"""Tensors as a PyTorch checkpoint stores them: views of flat storages."""

import numpy as np
import tensorflow as tf

from keras_dsnet.utils import UserError

DTYPES = {
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


class Storage:
    """A flat array that tensors are views of.

    Args:
        key: str, its name in the file.
        dtype: `np.dtype`.
        numel: int, how many elements it has.
    """

    __slots__ = ("dtype", "key", "numel", "read")

    def __init__(self, key, dtype, numel):
        self.key = key
        self.dtype = dtype
        self.numel = numel
        self.read = None


class StoredTensor:
    """A tensor that is read when it is asked for.

    Args:
        storage: `Storage`.
        offset: int, its first element in the storage.
        shape: tuple of ints.
        strides: tuple of ints, in elements.

    Raises:
        UserError: it does not lie inside its storage.
    """

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage, offset, shape, strides):
        whole = (offset, *shape, *strides)
        if not isinstance(storage, Storage) or not all(type(n) is int and n >= 0 for n in whole):
            raise UserError("a tensor in it has no storage or no shape")
        num_elements = np.prod(shape, dtype=object)
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides))
        # A stride of 0 could make a tensor of any size from one number.
        if len(shape) != len(strides) or num_elements > storage.numel:
            raise UserError(f"a tensor in it of shape {list(shape)} is larger than its storage")
        if num_elements and last >= storage.numel:
            raise UserError(f"a tensor in it of shape {list(shape)} reaches beyond its storage")
        self.storage = storage
        self.offset = offset
        self.shape = shape
        self.strides = strides

    @property
    def dtype(self):
        """`np.dtype` of the elements."""
        return self.storage.dtype

    def numpy(self):
        """Reads the tensor and returns it as an array."""
        flat = self.storage.read(self.storage)
        if not np.prod(self.shape):
            return np.zeros(self.shape, self.dtype)
        strides = [stride * self.dtype.itemsize for stride in self.strides]
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides)
        return np.array(view)
