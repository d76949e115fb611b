"""Dynamic Slimmable Networks in Keras 3.

Importing the package registers its layers and networks, so that `keras.models.load_model` finds
them. Everything that needs more than Keras and TensorFlow is imported on first use.
"""

import importlib
import importlib.util
import pathlib
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType

import keras

if keras.config.backend() != "tensorflow":
    raise ImportError(
        "keras_dsnet needs Keras on TensorFlow, its default: unset KERAS_BACKEND, or set 'backend' "
        f"in ~/.keras/keras.json to 'tensorflow'. Received: backend {keras.config.backend()!r}"
    )

from keras_dsnet import layers, models

__version__ = "0.1.0"

_FOLDER = pathlib.Path(__file__).resolve().parent

_ON_FIRST_USE = (
    *("applications", "data", "detection", "export", "runs", "training", "utils", "weights"),
)
# Old names of packages, and the new ones.
_DEPRECATED = {"checkpoints": "weights"}

__all__ = ["__version__", "layers", "models", *_ON_FIRST_USE]


class _CheckoutFinder:
    """Finds `keras_dsnet.applications` in a checkout, where the folder lies beside the package.

    Python that is started in a checkout finds this folder before an installed package, which has
    the applications inside.
    """

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "keras_dsnet.applications":
            return None
        folder = _FOLDER.with_name("applications")
        return importlib.util.spec_from_file_location(name, folder / "__init__.py")


if not (_FOLDER / "applications").exists() and _FOLDER.with_name("applications").is_dir():
    # First, so that an editable install of another checkout does not mix the two.
    sys.meta_path.insert(0, _CheckoutFinder)


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
