"""Reads and writes TFLite flatbuffers as objects."""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

IDENTIFIER = b"TFL3"


def parse(content):
    """Returns the bytes of a TFLite file as a `schema.ModelT`."""
    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))


def pack(model):
    """Returns a `schema.ModelT` as the bytes of a TFLite file."""
    builder = _SharingBuilder(1024)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def tensor_index(signature, name, outputs=False):
    """Returns the index of a signature's input or output tensor in its subgraph."""
    maps = signature.outputs if outputs else signature.inputs
    return next(entry.tensorIndex for entry in maps if entry.name.decode() == name)


def operators_of(graph, model):
    """Returns the names of a subgraph's operators, in order."""
    names = {
        value: name for name, value in vars(schema.BuiltinOperator).items() if name[0].isupper()
    }
    return [names[builtin_code(model.operatorCodes[op.opcodeIndex])] for op in graph.operators]


def builtin_code(code):
    """Returns the builtin operator of an operator code; old files have it in a small field."""
    return max(code.builtinCode, code.deprecatedBuiltinCode)


class _SharingBuilder(flatbuffers.Builder):
    """Writes equal vectors of numbers once, but for the contents of buffers.

    Every tensor of an int8 file has scales and zero points for each of its channels, and blocks cut
    from one kernel have many in common; quantised files of many routes shrink by a tenth. Buffers
    stay apart, since runtimes tell them apart by their addresses; see `separate_buffers`.
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
