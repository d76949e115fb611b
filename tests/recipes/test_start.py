"""What programs say before TensorFlow is loaded, and what of its log they keep off the terminal."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
import saved_network
from light_programs import run_light_program

RECIPES = pathlib.Path(__file__).resolve().parents[2] / "recipes"
PROGRAMS = sorted(
    str(path.relative_to(RECIPES))
    for path in RECIPES.rglob("*.py")
    if "    start(main" in path.read_text()
)
# One writes a file, the other starts programs that have a folder.
WITHOUT_WORKDIR = ("export_mobile.py", "launch.py")
# The flag of a program that names a trained network.
NETWORK_FLAGS = {
    "calibrate.py": "model",
    "evaluate.py": "model",
    "evaluate_int8.py": "model",
    "imagenet_stage2.py": "supernet",
    "export_mobile.py": "model",
    "voc_fssd_confidence.py": "detector",
    "voc_fssd_gates.py": "detector",
}


def run(program, *arguments, folder="."):
    return run_light_program(RECIPES / program, *arguments, folder=folder)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_of_every_program_needs_no_tensorflow_and_writes_no_error(program):
    done = run(program, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    docstring = (RECIPES / program).read_text().splitlines()[0].lstrip('r"')
    assert done.stdout.startswith(docstring)
    assert "--workdir" in done.stdout or "--output" in done.stdout


def test_nobody_needs_to_read_help_to_its_end():
    command = [sys.executable, str(RECIPES / "imagenet_stage1.py"), "--help"]
    # A pipe whose reader has gone.
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("program", [*(p for p in PROGRAMS if p != "launch.py"), "jax_stage1.py"])
def test_a_required_flag_that_is_missing_is_asked_for(program):
    done = run(program)
    assert done.returncode == 1
    assert re.fullmatch(r"error: --\w+ must be given\n", done.stderr)


@pytest.mark.parametrize("flag", ["-h", "-?", "--helpshort", "--helpfull", "--help=true"])
def test_help_is_asked_for_in_many_ways(flag):
    done = run("export_mobile.py", flag)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--quantize" in done.stdout


# Arguments that begin as those of help and debug do, and values that are equal to them.
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--huge_pages", "hat.tflite"], "There is no file hat.tflite"),
        (["hat.tflite"], "There is no file hat.tflite"),
        (["debug.tflite", "--debug=false"], "There is no file debug.tflite"),
        (["--nodebug", "--loads=0"], "--loads=0"),
        (["--helpful"], "Unknown command line flag 'helpful'"),
        (["--help=xml"], "--help=xml"),
        (["--nohelp", "--rounds=0"], "--rounds=0"),
        (["--device", "help", "--threads=0"], "--threads=0"),
        (["--", "--help"], "There is no file --help"),
        (["--routes=0,b"], "must be ascending widths such as 0,4,8,13"),
        (["--routes=3,1"], "must be ascending widths such as 0,4,8,13"),
    ],
)
def test_the_early_check_skips_no_argument(arguments, message, tmp_path):
    done = run("benchmarks/benchmark_mobile.py", f"--workdir={tmp_path / 'help'}", *arguments)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "help").exists()


def test_flags_of_a_file_are_checked_and_debug_shows_where(tmp_path):
    (tmp_path / "help.cfg").write_text("--debug\n--alone=99\n")
    done = run(
        "imagenet_stage1.py", f"--workdir={tmp_path / 'x'}", f"--flagfile={tmp_path}/help.cfg"
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert "ValueError: --alone must be a width from 0 to 13" in done.stderr


def test_a_flag_file_that_is_no_text_is_one_line(tmp_path):
    (tmp_path / "flags.cfg").write_bytes(b"\xff\xfe--epochs=3")
    done = run("imagenet_stage1.py", f"--flagfile={tmp_path / 'flags.cfg'}")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith("error: --flagfile must be a text file in UTF-8: ")


STAGE_1_MISTAKES = [
    ("--recalibration_steps=0", "a positive integer"),
    ("--strides=a,b", "strides of 1 or 2"),
    ("--strides=1,1", "--strides must be 6 numbers"),
    ("--strides=1,1,2,1,2,3", "strides of 1 or 2"),
    ("--alone=99", "from 0 to 13"),
    ("--alone=-1", "-1"),
    ("--learning_rate=nan", "a finite number >= 0"),
    ("--learning_rate=inf", "a finite number >= 0"),
    ("--learning_rate=-1", "a finite number >= 0"),
    ("--weight_decay=nan", "a finite number"),
    ("--temperature=0", "> 0"),
    ("--ema_momentum=1", "< 1"),
    ("--alpha=0", "> 0"),
    ("--dropout=1", "< 1"),
    ("--label_smoothing=nan", "< 1"),
    ("--warmup_epochs=150", "--warmup_epochs must be below --epochs=150"),
    ("--random_erasing=1.5", "<= 1"),
    ("--randaugment=-1", "non-negative"),
    ("--classes=0", "--classes=0"),
    ("--seed=-1", "--seed=-1"),
    ("--evaluate_epochs=0", "positive"),
    ("--dataset=missing/", "--dataset=missing/: there is no such folder"),
    ("--dataset=~/no/such/folder", "no/such/folder: there is no such folder"),
    ("--dataset=", "--dataset must name a data set"),
    ("runs/x", "unexpected argument 'runs/x'"),
]


@pytest.mark.parametrize(("argument", "message"), STAGE_1_MISTAKES)
def test_a_wrong_flag_of_stage_1_is_one_line_before_tensorflow(argument, message, tmp_path):
    done = run("imagenet_stage1.py", f"--workdir={tmp_path / 'run'}", argument, folder=tmp_path)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=ds_resnet50", "--alone=4"], "from 0 to 3 of --model=ds_resnet50"),
        (["--model=ds_efficientnet_b0", "--variant=M"], "--variant must be one of S, L"),
        (["--output_stride=8", "--strides=1,1,2,1,2,2"], "both set the strides"),
        (["--epochs=2", "--warmup_epochs=2"], "--warmup_epochs must be below --epochs=2"),
    ],
)
def test_flags_that_cannot_be_together_are_told_early(arguments, message, tmp_path):
    done = run("imagenet_stage1.py", f"--workdir={tmp_path / 'run'}", *arguments)
    (line,) = done.stderr.splitlines()
    assert message in line


@pytest.mark.parametrize(("made", "is_folder"), [("tables", False), ("supernet.keras", True)])
def test_what_cannot_be_written_at_the_end_is_told_at_the_start(made, is_folder, tmp_path):
    path = tmp_path / "run" / made
    path.parent.mkdir()
    path.mkdir() if is_folder else path.touch()
    done = run("imagenet_stage1.py", "--dataset=digits", f"--workdir={tmp_path / 'run'}")
    (line,) = done.stderr.splitlines()
    assert str(path) in line
    assert "goes there" in line


def test_a_workdir_inside_a_file_is_refused_by_every_program_that_has_one(tmp_path):
    (tmp_path / "file").touch()
    network = saved_network.save(tmp_path / "trained")
    for program in (name for name in PROGRAMS if name not in WITHOUT_WORKDIR):
        flags = [f"--{NETWORK_FLAGS[program]}={network}"] if program in NETWORK_FLAGS else []
        done = run(program, f"--workdir={tmp_path}/file/run", *flags)
        (line,) = done.stderr.splitlines()
        assert f"--workdir={tmp_path}/file/run is a file, or is inside one: name a folder" in line


def test_the_folder_of_the_user_is_meant_by_a_tilde(tmp_path):
    code = (
        "from absl import flags; from keras_dsnet_recipes.lib.flags import define_path;"
        "define_path('workdir', None, 'w'); flags.FLAGS(['p', '--workdir=~/x/']);"
        "print(flags.FLAGS.workdir)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == f"{tmp_path}/x"


FILTERED = """
import os, sys
from keras_dsnet_recipes.lib.start import filter_native_log

