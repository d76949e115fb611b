"""The export program: what it prints and writes, and one line for each mistake."""

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

from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, MobileNetStage

PROGRAM = pathlib.Path(__file__).resolve().parents[2] / "recipes" / "export_mobile.py"
SIZE = 16


@pytest.fixture(scope="module")
def network():
    spec = MobileNetSpec(
        stem=(4, 6),
        stages=(
            MobileNetStage(1, 2, (4, 8)),
            MobileNetStage(1, 2, (8, 12, 16), gated=True),
        ),
    )
    network = DynamicSlimmableNetwork(spec, (SIZE, SIZE, 3), classes=4)
    generator = np.random.default_rng(0)
    for variable in network.variables:
        variable.assign_add(generator.uniform(0.0, 0.5, variable.shape))
    return network


@pytest.fixture(scope="module")
def workdir(network, tmp_path_factory):
    """The folder of a finished stage II."""
    folder = tmp_path_factory.mktemp("gate")
    network.save(folder / "model.keras")
    return folder


@pytest.fixture(scope="module")
def program():
    """The program as a module. Its flags take the place of others' of the same name meanwhile."""
    names = ("model", "path", "output", "image_size")
    others = {name: flags.FLAGS[name] for name in names if name in flags.FLAGS}
    for name in others:
        delattr(flags.FLAGS, name)
    spec = importlib.util.spec_from_file_location("export_mobile", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
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
            flags.FLAGS.mark_as_parsed()
            program.main([])

    return main


def run_program(*arguments):
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_writes_a_file_and_says_what_it_wrote(export, network, workdir, tmp_path, capsys):
    output = tmp_path / "m.tflite"
    export(model=workdir, path=1, output=output)
    (line,) = capsys.readouterr().out.splitlines()
    madds, megabytes = network.madds(1) / 1e6, output.stat().st_size / 1e6
    start = f"{output}: path 1, {madds:.2f}M MAdds, {megabytes:.2f} MB, largest difference "
    assert line.startswith(start)
    assert 0 <= float(line.removeprefix(start)) <= 1e-4


def test_a_supernet_and_a_keras_file_will_do(export, network, tmp_path):
    filename = tmp_path / "supernet.keras"
    network.save(filename)
    for number, model in enumerate((tmp_path, filename)):
        export(model=model, path="slimmest", output=tmp_path / f"{number}.tflite")
        assert (tmp_path / f"{number}.tflite").stat().st_size


def test_a_mistake_is_one_line_and_exit_code_1(workdir, tmp_path):
    output = tmp_path / "m.tflite"
    result = run_program(f"--model={workdir}", "--path=99", f"--output={output}")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.stderr.splitlines()[-1] == line
    assert "from 0 to 2" in line
    assert "path=99" in line
    assert "--debug" not in line
    assert not output.exists()


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


def test_a_network_of_any_image_size_asks_for_one(export, network, tmp_path):
    config = {**network.get_config(), "input_shape": (None, None, 3)}
    DynamicSlimmableNetwork.from_config(config).save(tmp_path / "open.keras")
    with pytest.raises(ValueError, match=r"any size: choose one by --image_size"):
        export(model=tmp_path / "open.keras", output=tmp_path / "m.tflite")
    export(model=tmp_path / "open.keras", image_size=SIZE, output=tmp_path / "m.tflite")
    (image,) = Interpreter(str(tmp_path / "m.tflite")).get_input_details()
    assert image["shape"].tolist() == [1, SIZE, SIZE, 3]
