"""Networks ready to use, in the manner of `keras.applications`."""

from keras_dsnet.applications import ds_efficientnet_b0, ds_mobilenet, ds_resnet50
from keras_dsnet.applications.ds_efficientnet_b0 import DSEfficientNetB0
from keras_dsnet.applications.ds_mobilenet import DSMobileNet
from keras_dsnet.applications.ds_resnet50 import DSResNet50

__all__ = [
    "DSEfficientNetB0",
    "DSMobileNet",
    "DSResNet50",
    "ds_efficientnet_b0",
    "ds_mobilenet",
    "ds_resnet50",
]