filter_native_log()
for line in (
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    "I0000 00:00:1795887611.242942   12981 port.cc:153] oneDNN custom operations are on.",
    "2026-01-01 10:00:00.000000: I tensorflow/core/util/port.cc:153] oneDNN",
    "INFO: Created TensorFlow Lite XNNPACK delegate for CPU.",
    "W0000 00:00:1795887611.242942   12981 x.cc:1] the disk is slow",
    "E0000 00:00:1795887611.242942   12981 x.cc:1] the GPU is lost",
):
    os.write(2, line.encode() + b"\\n")
print("from Python: I0000 stays", file=sys.stderr)
os.write(2, b"F0000 Check failed: last words")
os.abort()
"""


def test_native_notes_are_dropped_and_warnings_and_last_words_are_not():
    done = subprocess.run(
        [sys.executable, "-c", FILTERED], capture_output=True, text=True, check=False
    )
    assert done.returncode == -6
    lines = done.stderr.splitlines()
    assert "from Python: I0000 stays" in lines
    rest = [line[:5] for line in lines if not line.startswith("from Python")]
    assert rest == ["W0000", "E0000", "F0000"]


INTERRUPTED_CHECK = """
from keras_dsnet_recipes.lib.start import start


def check():
    raise KeyboardInterrupt


start(print, check)
"""


def test_ctrl_c_during_the_check_of_the_flags_shows_no_traceback(tmp_path):
    (tmp_path / "program.py").write_text(INTERRUPTED_CHECK)
    done = run_light_program(tmp_path / "program.py")
    assert (done.returncode, done.stderr) == (130, "\ninterrupted\n")


@pytest.mark.parametrize(
    ("raised", "code", "word"),
    [("KeyboardInterrupt: ", 130, "interrupted"), ("_Ended: 15", 143, "terminated")],
)
def test_a_signal_inside_native_code_ends_as_any_other(raised, code, word, tmp_path):
    lines = (
        "from keras_dsnet_recipes.lib.start import start",
        "def main(_):",
        f"    raise RuntimeError({raised!r} + '\\n\\nAt:\\n  a.py(1): f')",
        "start(main)",
    )
    (tmp_path / "program.py").write_text("\n".join(lines))
    done = run_light_program(tmp_path / "program.py")
    assert (done.returncode, done.stderr) == (code, f"\n{word}\n")


LOGS_A_LINE = """
import logging, sys

import absl.logging
from keras_dsnet_recipes.lib.start import start


def main(_):
    # As absl's `app.run` does.
    absl.logging.use_absl_handler()
    logging.getLogger("another").warning("a line")
    logging.getLogger("another").info("a note")
    logging.getLogger("keras_dsnet.data").info("of the package")
    logging.getLogger("keras_dsnet.data").warning("of the package")


start(main)
"""


def test_a_line_of_the_log_is_written_once(tmp_path):
    (tmp_path / "program.py").write_text(LOGS_A_LINE)
    done = run_light_program(tmp_path / "program.py")
    assert done.stderr == "WARNING: a line\n"
    assert done.stdout == "of the package\nwarning: of the package\n"
