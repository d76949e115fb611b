"""What a program prints for a mistake, a bug, a signal, and where it asks for help."""

import json
import re
import subprocess
import sys

import pytest

from keras_dsnet.runs import WorkDir
from keras_dsnet.utils import UserError

PROGRAM = '''
"""Fails in the way that it is asked for.

    python program.py --do=nothing
"""

import errno, os, signal, sys, time

import keras
import tensorflow as tf
from absl import flags

from keras_dsnet.utils import UserError
from keras_dsnet.utils.atomic_file import atomic_file
from keras_dsnet_recipes.lib import flags as shared
from keras_dsnet_recipes.lib.start import start

DO = flags.DEFINE_string("do", "nothing", "What to do.")
shared.define_batch_size(1, "A number.")
shared.define_path("workdir", None, "Where the run is kept.")

@tf.function
def traced(x):
    if x.shape[0] != 3:
        raise ValueError("needs 3 images")
    return x

def broken_image(number):
    raise UserError("image bee/2.jpg cannot be read")

def broken_code(number):
    return {}[number]

def main(argv):
    match DO.value:
        case "nothing":
            print("argv", argv[1:])
        case "code":
            return 3
        case "value_error":
            raise ValueError("alpha must be positive. Received: alpha=0\\nmore")
        case "user_error":
            raise UserError("no such data set: 'cifar11'")
        case "library_error":
            keras.activations.get("swoosh")
        case "traced_error":
            traced(tf.zeros([2]))
        case "missing_file":
            open("/no/such/file")
        case "full_disk":
            raise OSError(errno.ENOSPC, "No space left on device", "runs/x/checkpoint")
        case "tensorflow_missing_file":
            tf.io.read_file("/no/such/file")
        case "pipeline_user_error" | "pipeline_bug":
            fail = broken_image if DO.value == "pipeline_user_error" else broken_code
            images = tf.data.Dataset.range(3)
            list(images.map(lambda x: tf.numpy_function(fail, [x], tf.int64)))
        case "bug":
            {}["key"]
        case "interrupt":
            # What runs in the background inherits that SIGINT is ignored; Python's default is not.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        case "terminate":
            with atomic_file("m.tflite") as file:
                file.write("half")
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(10)

if __name__ == "__main__":
    start(main, arguments=True)
'''

# Importing TensorFlow takes seconds: every case is a fork of one process that has imported it.
FORK_EACH = """
import json, os, runpy, sys, traceback
import keras_dsnet.training

def run(arguments):
    sys.argv = ["program.py", *arguments]
    try:
        runpy.run_path("program.py", run_name="__main__")
    except SystemExit as stop:
        return stop.code or 0
    except BaseException:
        traceback.print_exc()
    return 1

outcomes = {}
for name, arguments in json.loads(sys.argv[1]).items():
    child = os.fork()
    if not child:
        for number, stream in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{name}.{stream}", os.O_WRONLY | os.O_CREAT), number)
        code = run(arguments)
        sys.stdout.flush()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    outcomes[name] = [code, open(f"{name}.out").read(), open(f"{name}.err").read()]
print(json.dumps(outcomes))
"""

