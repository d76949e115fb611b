"""Operators that share weights but not scales have buffers that tell them apart."""

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from weight_cache import run_compiled

from keras_dsnet.export.assembly import separate_buffers
from keras_dsnet.export.conversion import convert
from keras_dsnet.export.tflite_model import operators_of, pack, parse

SIZE = 8
KERNEL = np.random.default_rng(0).normal(size=(3, 3, 3, 4)).astype("float32")
IMAGES = np.random.default_rng(1).normal(size=(16, SIZE, SIZE, 3)).astype("float32")


def convolutions(image):
    """One kernel on two inputs of different scales."""
    first = tf.nn.conv2d(image, KERNEL, 1, "SAME")
    return {"output": first + tf.nn.conv2d(tf.nn.relu(30.0 * image), KERNEL, 1, "SAME")}


def products(image):
    """One matrix without a bias, the same way."""
    rows = tf.reshape(image, (1, -1))[:, :27]
    matrix = KERNEL.reshape(27, 4)
    return {"output": tf.matmul(rows, matrix) + tf.matmul(tf.nn.relu(30.0 * rows), matrix)}


@pytest.fixture(scope="module", params=[convolutions, products])
def contents(request):
    """The bytes of a file as it was converted, and with buffers of their own."""
    samples = [{"image": image[None]} for image in IMAGES]
    inputs = {"image": tf.TensorSpec((1, SIZE, SIZE, 3))}
    content = convert(request.param, inputs, "int8", lambda: iter(samples))
    model = parse(content)
    separate_buffers(model)
    return content, pack(model)


def pairs(content):
    """The buffers of weights and bias of each operator that has weights."""
    model = parse(content)
    (graph,) = model.subgraphs
    return [
        tuple(graph.tensors[i].buffer if i >= 0 else 0 for i in operator.inputs[1:3])
        for operator, name in zip(graph.operators, operators_of(graph, model))
        if name in ("CONV_2D", "FULLY_CONNECTED")
    ]


def run(content):
    runner = Interpreter(model_content=content).get_signature_runner("serving_default")
    return np.concatenate([runner(image=image[None])["output"] for image in IMAGES])


def test_weights_stay_shared_and_biases_do_not(contents):
    before, after = map(pairs, contents)
    assert len(before) == len(after) == 2
    assert len({weights for weights, _ in before}) == 1
    assert len(set(before)) == 1
    assert len({weights for weights, _ in after}) == 1
    assert len(set(after)) == 2
    assert len(contents[1]) < len(contents[0]) + 400


def test_outputs_are_the_same_to_the_bit(contents):
    before, after = map(run, contents)
    np.testing.assert_array_equal(after, before)


def test_xnnpacks_weight_cache_changes_nothing(contents, tmp_path):
    filename = tmp_path / "m.tflite"
    filename.write_bytes(contents[1])
    expected = run(contents[1])
    for _ in range(2):
        (outputs,) = run_compiled(filename, IMAGES, tmp_path / "m.cache")
        np.testing.assert_array_equal(outputs.reshape(expected.shape), expected)


def test_files_without_quantised_weights_stay_as_they_are():
    inputs = {"image": tf.TensorSpec((1, SIZE, SIZE, 3))}
    for quantize in (None, "float16"):
        model = parse(convert(convolutions, inputs, quantize))
        before = pack(model)
        separate_buffers(model)
        assert pack(model) == before
