"""Weights files, which record the network that they were made for."""

import contextlib
import io
import json
import os
import pathlib
import re
import tempfile
import zipfile
from collections.abc import Callable

import h5py
import numpy as np

from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec
from keras_dsnet.models.spec import FAMILIES, NetworkSpec, spec_config, spec_from_config
from keras_dsnet.utils import UserError
from keras_dsnet.utils.atomic_file import atomic_path
from keras_dsnet.weights.ds_mbnet import assign_tensors, read_checkpoint

_TORCH_ENDINGS = (".pth.tar", ".pth", ".pt")
_KERAS_ENDING, _MODEL_ENDING = ".weights.h5", ".keras"
# The name of the weights in a `.keras` file.
_WEIGHTS_OF_MODEL = "model.weights.h5"
# The keys that every stored config has, whichever version wrote it.
_CONFIG_KEYS = {"spec", "input_shape", "classes", "include_top"}


class WeightsFile:
    """The weights of a network of this package, or a checkpoint of the authors' code.

    Args:
        path: Path of a `.weights.h5` file, of the `.keras` file of a whole network, or of a
            checkpoint of PyTorch. Its ending decides how it is read.
        ema: Bool, for a checkpoint only, whether to read the moving average of its weights.
            Defaults to the average if the checkpoint has one.
        class_names: Tuple of str, the class names to use if the file does not hold any, as older
            files do not. Defaults to None for unknown names.
        crop_fraction: Float, the fraction of an image that the network is evaluated on, to use if
            the file does not hold it. Defaults to None, not known.

    Attributes:
        path: `pathlib.Path` of the file.
        config: Dict for `DynamicSlimmableNetwork.from_config` that describes the network of the
            weights. None for an older `.weights.h5` file, which does not hold one.
        tensors: Dict that maps the names of a checkpoint's tensors to arrays. None for the files of
            Keras.

    Raises:
        OSError: The file cannot be opened.
        UserError: The file has another ending, is damaged or holds something else.

    Example:

    ```python
    from keras_dsnet.applications import DSMobileNet
    from keras_dsnet.models import DynamicSlimmableNetwork
    from keras_dsnet.weights import WeightsFile

    model = DSMobileNet(input_shape=(32, 32, 3), classes=10, alpha=0.25, output_stride=8)
    model.save_weights("small.weights.h5")

    file = WeightsFile("small.weights.h5")
    same_network = DynamicSlimmableNetwork.from_config(file.config)
    file.load(same_network)
    ```
    """

    def __init__(
        self,
        path: str | os.PathLike,
        ema: bool | None = None,
        class_names: tuple[str, ...] | None = None,
        crop_fraction: float | None = None,
    ) -> None:
        self.path = pathlib.Path(path)
        name = self.path.name
        if not name.endswith((_KERAS_ENDING, _MODEL_ENDING, *_TORCH_ENDINGS)):
            raise UserError(
                f"weights file {path} must end with {_KERAS_ENDING}, {_MODEL_ENDING} or, from "
                "PyTorch, with "
                f"{', '.join(_TORCH_ENDINGS)}"
            )
        self.tensors = None
        if name.endswith((_KERAS_ENDING, _MODEL_ENDING)):
            if ema is not None:
                raise UserError(f"`ema` is for checkpoints of PyTorch. Received: ema={ema}, {path}")
            self.config = self._read_config()
        else:
            self.tensors = read_checkpoint(path, ema)
            self.config = self._checkpoint_config()
        facts = {"class_names": class_names, "crop_fraction": crop_fraction}
        for name, value in facts.items():
            if self.config is not None and self.config.get(name) is None:
                self.config[name] = value

    def _read_config(self):
        with self.path.open("rb"):
            # If the system cannot open the file, its error names the file; HDF5's does not.
            pass
        try:
            with self._keras_weights() as weights, h5py.File(weights) as file:
                stored = file["vars"].get("config")
                config = None if stored is None else json.loads(bytes(np.array(stored)))
                if not (config is None or set(config) >= _CONFIG_KEYS):
                    raise ValueError("its config is of something else")
                return config
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(
                f"weights file {self.path} is damaged, or not of a network of keras_dsnet"
            ) from error

    @contextlib.contextmanager
    def _keras_weights(self):
        """Gives the path of the weights, which a `.keras` file holds as a `.weights.h5` file."""
        if not self.path.name.endswith(_MODEL_ENDING):
            yield self.path
            return
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(self.path) as archive:
            yield archive.extract(_WEIGHTS_OF_MODEL, folder)

    def _checkpoint_config(self):
        """Returns the config of the authors' network; the classifier's rows are its classes."""
        return {
            "spec": spec_config(MobileNetSpec(attention="sigmoid")),
            "input_shape": (224, 224, 3),
            "classes": len(self.tensors.get("classifier.bias", ())) or 1000,
            "include_top": True,
        }

    @property
    def spec(self) -> NetworkSpec:
        """The `NetworkSpec` in `config`.

        Raises:
            UserError: The spec is of a family that this version does not know.
        """
        family = self.config["spec"]["family"]
        if family not in FAMILIES:
            raise UserError(f"weights file {self.path} is of an unknown family: {family!r}")
        return spec_from_config(self.config["spec"])

    def load(self, model: DynamicSlimmableNetwork) -> None:
        """Loads the weights, and of a weights file the settings that it stores with them.

        These are the routes, whether the gates are trained, the routing with its steps and
        thresholds, the names of the classes and the normalization.

        Args:
            model: `DynamicSlimmableNetwork`.

        Raises:
            UserError: The weights do not fit the network.
        """
        if self.tensors is not None:
            assign_tensors(model, self.tensors, self.path)
            return
        try:
            with self._keras_weights() as weights:
                model.load_weights(weights)
        except (OSError, KeyError, ValueError) as error:
            lines = str(error).splitlines()
            reason = next((line for line in lines if "expected" in line.lower()), lines[0])
            raise UserError(f"weights file {self.path} is not of this network: {reason}") from error


