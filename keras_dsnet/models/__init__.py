"""The networks: what they are made of, their paths, and how they run."""

from keras_dsnet.models.best_path import best_path
from keras_dsnet.models.dynamic_slimmable_network import DynamicSlimmableNetwork
from keras_dsnet.models.efficientnet import EfficientNetSpec, EfficientNetStage
from keras_dsnet.models.families import register_family
from keras_dsnet.models.latency_table import LatencyTable
from keras_dsnet.models.mobilenet import MobileNetSpec, MobileNetStage
from keras_dsnet.models.network_spec import NetworkSpec
from keras_dsnet.models.path import Path
from keras_dsnet.models.precision import with_dtype
from keras_dsnet.models.preprocessing import Normalization
from keras_dsnet.models.resnet import ResNetSpec, ResNetStage
from keras_dsnet.models.slimming_head import with_slimming_head

__all__ = [
    "DynamicSlimmableNetwork",
    "EfficientNetSpec",
    "EfficientNetStage",
    "LatencyTable",
    "MobileNetSpec",
    "MobileNetStage",
    "NetworkSpec",
    "Normalization",
    "Path",
    "ResNetSpec",
    "ResNetStage",
    "best_path",
    "register_family",
    "with_dtype",
    "with_slimming_head",
]
