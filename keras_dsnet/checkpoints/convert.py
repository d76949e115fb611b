"""Converts a PyTorch checkpoint into a `.weights.h5` file."""

import pathlib

from keras_dsnet.checkpoints.weights_file import WeightsFile
from keras_dsnet.models import DynamicSlimmableNetwork
from keras_dsnet.utils import UserError
from keras_dsnet.utils.atomic_file import atomic_path

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
