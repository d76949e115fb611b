"""`python -m keras_dsnet.weights`, which converts checkpoints."""

import re

import keras
import numpy as np
import pytest
from keras_dsnet.applications import DSMobileNet
from programs import run_program

from keras_dsnet.utils import UserError
from keras_dsnet.weights import convert_checkpoint
from keras_dsnet.weights.__main__ import write_weights


def run_module(folder, module, *arguments):
    """Runs `python -m MODULE ARGUMENTS...`."""
    program = folder / "program.py"
    program.write_text(f"import runpy; runpy.run_module({module!r}, None, '__main__', True)")
    return run_program(program, *arguments)


@pytest.mark.slow
def test_the_converter(checkpoint, tmp_path, tmp_path_factory):
    target = tmp_path / "net.weights.h5"
    folder = tmp_path_factory.mktemp("converter")
    result = run_module(folder, "keras_dsnet.checkpoints", checkpoint, target)
    assert result.returncode == 0, result.stderr
    assert "`python -m keras_dsnet.checkpoints` is deprecated" in result.stderr
    assert "20 classes, routes (0, 1, 2, 3)" in result.stdout
    model = DSMobileNet(weights=checkpoint, input_shape=(32, 32, 3))
    converted = DSMobileNet(weights=target, input_shape=(32, 32, 3))
    for value, expected in zip(converted.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["net.weights.h5"]


@pytest.mark.parametrize("files", [[], ["a.pth"], ["a", "b", "c"]])
def test_the_converter_wants_two_files(files):
    with pytest.raises(UserError, match="usage"):
        write_weights(files)


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--help"], 0, "python -m keras_dsnet.weights SOURCE.keras TARGET.weights.h5 --float16"),
        (["--emma", "a.pth", "a.weights.h5"], 1, "error: Unknown command line flag 'emma'"),
        (["--float16", "a.pth", "a.weights.h5"], 1, "error: --float16 is for a .keras file"),
        (["none.pth", "a.weights.h5"], 1, "error: No such file or directory: none.pth"),
        (["none.keras", "a.weights.h5"], 1, "error: File not found"),
    ],
)
def test_mistakes_in_the_command_of_the_converter(tmp_path, arguments, code, line):
    result = run_module(tmp_path, "keras_dsnet.weights", *arguments)
    assert result.returncode == code
    assert line in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("error: ") == code


def test_the_converter_names_both_kinds_of_source(tmp_path):
    source = tmp_path / "a.weights.h5"
    DSMobileNet(alpha=0.25, classes=2).save_weights(source)
    with pytest.raises(UserError, match=r"\(\.pth\.tar\).*\(\.keras\).*a\.weights\.h5"):
        convert_checkpoint(source, tmp_path / "b.weights.h5")


def test_the_converter_leaves_nothing_half_written(checkpoint, tmp_path):
    with pytest.raises(UserError, match=r"must end with \.weights\.h5"):
        convert_checkpoint(checkpoint, tmp_path / "net.h5")
    (tmp_path / "cut.pth.tar").write_bytes(checkpoint.read_bytes()[:9000])
    with pytest.raises(UserError, match="cut"):
        convert_checkpoint(tmp_path / "cut.pth.tar", tmp_path / "net.weights.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["cut.pth.tar"]


@keras.saving.register_keras_serializable(package="tests")
class OfAnotherProgram(keras.layers.Dense):
    """A layer that only this process knows."""


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (keras.layers.Dense, "a .keras file must hold a DynamicSlimmableNetwork. .*a Sequential$"),
        (OfAnotherProgram, "a .keras file must hold .*Could not locate class 'OfAnotherProgram'"),
    ],
)
def test_the_converter_takes_networks_only(tmp_path, layer, message):
    keras.Sequential([keras.Input((2,)), layer(1)]).save(tmp_path / "plain.keras")
    folder = tmp_path / "program"
    folder.mkdir()
    files = tmp_path / "plain.keras", tmp_path / "net.weights.h5"
    result = run_module(folder, "keras_dsnet.weights", *files)
    assert result.returncode == 1
    assert re.search(message, result.stderr.splitlines()[-1])
    assert "Traceback" not in result.stderr
    assert not files[1].exists()
