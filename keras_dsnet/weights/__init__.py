"""Weights in files: checkpoints of the authors' PyTorch code, read without PyTorch, included."""

from keras_dsnet.weights.ds_mbnet import load_checkpoint, read_checkpoint
from keras_dsnet.weights.released_weights import Preset, released_weights
from keras_dsnet.weights.torch_file import TorchFile
from keras_dsnet.weights.weights_file import WeightsFile, convert_checkpoint, save_compact_weights

__all__ = [
    "Preset",
    "TorchFile",
    "WeightsFile",
    "convert_checkpoint",
    "load_checkpoint",
    "read_checkpoint",
    "released_weights",
    "save_compact_weights",
]
