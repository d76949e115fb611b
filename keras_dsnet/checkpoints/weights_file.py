"""Files of weights, and the network that each was made for."""

import json
import pathlib

import h5py
import numpy as np

from keras_dsnet.checkpoints.load_checkpoint import assign_tensors, read_checkpoint
from keras_dsnet.models import MobileNetSpec
from keras_dsnet.models.families import FAMILIES, spec_config, spec_from_config
from keras_dsnet.utils import UserError

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
