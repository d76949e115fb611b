"""Checkpoints of the authors' PyTorch code, read without PyTorch."""

from keras_dsnet.checkpoints.load_checkpoint import load_checkpoint, read_checkpoint
from keras_dsnet.checkpoints.torch_file import TorchFile

__all__ = ["TorchFile", "load_checkpoint", "read_checkpoint"]
