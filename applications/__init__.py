"""Networks ready to use, in the manner of `keras.applications`."""

from keras_dsnet.applications import ds_mobilenet
from keras_dsnet.applications.ds_mobilenet import DSMobileNet

__all__ = ["DSMobileNet", "ds_mobilenet"]