def convert_checkpoint(
    source: str | os.PathLike,
    target: str | os.PathLike,
    ema: bool | None = None,
    gates_trained: bool = True,
    check: Callable[[dict], None] | None = None,
) -> DynamicSlimmableNetwork:
    """Converts a checkpoint of the authors' DS-MBNet to a weights file of DS-MobileNet.

    The target appears complete or not at all.

    Args:
        source: Path of the checkpoint.
        target: Path of the `.weights.h5` file to write.
        ema: Bool, whether to convert the moving average of the weights instead of the weights.
            Defaults to the average if the checkpoint has one.
        gates_trained: Bool, whether the slimming head of the checkpoint was trained. Defaults to
            True.
        check: Function that takes the checkpoint's tensors, a dict of arrays by name, and raises
            an error if they are not acceptable. Defaults to no check beyond names and shapes.

    Returns:
        `DynamicSlimmableNetwork` with these weights.

    Raises:
        OSError: A file cannot be opened or written.
        UserError: The checkpoint cannot be read or is of another network, or `target` does not
            end with `.weights.h5`.
    """
    target = _checked_target(target)
    file = WeightsFile(source, ema)
    if file.tensors is None:
        raise UserError(
            "the source must be a checkpoint of the authors' code (.pth.tar) or, for `python -m "
            f"keras_dsnet.weights`, a saved network (.keras). Received: {source}"
        )
    if check is not None:
        check(file.tensors)
    model = DynamicSlimmableNetwork.from_config(file.config)
    file.load(model)
    model.gates_trained = gates_trained
    with atomic_path(target) as temporary:
        model.save_weights(temporary)
    return model


def save_compact_weights(model: DynamicSlimmableNetwork, path: str | os.PathLike) -> None:
    """Saves the weights of a network in float16; `load_weights` reads the file like any other.

    The moving variances of batch norm stay float32, because their range exceeds that of float16.
    The file appears complete or not at all.

    Args:
        model: `DynamicSlimmableNetwork`.
        path: Path of the `.weights.h5` file to write.

    Raises:
        OSError: The file cannot be written.
        UserError: `path` does not end with `.weights.h5`, or a value is too large for float16.

    Example:

    ```python
    from keras_dsnet.applications import DSMobileNet
    from keras_dsnet.weights import save_compact_weights

    model = DSMobileNet(input_shape=(32, 32, 3), classes=10, alpha=0.25, output_stride=8)
    save_compact_weights(model, "half.weights.h5")
    model.load_weights("half.weights.h5")
    ```
    """
    path = _checked_target(path)
    with tempfile.TemporaryDirectory() as folder, atomic_path(path) as compact:
        full = pathlib.Path(folder) / f"full{_KERAS_ENDING}"
        model.save_weights(full)
        # HDF5 can end the process with a segmentation fault when its disk is full.
        content = io.BytesIO()
        with h5py.File(full) as source, h5py.File(content, "w") as target:
            source.visititems(lambda name, item: _copy_compact(name, item, target))
        compact.write_bytes(content.getbuffer())


def _checked_target(path):
    path = pathlib.Path(path)
    if not path.name.endswith(_KERAS_ENDING):
        raise UserError(f"the weights file {path} must end with {_KERAS_ENDING}")
    return path


def _copy_compact(name, item, target):
    if isinstance(item, h5py.Group):
        target.require_group(name).attrs.update(item.attrs)
        return
    value = np.array(item)
    if value.dtype == np.float32 and not _is_moving_variance(name):
        with np.errstate(over="ignore"):
            value = value.astype("float16")
        if not np.all(np.isfinite(value)):
            raise UserError(f"the variable {name} has values that float16 cannot hold")
    target[name] = value


def _is_moving_variance(name):
    # Keras stores a layer under its class name and its variables under numbers. Those of a batch
    # norm are gamma, beta, moving mean and moving variance.
    return re.search(r"switchable_batch_normalization(_\d+)?/vars/3$", name) is not None
