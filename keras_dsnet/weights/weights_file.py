"""Weights files, with the network that each was made for."""

import json
import pathlib
import re
import tempfile

import h5py
import numpy as np

from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec
from keras_dsnet.models.spec import FAMILIES, spec_config, spec_from_config
from keras_dsnet.utils import UserError
from keras_dsnet.utils.atomic_file import atomic_path
from keras_dsnet.weights.ds_mbnet import assign_tensors, read_checkpoint

_TORCH = (".pth.tar", ".pth", ".pt")
_KERAS = ".weights.h5"
# What the config of every network has had since files hold one.
_FIELDS = {"spec", "input_shape", "classes", "include_top"}


class WeightsFile:
    """A `.weights.h5` file of a network of this package, or a checkpoint of the authors' code.

    Args:
        path: of the file.
        ema: bool or None, for a checkpoint: as of `read_checkpoint`.
        class_names: tuple of str: the names of the classes where the file, an older one, does not
            say them; None: not known.

    Attributes:
        config: dictionary for `DynamicSlimmableNetwork.from_config`, of the network that the
            weights are for; None: an older `.weights.h5` file, which does not say.
        tensors: of a checkpoint its arrays by name; None: a `.weights.h5` file.

    Raises:
        OSError: the file cannot be opened.
        UserError: it is neither, or damaged.
    """

    def __init__(self, path, ema=None, class_names=None):
        self.path = pathlib.Path(path)
        name = self.path.name
        if not name.endswith((_KERAS, *_TORCH)):
            raise UserError(
                f"weights file {path} must end with {_KERAS} or, from PyTorch, with "
                f"{', '.join(_TORCH)}"
            )
        self.tensors = None
        if name.endswith(_KERAS):
            if ema is not None:
                raise UserError(f"`ema` is for checkpoints of PyTorch. Received: ema={ema}, {path}")
            self.config = self._read_config()
        else:
            self.tensors = read_checkpoint(path, ema)
            self.config = self._config_of_checkpoint()
        if self.config is not None and self.config.get("class_names") is None:
            self.config["class_names"] = class_names

    def _read_config(self):
        with self.path.open("rb"):
            # An error of the system names the file; one of HDF5 would not.
            pass
        try:
            with h5py.File(self.path) as file:
                stored = file["vars"].get("config")
                config = None if stored is None else json.loads(bytes(np.array(stored)))
                if not (config is None or set(config) >= _FIELDS):
                    raise ValueError("its config is of something else")
                return config
        except (OSError, KeyError, ValueError) as error:
            raise UserError(
                f"weights file {self.path} is damaged, or not of a network of keras_dsnet"
            ) from error

    def _config_of_checkpoint(self):
        """The authors' network has a sigmoid; its classes are the rows of the classifier."""
        return {
            "spec": spec_config(MobileNetSpec(attention="sigmoid")),
            "input_shape": (224, 224, 3),
            "classes": len(self.tensors.get("classifier.bias", ())) or 1000,
            "include_top": True,
        }

    @property
    def spec(self):
        """The spec in `config`.

        Raises:
            UserError: it is of a family that this version does not know.
        """
        family = self.config["spec"]["family"]
        if family not in FAMILIES:
            raise UserError(f"weights file {self.path} is of an unknown family: {family!r}")
        return spec_from_config(self.config["spec"])

    def load(self, model):
        """Gives `model` the weights, and what the file says of them: routes, `gates_trained`.

        Args:
            model: a `DynamicSlimmableNetwork`.

        Raises:
            UserError: they do not fit.
        """
        if self.tensors is not None:
            assign_tensors(model, self.tensors, self.path)
            return
        try:
            model.load_weights(self.path)
        except (OSError, KeyError, ValueError) as error:
            reason = [line for line in str(error).splitlines() if "expected" in line.lower()]
            raise UserError(
                f"weights file {self.path} is not of this network: "
                f"{(reason or [str(error).splitlines()[0]])[0]}"
            ) from error


_SUFFIX = ".weights.h5"


def convert_checkpoint(source, target, ema=None, gates_trained=True, check=None):
    """Writes a checkpoint of the authors' DS-MBNet as a weights file of DS-MobileNet.

    Args:
        source: path of the checkpoint.
        target: path of the `.weights.h5` file, which appears whole or not at all.
        ema: bool or None, as of `read_checkpoint`.
        gates_trained: bool: whether the checkpoint's slimming head was trained.
        check: function of the checkpoint's tensors, a dictionary of arrays by name, that raises
            what is wrong with them; None: they only have to fit the network.

    Returns:
        The network with these weights.

    Raises:
        OSError: a file cannot be opened or written.
        UserError: the checkpoint cannot be read or is of another network, or the target's name
            does not end with `.weights.h5`.
    """
    target = pathlib.Path(target)
    if not target.name.endswith(_SUFFIX):
        raise UserError(f"the target {target} must end with {_SUFFIX}")
    file = WeightsFile(source, ema)
    if check is not None:
        check(file.tensors)
    model = DynamicSlimmableNetwork.from_config(file.config)
    file.load(model)
    model.gates_trained = gates_trained
    with atomic_path(target) as beside:
        model.save_weights(beside)
    return model


# The released slimming head scores the four narrowest widths.
SLIMMING_ROWS = 4


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


# Trained weights and statistics of normalised images stay far below.
_LARGEST_WEIGHT, _LARGEST_STATISTIC = 1e4, 1e12


def check_trained(path, tensors, classes=None):
    """Checks what a file whose checksum nobody knows must have: plausible values.

    Names, shapes and finite values are checked where the tensors are read and assigned.

    Args:
        path: what messages name.
        tensors: dictionary from a tensor's name in the authors' code to its array.
        classes: int: rows of the classifier; None: any number.

    Raises:
        UserError: a kernel is constant, a variance is negative, a value is far too large, the
            statistics are those of a network that has seen no image, or the classes are others.
    """
    rows = len(tensors.get("classifier.bias", ()))
    if classes is not None and rows != classes:
        raise UserError(
            f"the checkpoint {path} is of {rows} classes instead of {classes}: it is another file"
        )
    for name, tensor in tensors.items():
        fault = _fault(name, tensor)
        if fault:
            raise UserError(
                f"the checkpoint {path} does not hold a trained network: its tensor '{name}' "
                f"{fault}"
            )
    means = [tensor for name, tensor in tensors.items() if name.endswith("running_mean")]
    variances = [tensor for name, tensor in tensors.items() if name.endswith("running_var")]
    if means and not any(map(np.any, means)) and all(np.all(v == 1) for v in variances):
        raise UserError(
            f"the checkpoint {path} does not hold a trained network: its batch-norm statistics "
            "are those of a network that has seen no image"
        )


def _fault(name, tensor):
    if name.endswith("num_batches_tracked") or not tensor.size:
        return None
    values = tensor.astype("float32")
    largest = _LARGEST_STATISTIC if "running_" in name else _LARGEST_WEIGHT
    if np.abs(values).max() > largest:
        return f"has the value {values.flat[np.abs(values).argmax()]:.3g}"
    # Of a channel that is never active the average sinks to zero.
    if name.endswith("running_var") and values.min() < 0:
        return f"has the variance {values.min():.3g}"
    # Gates may start at zero and stay there where they are not trained.
    is_kernel = values.ndim >= 2 and values.size > 1 and ".gate." not in name
    if is_kernel and values.min() == values.max():
        return f"is {values.flat[0]:.3g} everywhere"
    return None
