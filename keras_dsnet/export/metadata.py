"""Metadata of TFLite files for apps.

A file of this package carries TFLite Metadata, class names as `labels.txt`, and the oldest runtime
that runs it correctly.
"""

import io
import zipfile

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_dsnet.models import DynamicSlimmableNetwork

_LABELS_NAME = "labels.txt"
_METADATA_NAME = "TFLITE_METADATA"
_RUNTIME_NAME = "min_runtime_version"
# For each type of routed file the oldest runtimes that run it correctly: TensorFlow and LiteRT.
OLDEST_RUNTIMES = {
    None: ("2.14.0", "1.0.1"),
    "int8": ("2.14.0", "1.0.1"),
    "float16": ("2.19.0", "1.1.1"),
    "dynamic": ("2.19.0", "1.1.2"),
}
_IDENTIFIER = b"M001"
_PARSER_VERSION = "1.0.0"
# Values of TFLite Metadata's enumerations and unions. No Python package has them.
_RGB, _AXIS_LABELS = 1, 2
_FEATURE_PROPERTIES, _IMAGE_PROPERTIES = 1, 2
_NORMALIZATION_OPTIONS = 1


def add_metadata(model: schema.ModelT, name: str, data: bytes) -> None:
    """Adds a metadata entry, which replaces an entry of the same name.

    Args:
        model: A `schema.ModelT`, which is changed.
        name: Name of the entry.
        data: Bytes of the entry.
    """
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(data, "uint8")
    entry = schema.MetadataT()
    entry.name, entry.buffer = name, len(model.buffers)
    model.buffers.append(buffer)
    others = [other for other in model.metadata or [] if _text(other.name) != name]
    model.metadata = [*others, entry]


def add_runtime(model: schema.ModelT, quantize: str | None) -> None:
    """Adds the oldest version of TensorFlow's runtime that runs a routed file correctly.

    Args:
        model: A `schema.ModelT`, which is changed.
        quantize: Quantisation of the file, as for `export_routed`.
    """
    version = OLDEST_RUNTIMES[quantize][0]
    # Readers expect 16 bytes.
    add_metadata(model, _RUNTIME_NAME, version.encode().ljust(16, b"\0"))


def describe(model: schema.ModelT, network: DynamicSlimmableNetwork, input_type: str) -> None:
    """Adds TFLite Metadata that describe the inputs and outputs of the first subgraph.

    Args:
        model: A `schema.ModelT`, which is changed. The first input of its first subgraph is the
            image, and the first output is the network's output.
        network: The `DynamicSlimmableNetwork`.
        input_type: "float32" for metadata with the normalisation of pixels, or "uint8" for a file
            that takes raw pixels.
    """
    graph = model.subgraphs[0]
    shape = [int(size) for size in graph.tensors[graph.inputs[0]].shape]
    outputs = [_text(graph.tensors[index].name) for index in graph.outputs]
    builder = _MetadataBuilder()
    image = builder.image(shape, input_type, network.normalization)
    # The scores of a detector come with boxes; others are those of a gate.
    of_classes = "scores" if "boxes" in outputs else "output"
    labelled = has_labels(network)
    results = [builder.result(name, labelled and name == of_classes) for name in outputs]
    content = builder.finish(network.name, [image], results)
    add_metadata(model, _METADATA_NAME, content)


def has_labels(network: DynamicSlimmableNetwork) -> bool:
    """Returns whether the outputs of a network are classes with names."""
    return network.include_top and network.class_names is not None


def with_labels(content: bytes, network: DynamicSlimmableNetwork) -> bytes:
    """Appends the network's class names to a TFLite file.

    They are a file `labels.txt` in a zip archive, with a line for each class in the order of the
    outputs. Tools for TFLite Metadata look for it there. Runtimes only read the model before it.

    Args:
        content: Bytes of the file.
        network: The `DynamicSlimmableNetwork`. If it has no class names, nothing is added.

    Returns:
        The bytes of the new file.
    """
    names = network.class_names
    if not names or not has_labels(network):
        return content
    file = io.BytesIO(content)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
        lines = "".join(f"{name}\n" for name in names)
        # An entry made from a `ZipInfo` has a constant date, so that equal networks make equal
        # files.
        archive.writestr(zipfile.ZipInfo(_LABELS_NAME), lines)
    return file.getvalue()


def _text(name):
    return name.decode() if isinstance(name, bytes) else name


class _MetadataBuilder:
    """Writes the tables of TFLite Metadata.

    The number of a slot is the position of a field in its table in metadata_schema.fbs.
    """

    def __init__(self):
        self._builder = flatbuffers.Builder(1024)

    def image(self, shape, input_type, normalization):
        """Writes the description of the image and returns its offset."""
        _, height, width, channels = shape
        size = self._table(2, {0: ("Uint32", width), 1: ("Uint32", height)})
        properties = self._table(2, {0: ("Int8", _RGB if channels == 3 else 2), 1: size})
        fields = {
            0: self._string("image"),
            1: self._string("RGB image, upright"),
            3: self._content(_IMAGE_PROPERTIES, properties),
        }
        low, high = [0.0] * channels, [255.0] * channels
        if input_type == "float32" and channels == 3:
            mean, std = (255 * np.array(x) for x in (normalization.mean, normalization.std))
            low, high = (0 - mean) / std, (255 - mean) / std
            options = self._table(2, {0: self._floats(mean), 1: self._floats(std)})
            unit = self._table(2, {0: ("Uint8", _NORMALIZATION_OPTIONS), 1: options})
            fields[4] = self._offsets([unit])
        fields[5] = self._table(2, {0: self._floats(high), 1: self._floats(low)})
        return self._table(7, fields)

    def result(self, name, labelled):
        """Writes the description of an output and returns its offset."""
        fields = {
            0: self._string("probability" if labelled and name == "output" else name),
            3: self._content(_FEATURE_PROPERTIES, self._table(0, {})),
        }
        if labelled:
            labels = {
                0: self._string(_LABELS_NAME),
                1: self._string("The class of each output, by its index"),
                2: ("Int8", _AXIS_LABELS),
            }
            fields[6] = self._offsets([self._table(5, labels)])
        return self._table(7, fields)

    def finish(self, name, inputs, outputs):
        """Returns the bytes of the metadata."""
        graph = {2: self._offsets(inputs), 3: self._offsets(outputs)}
        root = {
            0: self._string(name),
            3: self._offsets([self._table(10, graph)]),
            7: self._string(_PARSER_VERSION),
        }
        self._builder.Finish(self._table(8, root), _IDENTIFIER)
        return bytes(self._builder.Output())

    def _content(self, kind, properties):
        return self._table(2, {0: ("Uint8", kind), 1: properties})

    def _string(self, text):
        return self._builder.CreateString(text)

    def _floats(self, values):
        return self._builder.CreateNumpyVector(np.asarray(values, "float32"))

    def _offsets(self, offsets):
        self._builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self._builder.PrependUOffsetTRelative(offset)
        return self._builder.EndVector()

    def _table(self, slots, fields):
        """Writes a table and returns its offset.

        Args:
            slots: Number of fields that the schema has.
            fields: Dict from a slot to an offset, or to a tuple of a type and a number.
        """
        self._builder.StartObject(slots)
        for slot, value in fields.items():
            if isinstance(value, tuple):
                kind, number = value
                add = getattr(self._builder, f"Prepend{kind}Slot")
                add(slot, number, 0)
            else:
                self._builder.PrependUOffsetTRelativeSlot(slot, value, 0)
        return self._builder.EndObject()
