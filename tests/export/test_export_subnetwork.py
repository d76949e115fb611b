"""The TFLite file of one path: its outputs, its operators, and what a failure leaves behind."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from keras_dsnet.export import export_subnetwork
from keras_dsnet.export import export_subnetwork as exported
from tests.training.test_gate_trainer import make_network


@pytest.fixture(scope="module")
def network():
    return make_network()


@pytest.mark.parametrize("path", [0, "widest"])
def test_outputs_of_the_file_are_those_of_the_path(network, path, tmp_path):
    report = export_subnetwork(network, path, tmp_path / "m.tflite")
    interpreter = Interpreter(str(tmp_path / "m.tflite"))
    runner = interpreter.get_signature_runner("serving_default")
    image = np.random.default_rng(3).normal(size=(1, 16, 16, 3)).astype("float32")
    expected = network(image, path=path).numpy()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(runner(image=image)["output"], expected, atol=1e-4 * scale)
    assert report["madds"] == network.madds(path)
    assert report["bytes"] == (tmp_path / "m.tflite").stat().st_size


def test_the_file_has_builtin_operators_only_and_no_batch_norm(network, tmp_path):
    export_subnetwork(network, 1, tmp_path / "m.tflite")
    content = (tmp_path / "m.tflite").read_bytes()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
    codes = [code.builtinCode for code in model.operatorCodes]
    assert schema.BuiltinOperator.CUSTOM not in codes
    convolutions = {schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.DEPTHWISE_CONV_2D}
    operators = [codes[op.opcodeIndex] for op in model.subgraphs[0].operators]
    assert sum(code in convolutions for code in operators) == 7
    # Attention multiplies and swish multiplies; a batch norm left over would add some.
    assert operators.count(schema.BuiltinOperator.MUL) <= 3 + 7


def test_an_unwritable_path_is_one_clear_error(network, tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        export_subnetwork(network, 0, tmp_path / "nowhere" / "m.tflite")


def test_a_file_that_differs_is_not_written_and_the_old_one_survives(
    network, tmp_path, monkeypatch
):
    filename = tmp_path / "m.tflite"
    filename.write_bytes(b"old")
    module = __import__(exported.__module__, fromlist=["largest_difference"])
    for difference in (1.0, float("nan")):
        monkeypatch.setattr(module, "largest_difference", lambda *_, d=difference: d)
        with pytest.raises(ValueError, match="differs"):
            export_subnetwork(network, 0, filename)
        assert [path.name for path in tmp_path.iterdir()] == ["m.tflite"]
        assert filename.read_bytes() == b"old"


def test_an_unknown_path_is_named(network, tmp_path):
    with pytest.raises(ValueError, match="path=9"):
        export_subnetwork(network, 9, tmp_path / "m.tflite")
