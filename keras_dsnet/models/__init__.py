"""Dynamic slimmable networks: their specs, their paths, their execution."""

from typing import Any

from keras_dsnet.models.dynamic_slimmable_network import DynamicSlimmableNetwork
from keras_dsnet.models.efficientnet import EfficientNetSpec, EfficientNetStage
from keras_dsnet.models.mobilenet import MobileNetSpec, MobileNetStage
from keras_dsnet.models.path import Path
from keras_dsnet.models.preprocessing import Normalization
from keras_dsnet.models.resnet import ResNetSpec, ResNetStage
from keras_dsnet.models.serialization import (
    copy_slimming_heads,
    with_dtype,
    with_slimming_head,
)
from keras_dsnet.models.spec import NetworkSpec, register_family
from keras_dsnet.models.topology import Step, StepBuilder, with_level
from keras_dsnet.utils.moved_names import forward

__all__ = [
    "DynamicSlimmableNetwork",
    "EfficientNetSpec",
    "EfficientNetStage",
    "MobileNetSpec",
    "MobileNetStage",
    "NetworkSpec",
    "Normalization",
    "Path",
    "ResNetSpec",
    "ResNetStage",
    "Step",
    "StepBuilder",
    "copy_slimming_heads",
    "register_family",
    "with_dtype",
    "with_level",
    "with_slimming_head",
]

_MOVED = dict.fromkeys(("LatencyTable", "best_path"), "keras_dsnet.export")


def __getattr__(name: str) -> Any:
    return forward(__name__, name, _MOVED)
