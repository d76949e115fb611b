"""Checkpoints of the authors' PyTorch code, read without PyTorch, and files of weights."""

from keras_dsnet.checkpoints.compact_weights import save_compact_weights
from keras_dsnet.checkpoints.convert import convert_checkpoint
from keras_dsnet.checkpoints.load_checkpoint import load_checkpoint, read_checkpoint
from keras_dsnet.checkpoints.released_weights import released_weights
from keras_dsnet.checkpoints.torch_file import TorchFile
from keras_dsnet.checkpoints.weights_file import WeightsFile

__all__ = [
    "TorchFile",
    "WeightsFile",
    "convert_checkpoint",
    "load_checkpoint",
    "read_checkpoint",
    "released_weights",
    "save_compact_weights",
]
