"""The bytes of a TFLite file, in which equal parts are stored once.

A FlatBuffers file may refer to one vector or table from several places. The signatures of a routed
file are copies of one main graph that differ in a few tensors and operators, and blocks of one
kernel have many scales in common. Quantised files of many routes shrink by a tenth.
"""

import copy
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

_IDENTIFIER = b"TFL3"


def pack(model: schema.ModelT) -> bytes:
    """Returns a `schema.ModelT` as the bytes of a TFLite file.

    Args:
        model: `schema.ModelT`. It is not changed.
    """
    packed, offsets = copy.copy(model), {}
    packed.subgraphs = [copy.copy(graph) for graph in model.subgraphs]
    for graph in packed.subgraphs:
        graph.tensors = [_PackedOnce(tensor, offsets) for tensor in graph.tensors]
        graph.operators = [_PackedOnce(operator, offsets) for operator in graph.operators]
    builder = _SharingBuilder(1024)
    builder.Finish(packed.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


class _PackedOnce:
    """A part of a model that the file refers to again where an equal part has been written.

    Args:
        part: `schema.TensorT` or `schema.OperatorT`.
        offsets: Dict from the contents of the parts that have been written to their offsets.
    """

    def __init__(self, part, offsets):
        self._part = part
        self._offsets = offsets

    def Pack(self, builder):  # noqa: N802
        contents = _contents(self._part)
        if contents not in self._offsets:
            self._offsets[contents] = self._part.Pack(builder)
        return self._offsets[contents]


def _contents(value: Any) -> Any:
    """Returns a value of a model as something that equal values have in common."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.tobytes()
    if isinstance(value, (list, tuple)):
        return tuple(map(_contents, value))
    if hasattr(value, "__dict__"):
        return type(value), tuple(map(_contents, vars(value).values()))
    return value


class _SharingBuilder(flatbuffers.Builder):
    """Writes equal vectors of numbers once, except for the contents of buffers.

    Buffers stay separate because runtimes identify them by their addresses; see
    `keras_dsnet.export.tflite_model.separate_buffers`.
    """

    def __init__(self, size):
        super().__init__(size)
        self._written = {}

    def CreateNumpyVector(self, x):  # noqa: N802
        if x.dtype == np.uint8:
            return super().CreateNumpyVector(x)
        key = (x.dtype.str, np.ascontiguousarray(x).tobytes())
        if key not in self._written:
            self._written[key] = super().CreateNumpyVector(x)
        return self._written[key]
