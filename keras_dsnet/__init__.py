"""Dynamic Slimmable Networks in Keras 3.

Importing the package registers its layers and networks, so that `keras.models.load_model` finds
them. Everything that needs more than Keras and TensorFlow is imported on first use.
"""

import importlib
import warnings
from types import ModuleType

from keras_dsnet import layers, models

__version__ = "0.1.0"

_ON_FIRST_USE = (
    *("applications", "data", "detection", "export", "runs", "training", "utils", "weights"),
)
# Old names of packages, and the new ones.
_DEPRECATED = {"checkpoints": "weights"}

__all__ = ["__version__", "layers", "models", *_ON_FIRST_USE]


def __getattr__(name: str) -> ModuleType:
    if name in _ON_FIRST_USE:
        return importlib.import_module(f"keras_dsnet.{name}")
    if name in _DEPRECATED:
        with warnings.catch_warnings():
            # The module's own warning would name this file and not the line that uses it.
            warnings.simplefilter("ignore", DeprecationWarning)
            module = importlib.import_module(f"keras_dsnet.{name}")
        message = f"keras_dsnet.{name} is deprecated: use keras_dsnet.{_DEPRECATED[name]}"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return module
    raise AttributeError(f"module 'keras_dsnet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
