"""The TFLite file of one path: its outputs, its operators, and what a failure leaves behind."""

import dataclasses
import functools
import importlib

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from tiny_families import TINY_RESNET, tiny_network

from keras_dsnet.export import export_subnetwork
from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec

MODULE = importlib.import_module("keras_dsnet.export.export_subnetwork")
SIZE = 32


def make_network(dtype="float32", input_shape=(SIZE, SIZE, 3)):
    """Three stages like those of DS-MobileNet, each width with statistics of its own."""
    spec = MobileNetSpec()
    stages = [
        dataclasses.replace(
            stage, blocks=1, channels=tuple(channel // 8 for channel in stage.channels)
        )
        for stage in spec.stages[2:]
    ]
    spec = dataclasses.replace(spec, stem=(2, 3), stages=tuple(stages))
    network = DynamicSlimmableNetwork(spec, input_shape, classes=10, dtype=dtype)
    generator = np.random.default_rng(0)
    for variable in network.variables:
        if "variance" in variable.name:
            variable.assign(generator.uniform(0.5, 2.0, variable.shape))
        else:
            variable.assign_add(generator.normal(scale=0.2, size=variable.shape))
    return network


@pytest.fixture(scope="module")
def network():
    return make_network()


def replace_run(monkeypatch, operation):
    """Lets the export convert something else than the path."""

    def run(network, path, image, float_norms, raw_int8):
        return {"output": operation(image)}

    monkeypatch.setattr(MODULE, "_run", run)


@pytest.fixture(scope="module", params=["slimmest", "widest"])
def exported(request, network, tmp_path_factory):
    """A path, its file and what the export reports."""
    filename = tmp_path_factory.mktemp("exported") / "m.tflite"
    return request.param, filename, export_subnetwork(network, request.param, filename)


def test_outputs_of_the_file_are_those_of_the_path(network, exported):
    path, filename, report = exported
    runner = Interpreter(str(filename)).get_signature_runner("serving_default")
    images = np.random.default_rng(3).normal(size=(3, SIZE, SIZE, 3)).astype("float32")
    outputs = np.concatenate([runner(image=image[None])["output"] for image in images])
    expected = network(images, path=path).numpy()
    assert np.abs(outputs - expected).max() <= 1e-4 * expected.max()
    assert 0 <= report["difference"] <= 1e-4
    assert report == {
        "path": path,
        "bytes": filename.stat().st_size,
        "madds": network.madds(path),
        "difference": report["difference"],
    }
    assert [entry.name for entry in filename.parent.iterdir()] == ["m.tflite"]


def test_the_file_has_builtin_operators_only_and_no_batch_norm(network, exported):
    content = exported[1].read_bytes()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
    codes = [code.builtinCode for code in model.operatorCodes]
    assert schema.BuiltinOperator.CUSTOM not in codes
    assert not any(code.customCode for code in model.operatorCodes)
    (graph,) = model.subgraphs
    operators = [codes[operator.opcodeIndex] for operator in graph.operators]
    blocks = sum(stage.blocks for stage in network.spec.stages)
    assert operators.count(schema.BuiltinOperator.DEPTHWISE_CONV_2D) == blocks
    # Two of each gate's attention head.
    assert operators.count(schema.BuiltinOperator.CONV_2D) == 1 + 3 * blocks
    # Every swish multiplies, and every attention; a batch norm left over would add some.
    assert operators.count(schema.BuiltinOperator.MUL) <= (1 + 2 * blocks) + blocks


def test_the_signature_takes_one_float_image(exported):
    interpreter = Interpreter(str(exported[1]))
    assert interpreter.get_signature_list() == {
        "serving_default": {"inputs": ["image"], "outputs": ["output"]}
    }
    (image,) = interpreter.get_input_details()
    assert (image["shape"].tolist(), image["dtype"]) == ([1, SIZE, SIZE, 3], np.float32)


def test_a_network_of_any_image_size_needs_a_size(tmp_path):
    network = make_network(input_shape=(None, None, 3))
    with pytest.raises(ValueError, match="input_shape=") as caught:
        export_subnetwork(network, 0, tmp_path / "m.tflite")
    assert "\n" not in str(caught.value)
    export_subnetwork(network, 0, tmp_path / "m.tflite", input_shape=(64, 32, 3))
    (image,) = Interpreter(str(tmp_path / "m.tflite")).get_input_details()
    assert image["shape"].tolist() == [1, 64, 32, 3]


@pytest.mark.slow
@pytest.mark.parametrize("make", [make_network, functools.partial(tiny_network, TINY_RESNET)])
def test_a_network_of_low_precision_is_checked_without_its_rounding(make, tmp_path):
    report = export_subnetwork(make(dtype="mixed_bfloat16"), 0, tmp_path / "m.tflite")
    assert report["difference"] <= 1e-4


def test_an_unwritable_path_is_one_clear_error(network, tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        export_subnetwork(network, 0, tmp_path / "nowhere" / "m.tflite")


def test_an_unknown_path_is_named(network, tmp_path):
    with pytest.raises(ValueError, match="path=99"):
        export_subnetwork(network, 99, tmp_path / "m.tflite")


def test_a_file_of_another_width_is_not_written(network, tmp_path, monkeypatch):
    filename = tmp_path / "m.tflite"
    filename.write_bytes(b"old")
    widest = network.subnetwork("widest", fold_batch_norm=True)
    replace_run(monkeypatch, widest)
    with pytest.raises(ValueError, match=r"path 'slimmest' differs by .*1e-04 is allowed"):
        export_subnetwork(network, "slimmest", filename)
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.tflite"]
    assert filename.read_bytes() == b"old"


def test_outputs_that_are_no_numbers_are_a_difference(network, tmp_path, monkeypatch):
    def not_a_number(image):
        return tf.math.log(-1.0 - tf.square(image[:, 0, :10, 0]))

    replace_run(monkeypatch, not_a_number)
    with pytest.raises(ValueError, match="differs by nan"):
        export_subnetwork(network, 0, tmp_path / "m.tflite")


def test_an_operator_that_needs_flex_fails_in_one_line_that_names_it(
    network, tmp_path, monkeypatch
):
    filename = tmp_path / "m.tflite"
    filename.write_bytes(b"old")
    replace_run(monkeypatch, lambda image: tf.linalg.svd(image, compute_uv=False))
    with pytest.raises(ValueError, match=r"'tf\.Svd' op is neither a custom op") as caught:
        export_subnetwork(network, 0, filename)
    assert "\n" not in str(caught.value)
    assert "loc(" not in str(caught.value)
    assert filename.read_bytes() == b"old"
