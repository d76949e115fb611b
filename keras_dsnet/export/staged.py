"""Assembly of a staged TFLite file, a signature for each part that the caller runs.

The signature "trunk" runs the layers up to the first gate, and the gate. For each width there is a
signature of the layers after it. With several gates there are signatures for each segment, the
layers after a gate up to the next one: one for each pair of widths of the segment before and of its
own, which runs the first convolutions, and one for each width, which runs the rest. XNNPACK packs
the weights of every signature, so a copy of the rest in each pair would multiply the memory.

All shapes are static, and no operator calls a subgraph, so a GPU or NPU delegate can take a
signature whole. Features are passed on as the next signature reads them, in an int8 file as int8.
"""

import copy
import functools
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_dsnet.export.confidence import ConfidencePlan
from keras_dsnet.export.dynamic_interpreter import METADATA_NAME, read_metadata
from keras_dsnet.export.graphs import RoutedGraphs
from keras_dsnet.export.metadata import add_metadata, add_runtime, describe
from keras_dsnet.export.packing import pack
from keras_dsnet.export.quantized_features import connect_quantized
from keras_dsnet.export.staged_runtime import TRUNK, digest, segment_names
from keras_dsnet.export.tflite_model import (
    ImportedGraph,
    ModelBuilder,
    append_graph,
    separate_buffers,
)
from keras_dsnet.models.dynamic_slimmable_network import DynamicSlimmableNetwork


def staged_metadata(
    network: DynamicSlimmableNetwork, routes: tuple[int, ...], confidence: ConfidencePlan | None
) -> dict[str, Any]:
    """Returns the metadata with which `StagedRuntime` routes images.

    Args:
        network: `DynamicSlimmableNetwork`.
        routes: Tuple of the widths of the file, ascending.
        confidence: `ConfidencePlan`, or None for a file that routes only by its gates.

    Returns:
        Dict for JSON: "gate_routes" are the widths that gates choose among, and "choice_ratios" has
        for each gate the ratios of the widths if its score is a ratio, else None. "files" is empty
        unless the file is split.
    """
    gate_routes = routes if confidence is None else confidence.gate_routes
    ratios = [
        None if gate.slimming_head == "one_hot" else [float(each) for each in gate.choice_ratios]
        for gate in network.slimming_gates
    ]
    return {"gate_routes": list(gate_routes), "choice_ratios": ratios, "files": {}}


def assemble_staged(
    builder: ModelBuilder,
    graphs: RoutedGraphs,
    network: DynamicSlimmableNetwork,
    metadata: dict[str, Any],
) -> schema.ModelT:
    """Assembles the graphs of a network into a model with a signature for each part.

    Args:
        builder: `ModelBuilder` that imported the graphs.
        graphs: `RoutedGraphs` of `ImportedGraph`s, only of those that run layers. They are changed.
        network: `DynamicSlimmableNetwork`, which TFLite Metadata describe.
        metadata: Dict for JSON, as for `assemble_file`.

    Returns:
        `schema.ModelT`.
    """
    connect_quantized(builder, graphs)
    model = builder.model
    for name, part in _signatures(graphs):
        graph, sides = part.graph, (_flat(part.inputs), _flat(part.outputs))
        inputs, outputs = sides
        if outputs.get("logits") == outputs.get("output"):
            outputs.pop("logits", None)
        graph.name = name.encode()
        graph.inputs, graph.outputs = list(inputs.values()), list(outputs.values())
        # Some runtimes identify inputs and outputs only by the names of their tensors.
        for key, index in (*inputs.items(), *outputs.items()):
            graph.tensors[index].name = key.encode()
        builder.add_signature(name, builder.add_subgraph(graph), inputs, outputs)
    separate_buffers(model)
    describe(model, network, metadata["input_type"])
    add_metadata(model, METADATA_NAME.decode(), json.dumps(metadata).encode())
    add_runtime(model, metadata["quantize"])
    return model


