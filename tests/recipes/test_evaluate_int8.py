"""The program that says what int8 costs a network: its table, and one line for each mistake."""

import json
import pathlib

import keras
import numpy as np
import pytest
from exported import kind_of
from programs import run_program
from routed_networks import small_network
from tiny_families import TINY_RESNET, tiny_network

from keras_dsnet.data import evaluation_pipeline, load_source
from keras_dsnet.export import DynamicInterpreter
from keras_dsnet.export.tflite_model import operators_of, parse
from keras_dsnet.models.costs import section_costs
from keras_dsnet.training import evaluate_paths

PROGRAM = pathlib.Path(__file__).resolve().parents[2] / "recipes" / "evaluate_int8.py"


def save_run(network, folder):
    """Makes a folder that of a finished stage II on digits."""
    network.save(folder / "model.keras")
    run = {"dataset": "digits", "data_dir": None, "train_split": "train[:40]"}
    (folder / "config.json").write_text(json.dumps(run))
    return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """The folder of a network with batch norm."""
    network = small_network(classes=10)
    network.routes = (0, 2)
    return save_run(network, tmp_path_factory.mktemp("gate"))


@pytest.mark.long
def test_every_file_of_every_path_has_a_row(workdir, tmp_path):
    options = ("--images=40", "--representative_images=20", "--confidence")
    result = run_program(PROGRAM, f"--model={workdir}", f"--workdir={tmp_path}", *options)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "int8.json").read_text())
    routed, rows = rows[-12:], rows[:-12]
    assert [row["share"] for row in routed[::3]] == [0.1, 0.2, 0.3, 0.5]
    network = keras.models.load_model(workdir / "model.keras")
    trunk = section_costs(network, (0,))[0]
    for row in routed:
        expected = network.madds(0) + row["share"] * (network.madds(2) - trunk)
        assert (row["path"], row["madds"]) == ("confidence", pytest.approx(expected))
        assert row["agreement"] == 1 if row["file"] == "float32" else row["agreement"] > 0.5
    files = ["float32", "static int8", "shared int8", "fast int8"]
    assert [(row["path"], row["file"]) for row in rows] == [
        ([width], file) for width in (0, 2) for file in files
    ]
    size = network.input_shape[1:3]
    batches = evaluation_pipeline(
        load_source("digits", split="eval"),
        image_size=size,
        batch_size=1,
        preprocess=network.preprocess_input,
        # As runs on digits are evaluated.
        crop_fraction=1.0,
    ).take(40)
    measured = evaluate_paths(network, batches, [0, 2], dynamic=False)
    expected = {row["path"]: row["top1"] for row in measured}
    for row in rows:
        if row["file"] == "float32":
            assert row["top1"] == pytest.approx(expected[row["path"][0]])
        assert row["agreement"] == 1 if row["file"] == "float32" else row["agreement"] > 0.5
    assert_measured(rows, "shared int8", tmp_path / "shared.tflite", network, batches)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("confidence_shared.tflite", "confidence_fast.tflite"),
        *("shared.tflite", "fast.tflite", "static_0.tflite", "static_2.tflite"),
        *("int8.json", "int8.csv"),
    }
    assert "compared on 40 test images of digits" in result.stdout


def assert_measured(rows, name, filename, network, batches):
    """Asserts that the rows of a routed file are what the app's interpreter measures."""
    interpreter = DynamicInterpreter(filename)
    images, labels = zip(*((image.numpy(), int(label[0])) for image, label in batches))
    measured = [row for row in rows if row["file"] == name]
    assert len(measured) == 2
    for row in measured:
        (width,) = row["path"]
        classes = [interpreter.run(image[0], width, width)[0].argmax() for image in images]
        expected = [network(image, path=width).numpy().argmax() for image in images]
        assert row["top1"] == np.mean(np.array(classes) == labels)
        assert row["agreement"] == np.mean(np.array(classes) == expected)


def norm_types(filename):
    """Returns the types that the group norms of a file compute in."""
    model = parse(filename.read_bytes())
    return {
        kind_of(graph.tensors[index])
        for graph in model.subgraphs
        for operator, name in zip(graph.operators, operators_of(graph, model))
        if name in ("SQUARED_DIFFERENCE", "RSQRT")
        for index in operator.outputs
    }


@pytest.mark.long
@pytest.mark.slow
def test_group_norm_in_int8_has_a_row_and_a_file(tmp_path):
    run = save_run(tiny_network(TINY_RESNET, classes=10), tmp_path)
    options = ("--routes=1", "--images=20", "--representative_images=20")
    result = run_program(PROGRAM, f"--model={run}", f"--workdir={tmp_path / 'int8'}", *options)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "int8" / "int8.json").read_text())
    files = ["float32", "static int8", "static int8, norms too", "shared int8", "fast int8"]
    assert [(row["path"], row["file"]) for row in rows] == [([1, 1, 1], file) for file in files]
    assert norm_types(tmp_path / "int8" / "static_1_1_1.tflite") == {"FLOAT32"}
    assert norm_types(tmp_path / "int8" / "static_1_1_1_int8_norms.tflite") == {"INT8"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=missing"], "--model=missing is no .keras file and no work directory"),
        (["--routes=0,x"], "flag --routes=0,x: must be ascending widths such as 0,4,8,13"),
        (["--data_dir=missing"], "missing"),
    ],
)
def test_mistakes_are_one_line(arguments, message, workdir, tmp_path):
    options = (f"--model={workdir}", f"--workdir={tmp_path / 'new'}", *arguments)
    result = run_program(PROGRAM, *options)
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()
