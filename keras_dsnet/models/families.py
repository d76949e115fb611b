"""The families of networks that a saved model may belong to."""

from keras_dsnet.models.mobilenet import MobileNetSpec

FAMILIES = {spec.__name__: spec for spec in (MobileNetSpec,)}
