"""Small routed files of every kind, with what each runtime must give for them."""

import itertools
import json
import pathlib

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from routed_networks import SHORT_SPEC, random_images, small_network
from runtimes.run_files import run_calls, signatures_of
from tiny_families import TINY_RESNET, tiny_images, tiny_network

from keras_dsnet.export.dynamic_interpreter import read_metadata

LAYOUTS = ("shared", "fast", "staged")
COUNT = 8
ROUTES = (0, 1, 2)
NETWORKS = {
    "one_gate": (
        lambda: small_network(spec=SHORT_SPEC, classifier_activation=None),
        random_images,
        [(width,) for width in ROUTES],
    ),
    "three_gates": (
        lambda: tiny_network(TINY_RESNET),
        tiny_images,
        [(0, 0, 0), (1, 1, 1), (2, 2, 2), (0, 1, 2), (2, 0, 1)],
    ),
}
ROUTINGS = ("gate", "confidence")
STEPS, THRESHOLD = (0, 2), (0.5,)
# Thresholds of 0 and 1 force the first and the last step.
TUNED = ((0.0,), (0.7,), (1.0,))
NAMES = tuple(
    "-".join(kind) for kind in itertools.product(("float32", "int8"), NETWORKS, ROUTINGS, LAYOUTS)
)


def make_files(folder, names=NAMES):
    """Writes files, and beside each what runs it and what it must give.

    A file in float32 must give what the network gives. A file in int8 must give what the
    interpreter of this environment gives.

    Args:
        folder: for the files.
        names: of the files, as in `NAMES`.
    """
    networks = {}
    for name in names:
        kind, gates, routing, layout = name.split("-")
        make, make_images, paths = NETWORKS[gates]
        if gates not in networks:
            networks[gates] = make()
            networks[gates].gates_trained = False  # no warning about routes
            networks[gates].routes = ROUTES
            networks[gates].gates_trained = True
        network = networks[gates]
        images = make_images(64)
        options = {"routing": routing, "layout": layout}
        if routing == "confidence":
            options.update(steps=STEPS, thresholds=THRESHOLD)
        else:
            options["routes"] = ROUTES
        if kind == "int8":
            options.update(quantize="int8", representative_data=images)
        filename = pathlib.Path(folder) / f"{name}.tflite"
        network.export(filename, format="litert", verbose=False, **options)
        if routing == "confidence":
            # The widths in between are not in the file.
            paths = [path for path in paths if len(set(path)) == 1 and path[0] in STEPS]
        calls = calls_of(routing, paths)
        images = images[:: len(images) // COUNT]
        metadata = read_metadata(filename.read_bytes(), filename)
        if kind == "float32":
            expected = network_results(network, calls, images)
        else:
            opened = Interpreter(str(filename), num_threads=1)
            expected = run_calls(signatures_of(opened, metadata), calls, images)
        arrays = {"images": images}
        for number, (outputs, taken) in enumerate(expected):
            arrays.update({f"output_{number}": outputs, f"path_{number}": taken})
        np.savez(filename.with_suffix(".npz"), **arrays)
        description = {"metadata": metadata, "calls": calls}
        filename.with_suffix(".json").write_text(json.dumps(description), encoding="utf-8")


def calls_of(routing, paths):
    """Returns the calls of a file: free, forced to each path, and with other thresholds."""
    calls = [{"signature": "serving_default", "inputs": {}}]
    for path in paths:
        bounds = {"min_width": list(path), "max_width": list(path)}
        calls.append({"signature": "bounded", "inputs": bounds})
    if routing == "confidence":
        calls += [{"signature": "tuned", "inputs": {"thresholds": list(value)}} for value in TUNED]
    return calls


def network_results(network, calls, images):
    """Returns what the network gives for each call, as `run_calls` does."""
    routing = "confidence" if any(c["signature"] == "tuned" for c in calls) else "gate"
    results = []
    for call in calls:
        inputs = call["inputs"]
        if "min_width" in inputs:
            path = tuple(inputs["min_width"])
            outputs = network(images, path=path)
            taken = np.tile(np.array(path, "int32"), (len(images), 1))
        else:
            options = {}
            if routing == "confidence":
                options = {"steps": STEPS, "thresholds": inputs.get("thresholds", THRESHOLD)}
            outputs, taken, _ = network.run_routed(images, routing, **options)
        results.append((np.asarray(outputs)[:, None], np.asarray(taken)))
    return results
