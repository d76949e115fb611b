"""A routed file that takes one path, for measuring it."""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_dsnet.export.flatbuffer import pack, parse, tensor_index


def force_route(content, path):
    """Returns a routed file whose signature "serving_default" always takes one path.

    Its bounds, constants in that signature, become that path. Every operator runs as before, the
    gate's among them.

    Args:
        content: bytes of the file.
        path: int, a width for every gate, or a sequence with one per gate.
    """
    model = parse(content)
    bounded, serving = (
        next(s for s in model.signatureDefs if s.signatureKey == key)
        for key in (b"bounded", b"serving_default")
    )
    graph = model.subgraphs[serving.subgraphIndex]
    for name in ("min_width", "max_width"):
        # The two main graphs have the same tensors.
        tensor = graph.tensors[tensor_index(bounded, name)]
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(
            np.broadcast_to(np.int32(path), tuple(tensor.shape)).tobytes(), "uint8"
        )
        tensor.buffer = len(model.buffers)
        model.buffers.append(buffer)
    return pack(model)
