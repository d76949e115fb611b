"""Weights files of half the size."""

import pathlib
import re
import tempfile

import h5py
import numpy as np

from keras_dsnet.utils import UserError
from keras_dsnet.utils.atomic_file import atomic_path

_SUFFIX = ".weights.h5"


def save_compact_weights(model, path):
    """Saves the weights of a network in float16; `load_weights` reads them like any other.

    The moving variances of batch norm stay float32: they span more than float16 does.

    Args:
        model: a `DynamicSlimmableNetwork`.
        path: of the `.weights.h5` file, which appears whole or not at all.

    Raises:
        OSError: it cannot be written.
        UserError: its name has another ending, or a value is too large for float16.
    """
    path = pathlib.Path(path)
    if not path.name.endswith(_SUFFIX):
        raise UserError(f"the weights file {path} must end with {_SUFFIX}")
    with tempfile.TemporaryDirectory() as folder, atomic_path(path) as compact:
        whole = pathlib.Path(folder) / f"whole{_SUFFIX}"
        model.save_weights(whole)
        with h5py.File(whole) as source, h5py.File(compact, "w") as target:
            source.visititems(lambda name, item: _copy(name, item, target))


def _copy(name, item, target):
    if isinstance(item, h5py.Group):
        target.require_group(name).attrs.update(item.attrs)
        return
    value = np.array(item)
    if value.dtype == np.float32 and not _is_variance(name):
        with np.errstate(over="ignore"):
            value = value.astype("float16")
        if not np.all(np.isfinite(value)):
            raise UserError(f"the variable {name} has values that float16 cannot hold")
    target[name] = value


def _is_variance(name):
    """Whether a part of a weights file holds moving variances.

    Keras names a layer there by its class, and its variables by numbers: gamma, beta, mean,
    variance.
    """
    return re.search(r"switchable_batch_normalization(_\d+)?/vars/3$", name) is not None
