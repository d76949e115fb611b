"""A routed file that takes one path, for measuring it."""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_dsnet.export.dynamic_interpreter import read_metadata, routes_of
from keras_dsnet.export.flatbuffer import pack, parse


def force_route(content, path):
    """Returns a routed file whose signature "serving_default" always takes one path.

    What its gates may choose, constants in that signature, becomes that path. Every operator runs
    as before, the gate's among them.

    Args:
        content: bytes of the file.
        path: int, a width for every gate, or a sequence with one per gate.

    Raises:
        ValueError: a width is no route of the file, there are more or fewer widths than gates, or
            the file is of an earlier version.
    """
    metadata = read_metadata(content)
    routes, gates = np.array(routes_of(metadata)), len(metadata["routes"][0]["path"])
    model = parse(content)
    (serving,) = (s for s in model.signatureDefs if s.signatureKey == b"serving_default")
    tensors = {t.name.decode(): t for t in model.subgraphs[serving.subgraphIndex].tensors}
    if "allowed_1" not in tensors:
        raise ValueError("The file is of an earlier version of keras_dsnet; export it again")
    if np.size(path) not in (1, gates):
        raise ValueError(f"The file has {gates} gates. Received: {path}")
    for gate, width in enumerate(np.broadcast_to(path, gates), start=1):
        tensor = tensors[f"allowed_{gate}"]
        if width not in routes:
            raise ValueError(f"The routes of the file are {[*map(int, routes)]}. Received: {path}")
        buffer = schema.BufferT()
        buffer.data = np.frombuffer((routes == width).tobytes(), "uint8")
        tensor.buffer = len(model.buffers)
        model.buffers.append(buffer)
    return pack(model)