CASES = {
    "nothing": ["file"],
    "code": ["--do=code"],
    "value_error": ["--do=value_error"],
    "value_error_debug": ["--do=value_error", "--debug"],
    "user_error": ["--do=user_error"],
    "library_error": ["--do=library_error"],
    "traced_error": ["--do=traced_error"],
    "missing_file": ["--do=missing_file"],
    "full_disk": ["--do=full_disk"],
    "tensorflow_missing_file": ["--do=tensorflow_missing_file"],
    "pipeline_user_error": ["--do=pipeline_user_error"],
    "pipeline_bug": ["--do=pipeline_bug"],
    "bug": ["--do=bug"],
    "interrupt": ["--do=interrupt"],
    "interrupt_workdir": ["--do=interrupt", "--workdir=runs/x"],
    "interrupt_without_checkpoint": ["--do=interrupt", "--workdir=runs/y"],
    "terminate": ["--do=terminate"],
    "terminate_workdir": ["--do=terminate", "--workdir=runs/x"],
    "unknown_flag": ["--workdr=x"],
    "wrong_value": ["--batch_size=two"],
    "help": ["--help"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("program")


@pytest.fixture(scope="module")
def outcomes(folder):
    """The exit code, the output and the lines on stderr of every case."""
    (folder / "program.py").write_text(PROGRAM.lstrip())
    WorkDir(folder / "runs/x", {}).checkpoint.touch()
    WorkDir(folder / "runs/y", {})
    command = [sys.executable, "-c", FORK_EACH, json.dumps(CASES)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return {
        name: (code, out, [line for line in err.splitlines() if not _is_tensorflow_log(line)])
        for name, (code, out, err) in json.loads(result.stdout.splitlines()[-1]).items()
    }


def _is_tensorflow_log(line):
    return re.match(r"[IWE]\d{4} |WARNING: All log messages|\d{4}-\d\d-\d\d ", line)


@pytest.mark.long
def test_main_gets_what_is_left_of_the_command_line(outcomes):
    assert outcomes["nothing"] == (0, "argv ['file']\n", [])


def test_what_main_returns_is_the_exit_code(outcomes):
    assert outcomes["code"] == (3, "", [])


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("value_error", "error: alpha must be positive. Received: alpha=0"),
        ("user_error", "error: no such data set: 'cifar11'"),
        ("pipeline_user_error", "error: image bee/2.jpg cannot be read"),
        ("missing_file", "error: No such file or directory: /no/such/file"),
        ("full_disk", "error: No space left on device: runs/x/checkpoint"),
        ("unknown_flag", "error: Unknown command line flag 'workdr'. Did you mean: workdir ?"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_1(outcomes, name, line):
    assert outcomes[name] == (1, "", [line])


def test_a_wrong_value_names_the_flag(outcomes):
    code, _, (line,) = outcomes["wrong_value"]
    assert code == 1
    assert line.startswith("error: flag --batch_size=two: ")


def test_a_missing_file_that_tensorflow_reports_is_one_line(outcomes):
    code, _, (line,) = outcomes["tensorflow_missing_file"]
    assert code == 1
    assert line.startswith("error: /no/such/file; No such file or directory")


def test_an_error_of_a_library_says_how_to_see_its_place(outcomes):
    code, _, (line,) = outcomes["library_error"]
    assert code == 1
    assert re.match(r"error: .*swoosh.* \(--debug shows where\)$", line)


def test_an_error_inside_a_traced_function_is_its_message(outcomes):
    code, _, (line,) = outcomes["traced_error"]
    assert code == 1
    assert line.startswith("error: needs 3 images")


def test_debug_shows_the_traceback(outcomes):
    code, _, lines = outcomes["value_error_debug"]
    assert code == 1
    assert lines[0].startswith("Traceback")
    assert "ValueError: alpha must be positive. Received: alpha=0" in lines


def test_a_bug_keeps_its_traceback(outcomes):
    code, _, lines = outcomes["bug"]
    assert code == 1
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "KeyError: 'key'"


def test_a_bug_inside_a_pipeline_keeps_its_traceback(outcomes):
    code, _, lines = outcomes["pipeline_bug"]
    assert code == 1
    assert lines[0].startswith("Traceback")
    assert any("KeyError: " in line for line in lines)


def test_an_interrupted_run_says_how_to_go_on_where_it_can(outcomes):
    for name in ("interrupt", "interrupt_without_checkpoint"):
        assert outcomes[name] == (130, "", ["", "interrupted"])
    code, _, lines = outcomes["interrupt_workdir"]
    assert code == 130
    assert lines == [
        "",
        "interrupted: the same command goes on from the last checkpoint in runs/x",
    ]


def test_a_run_that_is_asked_to_end_leaves_nothing_half_written(outcomes, folder):
    assert outcomes["terminate"] == (143, "", ["", "terminated"])
    _, _, lines = outcomes["terminate_workdir"]
    assert lines[1].startswith("terminated: the same command goes on from the last checkpoint")
    assert not list(folder.glob("*m.tflite"))


def test_help_shows_the_flags_of_the_program_and_those_that_programs_share(outcomes):
    code, out, lines = outcomes["help"]
    assert (code, lines) == (0, [])
    for text in ("Fails in the way", "python program.py --do=nothing"):
        assert text in out
    assert set(re.findall(r"--([a-z_\[\]]+)", out.split("flags:", 1)[1])) == {
        "batch_size",
        "[no]debug",
        "[no]h",
        "do",
        "helpfull",
        "workdir",
    }


def test_a_user_error_is_a_value_error():
    assert issubclass(UserError, ValueError)
