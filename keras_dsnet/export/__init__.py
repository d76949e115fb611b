"""Export of networks to TFLite files for phones."""

from keras_dsnet.export.dynamic_interpreter import DynamicInterpreter
from keras_dsnet.export.export_routed import export_routed
from keras_dsnet.export.export_subnetwork import export_subnetwork
from keras_dsnet.export.latency_table import LatencyTable
from keras_dsnet.export.path_selection import best_path
from keras_dsnet.export.quantize_aware import quantize_aware

__all__ = [
    "DynamicInterpreter",
    "LatencyTable",
    "best_path",
    "export_routed",
    "export_subnetwork",
    "quantize_aware",
]
