"""Helpers of the command-line programs."""

from keras_dsnet.utils.errors import UserError

__all__ = ["UserError"]
