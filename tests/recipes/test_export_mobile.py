"""The export program: what it prints and writes, and one line for each mistake."""

import functools
import importlib.util
import json
import pathlib
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from ai_edge_litert.interpreter import Interpreter
from detection_data import write_voc, xml
from keras_dsnet.applications import DSMobileNet
from keras_dsnet.applications.ds_mobilenet import preprocess_input
from programs import run_program
from routed_networks import SHORT_SPEC, SIZE, random_images, small_network
from tiny_detectors import tiny_detector
from tiny_families import TINY_RESNET, tiny_images, tiny_network

from keras_dsnet.data import load_source
from keras_dsnet.export import DynamicInterpreter
from keras_dsnet.export.conversion import MOST_IMAGES
from keras_dsnet.models import DynamicSlimmableNetwork, Normalization

PROGRAM = pathlib.Path(__file__).resolve().parents[2] / "recipes" / "export_mobile.py"
SOURCE_FLAGS = ("dataset", "data_dir", "train_split", "representative_images")
WITHOUT_TENSORFLOW = """
import pathlib, runpy, sys

sys.modules["tensorflow"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
FLAGS = (
    "model",
    "weights",
    "path",
    "output",
    "image_size",
    "routes",
    "routing",
    "steps",
    "thresholds",
    "quantize",
    "layout",
    "input_type",
    "crop_fraction",
)


@pytest.fixture(scope="module")
def network():
    network = small_network(classifier_activation=None)
    network.routes = (0, 2)
    return network


@pytest.fixture(scope="module")
def workdir(network, tmp_path_factory):
    """The folder of a finished stage II on digits."""
    folder = tmp_path_factory.mktemp("gate")
    network.save(folder / "model.keras")
    run = {"dataset": "digits", "data_dir": None, "train_split": "train[:40]", "epochs": 10}
    (folder / "config.json").write_text(json.dumps(run))
    return folder


@pytest.fixture(scope="module")
def program():
    """The program as a module. Its flags take the place of others' of the same name meanwhile."""
    names = (*FLAGS, *SOURCE_FLAGS)
    others = {name: flags.FLAGS[name] for name in names if name in flags.FLAGS}
    for name in others:
        delattr(flags.FLAGS, name)
    spec = importlib.util.spec_from_file_location("export_mobile", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    flags.FLAGS.mark_as_parsed()
    yield module
    for name in names:
        delattr(flags.FLAGS, name)
    for name, flag in others.items():
        flags.FLAGS[name] = flag


@pytest.fixture
def export(program):
    """Calls the program's main with flags, in this process: TensorFlow is loaded once."""

    def main(**arguments):
        with flagsaver.as_parsed(**{name: str(value) for name, value in arguments.items()}):
            program.check_flags()
            program.main([])

    return main


def digits(count):
    """Returns raw pixels of digits that no range was measured on, at the network's size."""
    images = load_source("digits", split="eval").images[:count].numpy()
    return images.reshape(count, SIZE, 2, SIZE, 2, 3).mean((2, 4)).round().astype("uint8")


@pytest.mark.slow
def test_the_file_routes_each_image_as_the_network_does(export, network, workdir, tmp_path):
    export(model=workdir, output=tmp_path / "m.tflite")
    interpreter = DynamicInterpreter(tmp_path / "m.tflite")
    assert interpreter.routes == (0, 2)
    images = random_images(16)
    results = [interpreter.run(image) for image in images]
    paths = [path for _, path in results]
    assert len(set(paths)) == 2
    np.testing.assert_array_equal(paths, network.route(images))
    outputs = [output for output, _ in results]
    np.testing.assert_allclose(outputs, network(images), atol=1e-4)


@pytest.mark.slow
def test_int8_is_measured_on_what_the_network_was_trained_on(
    export, network, workdir, tmp_path, capsys, recwarn
):
    output = tmp_path / "m.tflite"
    export(
        model=workdir,
        output=output,
        routes="1,3",
        quantize="int8",
        layout="fast",
        input_type="uint8",
    )
    told = capsys.readouterr().out
    assert "measured on 40 training images of digits" in told
    assert told.count("the gates were trained to choose among 0,2, not among --routes=1,3") == 1
    assert not [w for w in recwarn if "was trained for the routes" in str(w.message)]
    interpreter = DynamicInterpreter(output)
    metadata = interpreter.metadata
    told = [metadata[name] for name in ("quantize", "layout", "input_type")]
    assert told == ["int8", "fast", "uint8"]
    assert interpreter.routes == (1, 3)
    pixels = digits(20)
    for route in (1, 3):
        outputs = [interpreter.run(image, route, route)[0] for image in pixels]
        expected = network(preprocess_input(pixels), path=route).numpy()
        error = np.abs(outputs - expected).mean()
        assert error < 0.5 * expected.std(0).mean()


def test_images_come_raw_or_preprocessed_from_the_named_source(program, workdir):
    # Images are normalised as the network says, not as another one would have them.
    network = small_network(normalization=Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    read = functools.partial(program.data.representative_data, network)
    arguments = {"dataset": "digits", "train_split": "test[100:]", "representative_images": "3"}
    with flagsaver.as_parsed(**arguments):
        images = {
            input_type: list(read(workdir, (32, 32), input_type))
            for input_type in ("uint8", "float32")
        }
    expected = load_source("digits", split="eval").images[100:103]
    np.testing.assert_array_equal(np.concatenate(images["uint8"]), expected)
    expected = expected.numpy() / 127.5 - 1
    np.testing.assert_allclose(np.concatenate(images["float32"]), expected, atol=1e-6)


def test_a_path_writes_one_sub_network_and_says_so(export, network, workdir, tmp_path, capsys):
    output = tmp_path / "m.tflite"
    export(model=workdir, path=1, output=output)
    line, _, last = capsys.readouterr().out.splitlines()
    assert last == f"written: {output}"
    madds, megabytes = network.madds(1) / 1e6, output.stat().st_size / 1e6
    start = f"{output}: path 1, {madds:.2f}M MAdds, {megabytes:.2f} MB, largest difference "
    assert line.startswith(start)
    assert 0 <= float(line.removeprefix(start)) <= 1e-4


@pytest.mark.slow
def test_a_path_takes_raw_pixels_where_they_are_asked_for(export, network, workdir, tmp_path):
    export(model=workdir, path=1, input_type="uint8", output=tmp_path / "m.tflite")
    interpreter = Interpreter(str(tmp_path / "m.tflite"))
    pixels = digits(1)
    output = interpreter.get_signature_runner()(image=pixels)["output"]
    expected = network(preprocess_input(pixels), path=1)
    np.testing.assert_allclose(output, expected, rtol=1e-3, atol=1e-4)


def test_a_flag_allows_as_many_representative_images_as_an_export_reads(program):
    assert program.shared.MOST_REPRESENTATIVE_IMAGES == MOST_IMAGES


@pytest.mark.long
def test_a_path_has_a_width_for_each_of_several_gates(export, tmp_path, capsys):
    network = tiny_network(TINY_RESNET)
    network.save(tmp_path / "model.keras")
    export(model=tmp_path, path="0,2,1", output=tmp_path / "m.tflite")
    assert "path (0, 2, 1), " in capsys.readouterr().out
    interpreter = Interpreter(str(tmp_path / "m.tflite"))
    image = tiny_images(1)
    output = interpreter.get_signature_runner()(image=image)["output"]
    np.testing.assert_allclose(output, network(image, path=(0, 2, 1)), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"or 3 of them, one per gate.*Received: --path=0,2"):
        export(model=tmp_path, path="0,2", output=tmp_path / "m.tflite")
    with pytest.raises(flags.IllegalFlagValueError, match="--path=0,two,1: must be slimmest, "):
        export(model=tmp_path, path="0,two,1", output=tmp_path / "m.tflite")


@pytest.mark.slow
def test_the_crop_is_refused_where_nothing_reads_it(export, workdir, tmp_path):
    with pytest.raises(ValueError, match=r"of one --path does not name it.*--crop_fraction=0\.9$"):
        export(model=workdir, path=0, crop_fraction=0.9, output=tmp_path / "m.tflite")
    export(model=workdir, path=0, crop_fraction=0.9, quantize="int8", output=tmp_path / "m.tflite")
    assert (tmp_path / "m.tflite").is_file()


@pytest.mark.slow
def test_a_path_of_a_supernet_in_int8_is_measured_on_images_too(export, workdir, tmp_path, capsys):
    (tmp_path / "supernet.keras").write_bytes((workdir / "model.keras").read_bytes())
    (tmp_path / "config.json").write_bytes((workdir / "config.json").read_bytes())
    export(
        model=tmp_path,
        path="widest",
        quantize="int8",
        representative_images=20,
        output=tmp_path / "m.tflite",
    )
    assert "measured on 20 training images of digits" in capsys.readouterr().out
    interpreter = Interpreter(str(tmp_path / "m.tflite"))
    interpreter.allocate_tensors()
    assert np.int8 in {tensor["dtype"] for tensor in interpreter.get_tensor_details()}


def test_a_mistake_is_one_line_and_exit_code_1(workdir, tmp_path):
    output = tmp_path / "m.tflite"
    result = run_program(PROGRAM, f"--model={workdir}", "--path=99", f"--output={output}")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.stderr.splitlines()[-1] == line
    assert "from 0 to 3" in line
    assert "path=99" in line
    assert "--debug" not in line
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--routes=0,wide"],
            "flag --routes=0,wide: must be ascending widths such as 0,4,8,13",
        ),
        (["--path=1", "--routes=0,1"], "--routes is for a file with routes; --path=1 asks for one"),
        (["--path=1", "--layout=fast"], "--layout is for a file with routes"),
        (
            ["--quantize=int8", "--representative_images=501"],
            "--representative_images=501: 501 is not an integer in the range [1, 500]",
        ),
        (
            ["--output=m.lite"],
            "--output must name a file that ends in .tflite. Received: --output=",
        ),
        (["--dataset=digits"], "Only --quantize=int8 is measured on images. Received: --dataset="),
        (["--quantize=int4"], "value should be one of <none|float16|dynamic|int8>"),
        (
            ["--quantize=int8", "--dataset=./nowhere"],
            "--dataset=./nowhere: there is no such folder",
        ),
        (["--quantize=int8", "--data_dir=nowhere"], "--data_dir=nowhere: there is no such folder"),
    ],
)
def test_a_wrong_flag_is_told_before_tensorflow_is_loaded(workdir, tmp_path, arguments, message):
    flags = (f"--model={workdir}", f"--output={tmp_path / 'm.tflite'}", *arguments)
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, str(PROGRAM), *flags]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert message in line