def _signatures(graphs: RoutedGraphs) -> Iterator[tuple[str, ImportedGraph]]:
    """Yields the name and the graph of each signature."""
    yield TRUNK, graphs.front
    for segment, section in enumerate(graphs.sections, start=1):
        names_of = functools.partial(segment_names, len(graphs.sections), segment)
        narrowest = min(section.rest)
        rests = {}
        for (before, width), entry in section.entries.items():
            name, *others = names_of(before, width, narrowest)
            yield name, entry if others else _joined(entry, section.rest[width])
            rests |= dict.fromkeys(others, section.rest[width])
        if not section.entries:
            rests = {
                names_of(None, width, narrowest)[0]: each for width, each in section.rest.items()
            }
        yield from rests.items()


def _joined(entry, rest):
    """Returns the graph of a segment for a pair of widths: its entry, then the rest of it."""
    entry, rest = copy.deepcopy(entry), copy.deepcopy(rest)
    moved = append_graph(entry, rest)
    outputs = {
        name: tuple(moved[index] for index in value) if name == "features" else moved[value]
        for name, value in rest.outputs.items()
    }
    return ImportedGraph(entry.graph, entry.inputs, outputs)


def _flat(tensors):
    """Returns a dict from name to tensor index in which features are numbered."""
    flat = {}
    for name, value in tensors.items():
        if isinstance(value, int | np.integer):
            flat[name] = value
        else:
            flat |= {f"{name}_{number}": index for number, index in enumerate(value)}
    return flat


def split_staged(model: schema.ModelT, metadata: dict[str, Any], stem: str) -> dict[str, bytes]:
    """Splits a staged model into a file for each signature.

    Args:
        model: `schema.ModelT` of `assemble_staged`.
        metadata: Dict for JSON. It is changed: `metadata["staged"]["files"]` describes the files of
            the segments.
        stem: Name of the file of the trunk without its suffix. The other files have the stem, a
            dot and the name of their signature.

    Returns:
        Dict from signature to the bytes of its file.
    """
    contents = {}
    files = metadata["staged"]["files"]
    for signature in model.signatureDefs[1:]:
        name, part = signature.signatureKey.decode(), _part(model, signature)
        add_runtime(part, metadata["quantize"])
        contents[name] = pack(part)
        files[name] = {"name": f"{stem}.{name}.tflite", "sha256": digest(contents[name])}
    trunk = _part(model, model.signatureDefs[0])
    for entry in model.metadata:
        add_metadata(trunk, entry.name, model.buffers[entry.buffer].data.tobytes())
    add_metadata(trunk, METADATA_NAME.decode(), json.dumps(metadata).encode())
    return {TRUNK: pack(trunk), **contents}


def parts_beside(filename: str | os.PathLike) -> list[pathlib.Path]:
    """Returns the files that an earlier split export wrote beside its trunk.

    Files that were changed since are not among them.

    Args:
        filename: Path of the trunk. If there is no such file, or it is not that of a split export,
            the list is empty.
    """
    trunk = pathlib.Path(filename)
    try:
        files = read_metadata(trunk.read_bytes(), trunk)["staged"]["files"]
        parts = {trunk.with_name(part["name"]): part["sha256"] for part in files.values()}
        return [
            p for p, sha256 in parts.items() if p.is_file() and digest(p.read_bytes()) == sha256
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _part(model, signature):
    """Returns a model with one signature, its subgraph, and what that refers to."""
    part, graph = schema.ModelT(), copy.deepcopy(model.subgraphs[signature.subgraphIndex])
    part.version, part.description, part.metadata = model.version, model.description, []
    codes = sorted({operator.opcodeIndex for operator in graph.operators})
    buffers = sorted({0, *(tensor.buffer for tensor in graph.tensors)})
    part.operatorCodes = [model.operatorCodes[index] for index in codes]
    part.buffers = [model.buffers[index] for index in buffers]
    for operator in graph.operators:
        operator.opcodeIndex = codes.index(operator.opcodeIndex)
    places = {index: place for place, index in enumerate(buffers)}
    for tensor in graph.tensors:
        tensor.buffer = places[tensor.buffer]
    part.subgraphs, part.signatureDefs = [graph], [copy.copy(signature)]
    part.signatureDefs[0].subgraphIndex = 0
    return part
