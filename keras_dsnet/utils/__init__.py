"""What every part of the package may use, and how command-line programs start."""

from keras_dsnet.utils.argument_checks import UserError

__all__ = ["UserError"]