def test_int8_without_images_asks_for_a_data_set(export, workdir, tmp_path):
    alone = tmp_path / "alone.keras"
    alone.write_bytes((workdir / "model.keras").read_bytes())
    with pytest.raises(ValueError, match=r"name their data set by --dataset.* is not the folder"):
        export(model=alone, quantize="int8", output=tmp_path / "m.tflite")


def test_the_run_in_the_present_folder_is_not_that_of_weights(export, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {"dataset": "digits", "data_dir": None, "train_split": None, "crop_fraction": 0.5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"training images: name their data set by --dataset$"):
        export(weights="cifar10", quantize="int8", path="slimmest", output="m.tflite")


@pytest.mark.slow
@pytest.mark.parametrize(("augmentation", "crop"), [("cifar", 1.0), ("imagenet", 0.875)])
def test_the_crop_of_the_run_stands_in_the_file(export, network, tmp_path, augmentation, crop):
    network.save(tmp_path / "model.keras")
    config = {"dataset": "flowers", "augmentation": augmentation}
    (tmp_path / "config.json").write_text(json.dumps(config))
    export(model=tmp_path, output=tmp_path / "m.tflite", layout="staged")
    metadata = DynamicInterpreter(tmp_path / "m.tflite").metadata
    assert metadata["preprocessing"]["crop_fraction"] == crop


def test_a_data_set_that_was_moved_away_is_asked_for(program, workdir, tmp_path):
    (tmp_path / "run").mkdir()
    run = {"dataset": ".", "places": {"dataset": str(tmp_path / "gone")}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(run))
    with flagsaver.as_parsed(), pytest.raises(FileNotFoundError, match=r"gone, which .* exist any"):
        program.data.training_source(tmp_path / "run")


@pytest.fixture
def other_files(tmp_path):
    """Files that are no networks of this package."""
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "dense.keras")
    (tmp_path / "text.keras").write_text("not a model")
    with zipfile.ZipFile(tmp_path / "zip.keras", "w") as archive:
        archive.writestr("other.json", json.dumps({}))
    return tmp_path


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere", "nowhere is no .keras file and no work directory with model.keras"),
        ("", "is no .keras file and no work directory with model.keras"),
        ("dense.keras", "dense.keras holds a Sequential; name a DynamicSlimmableNetwork"),
        ("text.keras", "text.keras is no .keras file, or is damaged"),
        ("zip.keras", "zip.keras is no .keras file, or is damaged"),
    ],
)
def test_a_model_that_is_none_is_named(export, other_files, model, message):
    with pytest.raises((ValueError, OSError)) as caught:
        export(model=other_files / model, output=other_files / "m.tflite")
    assert message in str(caught.value)
    assert not (other_files / "m.tflite").exists()


