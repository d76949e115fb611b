"""Files for phones."""

from keras_dsnet.export.export_subnetwork import export_subnetwork
