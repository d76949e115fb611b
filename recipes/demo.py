r"""Runs all steps in minutes, on the handwritten digits of scikit-learn.

    python recipes/demo.py --workdir=runs/demo

The demo trains a small supernet (stage I) and its gate over four widths (stage II). It evaluates
every width and the dynamic network, writes one int8 TFLite file in which the gate chooses among the
four widths, and times the file. Each step is a program that also does the real work. The demo
prints the command of each program before it runs it.
"""

import pathlib
import shlex
import subprocess
import sys

from absl import flags
from keras_dsnet_recipes.lib import checks
from keras_dsnet_recipes.lib import flags as shared
from keras_dsnet_recipes.lib.start import start

FLAGS = flags.FLAGS
shared.define_workdir("Folder that the demo writes everything into.")
flags.DEFINE_bool("quick", False, "Train a few epochs only, to see that every step works.")

RECIPES = pathlib.Path(__file__).resolve().parent


def run_recipe(name, *arguments):
    """Prints the command of a program and runs it; a failure ends the demo with its exit code."""
    command = [sys.executable, str(RECIPES / name), *map(str, arguments)]
    shown = ["python", f"recipes/{name}", *map(str, arguments)]
    print(f"\n$ {shlex.join(shown)}", flush=True)
    # `sys.stderr` is the terminal; file descriptor 2 of this process is the native log's filter.
    code = subprocess.run(command, check=False, stderr=sys.stderr).returncode
    if code:
        sys.exit(code)


def check_flags():
    """Raises an error if the folder cannot be written or a package is missing."""
    checks.check_source({"dataset": "digits", "data_dir": None})
    checks.check_workdir(FLAGS.workdir, folders=["supernet", "gate", "benchmark"])
    checks.check_plots()


def main(_):
    workdir = pathlib.Path(FLAGS.workdir)
    epochs, gate_epochs, loads = (3, 2, 1) if FLAGS.quick else (40, 20, 3)
    data = ("--dataset=digits", "--batch_size=64", f"--evaluate_epochs={epochs}")
    run_recipe(
        "imagenet_stage1.py",
        *data,
        f"--workdir={workdir / 'supernet'}",
        "--alpha=0.25",
        "--output_stride=16",
        f"--epochs={epochs}",
        "--learning_rate=0.4",
        "--warmup_epochs=1",
    )
    run_recipe(
        "imagenet_stage2.py",
        *data,
        f"--supernet={workdir / 'supernet'}",
        f"--workdir={workdir / 'gate'}",
        "--routes=0,4,8,13",
        f"--epochs={gate_epochs}",
        "--learning_rate=0.4",
    )
    run_recipe(
        "export_mobile.py",
        f"--model={workdir / 'gate'}",
        "--quantize=int8",
        f"--output={workdir / 'digits.tflite'}",
    )
    run_recipe(
        "benchmarks/benchmark_mobile.py",
        workdir / "digits.tflite",
        f"--model={workdir / 'gate'}",
        f"--workdir={workdir / 'benchmark'}",
        "--baseline=none",
        f"--loads={loads}",
    )
    print(f"\nTables, plots, logs and the TFLite file are in {workdir}")


if __name__ == "__main__":
    start(main, check_flags)
