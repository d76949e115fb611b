"""The commands that the README had before the folders were renamed go on to work."""

import pathlib
import re
import shlex

import pytest
import saved_network
from light_programs import run_light_program
from programs import run_program

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
LINES = (REPOSITORY / "tests/golden/readme_commands.txt").read_text(encoding="utf-8").splitlines()
# A program that is named without flags stands for its own help.
COMMANDS = [
    line
    for line in LINES
    if line.startswith(("python recipes/", "keras-dsnet ")) and re.search(r" --(?!help)\w+", line)
]
NAMES = [
    line
    for line in LINES
    if line.startswith(("python recipes/", "keras-dsnet")) and line not in COMMANDS
]
DEPRECATED = "recipes/benchmark_mobile.py is deprecated: use recipes/benchmarks/benchmark_mobile.py"


def program_and_arguments(line):
    """Returns a program's path and the arguments of a command line."""
    command, *arguments = shlex.split(line)
    if command == "python":
        return REPOSITORY / arguments[0], arguments[1:]
    return REPOSITORY / "recipes/__main__.py", arguments


def moved_to(folder, arguments):
    """Returns arguments with the folders and files of the README inside of another folder."""
    return [re.sub(r"=(/data/|runs/|(?=\w+\.tflite))", f"={folder}/", item) for item in arguments]


def check_deprecations(line, stderr):
    """Checks that a deprecated name gives one line of warning, and another name none."""
    assert stderr.count("deprecated") == (DEPRECATED.split()[0] in line)
    assert (DEPRECATED in stderr) == (DEPRECATED.split()[0] in line)


@pytest.mark.parametrize("line", COMMANDS, ids=range(len(COMMANDS)))
def test_every_flag_of_it_is_accepted_up_to_the_start_of_the_work(line, tmp_path):
    program, arguments = program_and_arguments(line)
    spec = {**saved_network.SPEC, "stages": [{"channels": list(range(8, 64, 4)), "gated": True}]}
    for name in ("supernet", "gates"):
        saved_network.save(tmp_path / name, spec=spec)
    for name in ("tfds", "flowers/train/a", "flowers/val/a"):
        (tmp_path / name).mkdir(parents=True)
    # Neither CIFAR-10 nor ImageNet is installed where the tests run.
    data = [] if "flowers" in line or "--model=runs" in line else ["--dataset=digits"]
    done = run_light_program(program, *moved_to(tmp_path, arguments), *data, folder=str(tmp_path))
    # No package can be imported there: a program whose flags are right ends with its first import.
    assert done.stderr.splitlines()[-1].startswith("ModuleNotFoundError: "), done.stderr
    check_deprecations(line, done.stderr)


@pytest.mark.parametrize("line", NAMES)
def test_every_program_is_there(line):
    program, arguments = program_and_arguments(line)
    done = run_light_program(program, *arguments, "--help")
    assert done.returncode == 0
    assert "--workdir" in done.stdout or "--output" in done.stdout or line == "keras-dsnet"
    check_deprecations(line, done.stderr)


SMALL = (
    "--dataset=digits",
    "--train_split=train[:128]",
    "--eval_split=test[:50]",
    "--batch_size=64",
    "--epochs=2",
    "--recalibration_steps=1",
)


@pytest.mark.long
def test_the_commands_run_one_after_another_on_little_data(tmp_path):
    stage1, stage2, *others = [
        line
        for line in COMMANDS
        if "cifar10" in line or ("--model=runs" in line and "ds_" not in line)
    ]
    for line in (stage1, stage2, *others):
        program, arguments = program_and_arguments(line)
        arguments = [item for item in arguments if not item.startswith("--data_dir")]
        small = {stage1: SMALL, stage2: SMALL[:-1]}.get(line, ())
        done = run_program(program, *moved_to(tmp_path, arguments), *small)
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
    benchmark = REPOSITORY / "recipes/benchmark_mobile.py"
    small = ("--baseline=none", "--loads=1", "--rounds=1")
    done = run_program(benchmark, tmp_path / "m.tflite", f"--workdir={tmp_path / 'b'}", *small)
    assert done.returncode == 0, done.stderr
    check_deprecations("python recipes/benchmark_mobile.py", done.stderr)
    assert (tmp_path / "b" / "mobile.json").is_file()
