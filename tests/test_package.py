import configparser
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata

import pytest
from programs import run_program

import keras_dsnet

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

# What only some uses need; importing the package must not pay for it.
LAZY = {
    "ai_edge_litert",
    "keras_cv",
    "matplotlib",
    "sklearn",
    "tensorboard",
    "tensorflow_datasets",
    "tensorflow_model_optimization",
    "tf_keras",
    "tqdm",
}

MEASURE_IMPORT = """
import contextlib, io, json, sys, time
import keras, tensorflow
before = set(sys.modules)
printed = io.StringIO()
start = time.perf_counter()
with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
    import keras_dsnet
seconds = time.perf_counter() - start
modules = sorted({name.split(".")[0] for name in set(sys.modules) - before})
print(json.dumps({"seconds": seconds, "printed": printed.getvalue(), "modules": modules}))
"""


def _run_code(code, folder):
    program = folder / "program.py"
    program.write_text(code)
    result = run_program(program)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_is_cheap_silent_and_brings_no_optional_package(tmp_path):
    for _ in range(4):
        report = json.loads(_run_code(MEASURE_IMPORT, tmp_path).splitlines()[-1])
        assert report["printed"] == ""
        assert not LAZY & set(report["modules"])
        # The least of several runs is the cost; the rest is what else the machine did.
        if report["seconds"] <= 0.3:
            return
    pytest.fail(f"import keras_dsnet took {report['seconds']:.2f} s more than keras and tensorflow")


def test_another_backend_is_refused_in_one_line():
    done = subprocess.run(
        [sys.executable, "-c", "import keras_dsnet"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "KERAS_BACKEND": "numpy", "PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert re.fullmatch(r"ImportError: .* needs Keras on TensorFlow.*: backend 'numpy'", last), last


def test_subpackages_are_there_without_being_imported(tmp_path):
    code = """
import sys, keras_dsnet
assert "keras_dsnet.applications" not in sys.modules and "keras_dsnet.training" not in sys.modules
assert callable(keras_dsnet.applications.DSMobileNet)
assert keras_dsnet.layers.SlicedConv2D.__module__.startswith("keras_dsnet.layers")
assert keras_dsnet.training is sys.modules["keras_dsnet.training"]
"""
    _run_code(code, tmp_path)


def test_a_checkout_that_hides_an_installed_package_has_applications(tmp_path):
    code = f"""
import importlib.util, os, sys
# A plain install has no finder of an editable one, and Python finds the folder it starts in first.
sys.meta_path[:] = [f for f in sys.meta_path if "_editable_" not in getattr(f, "__module__", "")]
sys.path = [{str(REPOSITORY)!r}, *(path for path in sys.path if "_editable_" not in path)]
assert importlib.util.find_spec("keras_dsnet_recipes") is None
from keras_dsnet.applications import DSMobileNet
from keras_dsnet.applications.ds_mobilenet import preprocess_input
print(sys.modules["keras_dsnet"].__file__, sys.modules["keras_dsnet.applications"].__file__)
"""
    expected = [REPOSITORY / folder / "__init__.py" for folder in ("keras_dsnet", "applications")]
    assert _run_code(code, tmp_path).split() == [str(path) for path in expected]


def test_an_unknown_attribute_raises():
    with pytest.raises(AttributeError, match=r"keras_dsnet.*'no_such_thing'"):
        _ = keras_dsnet.no_such_thing


def test_dir_lists_every_subpackage():
    folders = {path.parent.name for path in (REPOSITORY / "keras_dsnet").glob("*/__init__.py")}
    assert set(dir(keras_dsnet)) == {"__version__", "applications", *folders}


def test_the_installed_version_is_the_version_of_the_code():
    assert metadata.version("keras_dsnet") == keras_dsnet.__version__


def _requirements():
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    lines = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    return [line for line in "\n".join(lines).split("\n") if line]


def test_every_requirement_has_a_lower_bound():
    for requirement in _requirements():
        assert re.fullmatch(r"[\w-]+>=[\d.]+(,<[\d.]+)?(; python_version.*)?", requirement)


def test_the_lowest_versions_that_are_tested_are_the_declared_ones():
    declared = {re.sub(r"[,;].*", "", line).replace(">=", "==") for line in _requirements()}
    lines = (REPOSITORY / "tests" / "lowest.txt").read_text().splitlines()
    assert {line for line in lines if not line.startswith("#")} == declared


def test_the_dependencies_work_together_in_one_process(tmp_path):
    code = """
import keras, keras_dsnet, tensorflow as tf
network = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(2)])
file = tf.lite.TFLiteConverter.from_keras_model(network).convert()
from ai_edge_litert.interpreter import Interpreter
Interpreter(model_content=file).allocate_tensors()
import keras_cv, matplotlib.figure, sklearn.datasets, tensorboard, tqdm
import tensorflow_datasets as tfds
tfds.features.FeaturesDict({"image": tfds.features.Image()}).to_proto()
import tensorflow_model_optimization
"""
    _run_code(code, tmp_path)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of the sources, so that the checkout stays clean."""
    source = tmp_path_factory.mktemp("source")
    for name in ("keras_dsnet", "applications", "recipes"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, source / name, ignore=ignored)
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    built = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(built), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = built.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_installs_applications_inside_the_package_only(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    (site_packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    # The dependencies, without the editable install: a .pth file in a folder named here is ignored.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(site_packages), str(wheel)], check=True)

    code = """
import importlib.util, keras_dsnet.applications, keras_dsnet.training
assert importlib.util.find_spec("applications") is None
assert importlib.util.find_spec("recipes") is None
print(keras_dsnet.applications.__file__)
"""
    done = subprocess.run(
        [python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    printed = done.stdout
    assert printed.splitlines()[-1].startswith(str(site_packages))
    installed = {path.relative_to(site_packages) for path in site_packages.rglob("*.py")}
    for folder, prefix in (("keras_dsnet", ""), ("applications", "keras_dsnet")):
        for path in (REPOSITORY / folder).rglob("*.py"):
            assert pathlib.Path(prefix) / path.relative_to(REPOSITORY) in installed
