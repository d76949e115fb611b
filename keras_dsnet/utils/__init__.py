"""What every part of the package may use, and how command-line programs start."""

from keras_dsnet.utils.errors import UserError

__all__ = ["UserError"]
