"""The networks: what they are made of, their paths, and how they run."""

from keras_dsnet.models.best_path import best_path
from keras_dsnet.models.dynamic_slimmable_network import DynamicSlimmableNetwork
from keras_dsnet.models.latency_table import LatencyTable
from keras_dsnet.models.mobilenet import MobileNetSpec, MobileNetStage
from keras_dsnet.models.path import Path
from keras_dsnet.models.slimming_head import with_slimming_head

__all__ = [
    "DynamicSlimmableNetwork",
    "LatencyTable",
    "MobileNetSpec",
    "MobileNetStage",
    "Path",
    "best_path",
    "with_slimming_head",
]
