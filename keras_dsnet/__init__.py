"""Dynamic Slimmable Networks in Keras 3.

Importing the package registers its layers and networks, so that `keras.models.load_model` finds
them. Everything that needs more than Keras and TensorFlow is imported on first use.
"""

import importlib
from types import ModuleType

from keras_dsnet import layers, models

__version__ = "0.1.0"

_ON_FIRST_USE = ("applications", "data", "export", "runs", "training", "utils", "weights")
# The old name of `weights`.
_DEPRECATED = ("checkpoints",)

__all__ = ["__version__", "layers", "models", *_ON_FIRST_USE]


def __getattr__(name: str) -> ModuleType:
    if name in (*_ON_FIRST_USE, *_DEPRECATED):
        return importlib.import_module(f"keras_dsnet.{name}")
    raise AttributeError(f"module 'keras_dsnet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
