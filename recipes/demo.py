r"""Runs all steps in minutes, on distorted handwritten digits.

    python recipes/demo.py --workdir=runs/demo

The digits come with scikit-learn and are rotated, bent, faded and noisy, so that some images need a
wide network and most do not. The demo trains a small supernet (stage I) and its gate over four
widths (stage II), and chooses the threshold of routing by confidence on validation images. It
evaluates every width, the gate and routing by confidence on 4,000 test images, writes one int8
TFLite file that routes by confidence, and times the file. Each step is a program that also does the
real work. The demo prints the command of each program before it runs it.

docs/results/demo.md has the results of several seeds.
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
shared.define_quick()
shared.define_seed("Seed of both trainings.")

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
    checks.check_source({"dataset": "distorted_digits", "data_dir": None})
    checks.check_workdir(
        FLAGS.workdir, folders=["supernet", "gate", "calibrated", "evaluated", "benchmark"]
    )
    checks.check_plots()


def main(_):
    workdir = pathlib.Path(FLAGS.workdir)
    # An image of each class at least, and as few as a quick look needs.
    parts = ("[:4%]", "[:2%]", "[:10%]", "[:5%]") if FLAGS.quick else ("", "[:50%]", "", "")
    supernet, gate, validation, test = parts
    data = ("--dataset=distorted_digits", "--batch_size=64", f"--seed={FLAGS.seed}")
    run_recipe(
        "imagenet_stage1.py",
        *data,
        f"--train_split=train{supernet}",
        f"--eval_split=validation{validation}",
        f"--workdir={workdir / 'supernet'}",
        "--alpha=0.25",
        "--output_stride=16",
        "--num_random=1",
        "--epochs=2",
        "--warmup_epochs=0.25",
        "--learning_rate=0.8",
        "--weight_decay=5e-4",
        "--recalibration_steps=40",
        "--evaluate_epochs=2",
    )
    run_recipe(
        "imagenet_stage2.py",
        *data,
        f"--train_split=train{gate}",
        f"--eval_split=validation{validation}",
        f"--supernet={workdir / 'supernet'}",
        f"--workdir={workdir / 'gate'}",
        "--routes=0,4,8,13",
        "--epochs=1",
        "--learning_rate=0.4",
    )
    run_recipe(
        "calibrate.py",
        f"--model={workdir / 'gate'}",
        f"--workdir={workdir / 'calibrated'}",
        "--dataset=distorted_digits",
        f"--eval_split=validation{validation}",
        "--max_drop=0.002",
    )
    run_recipe(
        "evaluate.py",
        f"--model={workdir / 'calibrated'}",
        f"--workdir={workdir / 'evaluated'}",
        "--dataset=distorted_digits",
        f"--eval_split=test{test}",
    )
    run_recipe(
        "export_mobile.py",
        f"--model={workdir / 'calibrated'}",
        "--dataset=distorted_digits",
        "--quantize=int8",
        f"--output={workdir / 'digits.tflite'}",
    )
    run_recipe(
        "benchmarks/benchmark_mobile.py",
        workdir / "digits.tflite",
        f"--model={workdir / 'calibrated'}",
        f"--workdir={workdir / 'benchmark'}",
        "--baseline=none",
        f"--loads={1 if FLAGS.quick else 3}",
    )
    print(f"\nTables, plots, logs and the TFLite file are in {workdir}")


if __name__ == "__main__":
    start(main, check_flags)
