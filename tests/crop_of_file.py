"""The crop fraction in the metadata of a routed file, for tests of what reads it."""

import json

from keras_dsnet.export.dynamic_interpreter import METADATA_NAME, read_metadata
from keras_dsnet.export.metadata import add_metadata
from keras_dsnet.export.packing import pack
from keras_dsnet.export.tflite_model import parse


def write_crop(filename, fraction):
    """Writes a crop fraction into a file, or removes it where it is None, as of old versions."""
    content = filename.read_bytes()
    metadata = read_metadata(content)
    metadata["preprocessing"].pop("crop_fraction", None)
    if fraction is not None:
        metadata["preprocessing"]["crop_fraction"] = fraction
    model = parse(content)
    add_metadata(model, METADATA_NAME.decode(), json.dumps(metadata).encode())
    filename.write_bytes(pack(model))
