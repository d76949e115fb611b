"""Sliceable Keras layers, each of which runs at any of its widths."""

from keras_dsnet.layers.double_headed_gate import DoubleHeadedGate
from keras_dsnet.layers.sliced_conv2d import SlicedConv2D
from keras_dsnet.layers.sliced_dense import SlicedDense
from keras_dsnet.layers.sliced_depthwise_conv2d import SlicedDepthwiseConv2D
from keras_dsnet.layers.sliced_group_normalization import SlicedGroupNormalization
from keras_dsnet.layers.switchable_batch_normalization import SwitchableBatchNormalization

__all__ = [
    "DoubleHeadedGate",
    "SlicedConv2D",
    "SlicedDense",
    "SlicedDepthwiseConv2D",
    "SlicedGroupNormalization",
    "SwitchableBatchNormalization",
]
