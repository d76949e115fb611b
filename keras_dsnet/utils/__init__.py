"""Utilities that every part of the package can use."""

from keras_dsnet.utils.argument_checks import UserError

__all__ = ["UserError"]
