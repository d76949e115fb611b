"""A routed file that takes one route, for measuring it."""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_dsnet.export.flatbuffer import pack, parse, tensor_index


def force_route(content, width):
    """Returns a routed file whose signature "serving_default" always takes one width.

    Its bounds, constants in that signature, become that width. Every operator runs as before, the
    gate's among them.

    Args:
        content: bytes of the file.
        width: int.
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
        buffer.data = np.frombuffer(np.full(tensor.shape, width, "int32").tobytes(), "uint8")
        tensor.buffer = len(model.buffers)
        model.buffers.append(buffer)
    return pack(model)