@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_a_cut_model_file_is_called_damaged(export, workdir, tmp_path, kept):
    content = (workdir / "model.keras").read_bytes()
    (tmp_path / "cut.keras").write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"cut\.keras is no \.keras file, or is damaged"):
        export(model=tmp_path / "cut.keras", output=tmp_path / "m.tflite")


def test_a_flipped_bit_of_the_weights_is_called_damaged(export, workdir, tmp_path):
    content = bytearray((workdir / "model.keras").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.keras").write_bytes(content)
    with pytest.raises(ValueError, match=r"flipped\.keras is damaged at model\.weights\.h5"):
        export(model=tmp_path / "flipped.keras", output=tmp_path / "m.tflite")


def test_an_output_that_cannot_be_written_is_named(export, workdir, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"--output=.*there is no folder .*nowhere"):
        export(model=workdir, output=tmp_path / "nowhere" / "m.tflite")
    with pytest.raises(IsADirectoryError, match=r"is a folder; name a \.tflite file"):
        export(model=workdir, output=tmp_path)
    # The permissions of a folder do not bind root, as whom tests may run.
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(PermissionError, match=r"--output=.* cannot be written"):
        export(model=workdir, output=tmp_path / "m.tflite")


@pytest.mark.slow
def test_a_network_of_any_image_size_asks_for_one(export, network, tmp_path):
    config = {**network.get_config(), "input_shape": (None, None, 3)}
    DynamicSlimmableNetwork.from_config(config).save(tmp_path / "open.keras")
    with pytest.raises(ValueError, match=r"any size: choose one by --image_size"):
        export(model=tmp_path / "open.keras", output=tmp_path / "m.tflite")
    export(
        model=tmp_path / "open.keras",
        image_size=SIZE,
        path="slimmest",
        output=tmp_path / "m.tflite",
    )
    (image,) = Interpreter(str(tmp_path / "m.tflite")).get_input_details()
    assert image["shape"].tolist() == [1, SIZE, SIZE, 3]


@pytest.mark.slow
def test_released_weights_route_by_confidence(program, released_checkpoint, capsys):
    with flagsaver.as_parsed(weights="imagenet"):
        flags.FLAGS.mark_as_parsed()
        network, _ = program.load_network()
    assert (network.routing, network.confidence_steps) == ("confidence", (0, 13))
    assert "routes by confidence, with the steps (0, 13)" in capsys.readouterr().out
    with flagsaver.as_parsed(weights="cifar10"):
        network, _ = program.load_network()
    # Weights with a trained gate keep the routing and the thresholds that they were saved with.
    assert (network.routing, network.confidence_steps) == ("confidence", (0, 13))
    assert network.thresholds != (0.7,)
    assert capsys.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "steps (0, 13) and the thresholds 0.7. Calibrate the thresholds on your own"),
        ({"routes": "0,4,8"}, "steps (0, 8) and the thresholds 0.7. Calibrate"),
        ({"steps": "0,3,5"}, "steps (0, 3, 5) and the thresholds 0.7, 0.7. Calibrate"),
        ({"steps": "0,5", "thresholds": "0.9"}, "steps (0, 5) and the thresholds 0.9\n"),
        ({"routing": "gate"}, ""),
        ({"path": "slimmest"}, ""),
    ],
    ids=["default", "routes", "steps", "thresholds", "gate", "path"],
)
def test_what_is_told_of_weights_without_a_gate_is_what_the_file_does(
    given, told, program, released_checkpoint, capsys
):
    with flagsaver.as_parsed(weights="imagenet", **given):
        program.load_network()
    out = capsys.readouterr().out
    # Keras prints the download too.
    assert ("routes by confidence" in out) == bool(told)
    assert told in out


