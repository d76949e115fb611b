"""Units that are always zero do not break an int8 file."""

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from routed_networks import SHORT_SPEC, random_images, small_network

from keras_dsnet.export import export_routed, export_subnetwork
from keras_dsnet.export.conversion import LEAST_SCALE, is_activation
from keras_dsnet.export.tflite_model import parse


@pytest.fixture(scope="module")
def network():
    """A network none of whose attention heads has a live hidden unit."""
    network = small_network(spec=SHORT_SPEC)
    for layer in network.supernet_layers:
        if hasattr(layer, "b1"):
            layer.b1.assign(np.full(layer.b1.shape, -100.0))
    network.routes = (0, 3)
    return network


def check(content, run, network, width):
    model = parse(content)
    activations = [
        tensor
        for graph in model.subgraphs
        for tensor in graph.tensors
        if is_activation(tensor, model)
    ]
    assert activations
    assert min(tensor.quantization.scale[0] for tensor in activations) >= 0.99 * LEAST_SCALE
    images = random_images(8)
    expected = network(images, path=width).numpy()
    outputs = np.concatenate([run(image[None]) for image in images])
    assert np.abs(outputs - expected).max() < 0.1 * expected.max()


@pytest.mark.parametrize("layout", ["shared", "fast"])
def test_a_routed_file_with_dead_units_runs(network, layout, tmp_path):
    path = tmp_path / "m.tflite"
    options = {"quantize": "int8", "representative_data": random_images(32), "verbose": False}
    export_routed(network, path, layout=layout, **options)
    runner = Interpreter(str(path)).get_signature_runner("bounded")
    width = np.array([3], "int32")
    check(
        path.read_bytes(),
        lambda image: runner(image=image, min_width=width, max_width=width)["output"],
        network,
        3,
    )


def test_a_static_file_with_dead_units_runs(network, tmp_path):
    path = tmp_path / "m.tflite"
    data = random_images(32)
    export_subnetwork(network, 3, path, quantize="int8", representative_data=data)
    runner = Interpreter(str(path)).get_signature_runner("serving_default")
    check(path.read_bytes(), lambda image: runner(image=image)["output"], network, 3)
