"""The command `keras-dsnet`: the programs as sub-commands."""

import pathlib
import shutil
import subprocess
import sys
import venv

import numpy as np
import pytest
from light_programs import run_light_program

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
RECIPES = REPOSITORY / "recipes"


def command(*arguments):
    return run_light_program(RECIPES / "__main__.py", *arguments)


@pytest.mark.parametrize("arguments", [(), ("--help",), ("help",), ("-h",)])
def test_the_command_alone_lists_its_programs(arguments):
    done = command(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("stage1", "stage2", "calibrate", "evaluate", "export", "benchmark"):
        assert f"\n  {name} " in done.stdout


def test_an_unknown_command_is_one_line():
    done = command("trian")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: keras-dsnet has no command 'trian': it has stage1, ")


@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("stage1", "imagenet_stage1.py"),
        ("stage2", "imagenet_stage2.py"),
        ("evaluate", "evaluate.py"),
        ("export", "export_mobile.py"),
        ("benchmark", "benchmark_mobile.py"),
    ],
)
def test_a_command_is_the_program_with_its_help_and_its_errors(name, program):
    done = command(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    alone = run_light_program(RECIPES / program, "--help")
    assert done.stdout == alone.stdout
    wrong = command(name, "--no_such_flag=1")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: Unknown command line flag 'no_such_flag'")


def test_the_next_command_is_written_as_this_one_was(tmp_path):
    code = (
        "import sys; from keras_dsnet_recipes.lib import run; sys.argv = ['recipes/a.py'];"
        "print(run.command('stage2', '--workdir=a b', None));"
        "run.started_as_command = True; print(run.command('export', '--model=x'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "python recipes/imagenet_stage2.py '--workdir=a b'",
        "keras-dsnet export --model=x",
    ]


@pytest.mark.long
def test_the_wheel_installs_the_command(tmp_path):
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("keras_dsnet", "applications", "recipes"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=ignored)
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True)
    (packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    # The dependencies, without what else may be installed where they are.
    (packages / "dependencies.pth").write_text(f"{pathlib.Path(np.__file__).parents[1]}\n")

    def run(*arguments):
        program = tmp_path / "env" / "bin" / "keras-dsnet"
        return subprocess.run(
            [program, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    assert "stage1" in run().stdout
    wrong = run("stage1", "--recalibration_steps=0", "--workdir=x")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: flag --recalibration_steps=0")
    data = ("--dataset=digits", "--train_split=train[:128]", "--eval_split=test[:50]")
    small = (
        "--alpha=0.25",
        "--output_stride=32",
        "--batch_size=64",
        "--epochs=1",
        "--num_random=0",
    )
    done = run("stage1", *data, *small, "--workdir=s", "--recalibration_steps=1")
    assert done.returncode == 0, done.stderr
    assert "keras-dsnet stage2" in done.stdout.splitlines()[-1]
    done = run("evaluate", "--model=s", "--workdir=e", "--paths=0,13")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "e" / "tables" / "paths.csv").is_file()