def test_a_gate_that_is_not_trained_is_named_by_the_flag_of_its_weights(
    program, released_checkpoint, tmp_path, capsys
):
    with flagsaver.as_parsed(weights="imagenet", routing="gate"):
        network, _ = program.load_network()
        program.warn_of_gates(network, tmp_path)
    out = capsys.readouterr().out
    assert "the gates of --weights=imagenet are not trained" in out
    assert "--model=None" not in out


@pytest.mark.long
def test_one_command_writes_a_dynamic_file_of_the_released_weights(
    export, released_checkpoint, tmp_path, capsys
):
    export(weights="imagenet", output=tmp_path / "m.tflite", image_size=32)
    assert "mean nothing" not in capsys.readouterr().out
    interpreter = DynamicInterpreter(tmp_path / "m.tflite")
    arguments = {"routing": "confidence", "confidence_steps": (0, 13)}
    network = DSMobileNet(weights="imagenet", input_shape=(32, 32, 3), **arguments)
    images = random_images(8, size=32)
    results = [interpreter.run(image) for image in images]
    np.testing.assert_allclose([output for output, _ in results], network(images), atol=1e-4)
    np.testing.assert_array_equal([path for _, path in results], network.route(images))


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A detector and its folder, which names the VOC folder that it was trained on."""
    folder = tmp_path_factory.mktemp("detector")
    detector = tiny_detector(spec=SHORT_SPEC, classes=2, pyramid=(12, 8))
    detector.replace_routes((0, 3))
    detector.save(folder / "detector.keras")
    boxes = [("cat", (2, 5, 22, 35)), ("dog", (1, 40, 11, 55))]
    names = [f"im{number}" for number in range(12)]
    lists = {"train": names[:9], "val": names[9:]}
    write_voc(folder / "pets", dict.fromkeys(names, xml(*boxes)), lists)
    run = {"dataset": str(folder / "pets"), "data_dir": None, "train_split": None, "ranges": None}
    (folder / "config.json").write_text(json.dumps(run))
    return detector, folder


@pytest.mark.slow
def test_a_detector_is_exported_by_the_same_flags(export, detector, tmp_path, capsys):
    detector, folder = detector
    output = tmp_path / "d.tflite"
    options = {"model": folder, "path": 3, "quantize": "int8", "input_type": "uint8"}
    export(**options, output=output)
    told = capsys.readouterr().out
    assert f"measured on 9 training images of {folder / 'pets'}" in told
    assert f"{output}: path 3, {detector.madds(3) / 1e6:.2f}M MAdds, " in told
    pixels = np.random.default_rng(0).integers(0, 256, (1, 24, 24, 3), "uint8")
    results = Interpreter(str(output)).get_signature_runner()(image=pixels)
    expected = detector.decode(detector(detector.preprocess_input(pixels), path=3))[1]
    # Of raw pixels, in the range of the images that the file was measured on.
    errors = np.abs(results["scores"] - expected)
    assert errors.mean() < 0.5 * np.abs(expected - expected.numpy().mean()).mean()
    with pytest.raises(ValueError, match=r"--path must be a width from 0 to 3 .*--path=4"):
        export(model=folder, path=4, output=output)
    with pytest.raises(ValueError, match="--routes must be widths from 0 to 3"):
        export(model=folder, routes="0,9", output=output)
    with pytest.raises(ValueError, match=r"detectors see whole images\. Received: --crop_fr"):
        export(model=folder, crop_fraction=0.9, output=output)


@pytest.mark.long
def test_a_detector_is_exported_with_its_routes(export, detector, tmp_path, capsys):
    detector, folder = detector
    export(model=folder, output=tmp_path / "d.tflite", layout="fast")
    assert f"--model={folder}" in capsys.readouterr().out
    interpreter = DynamicInterpreter(tmp_path / "d.tflite")
    assert interpreter.routes == (0, 3)
    assert interpreter.is_detector
