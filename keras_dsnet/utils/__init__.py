"""What every part of the package may use."""

from keras_dsnet.utils.errors import UserError

__all__ = ["UserError"]
