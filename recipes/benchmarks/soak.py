r"""Puts the package under load: threads, kills at random moments, lost workers, full disks.

    python recipes/benchmarks/soak.py --workdir=runs/soak
    python recipes/benchmarks/soak.py --workdir=runs/soak --parts=predictions --predictions=1000

Each part counts what went wrong:
- predictions: threads predict batches of random sizes with one network, by the gate and by
  confidence, and with its exported files. Each result must be that of one thread, no new function
  may be traced, and the memory must stay flat;
- kills: both stages, the training of a detector, an export and `network.save` are killed (kill -9)
  at random moments. No file may be half-written, and the same command must end with the files of a
  run that was not killed;
- workers: the same for two workers of this machine. The other worker must end within a minute, with
  exit code 75;
- disk: the disk is full at each kind of write, and at a random point of each program. One line must
  say so, the earlier file must stay, and the same command must go on when there is space. This part
  needs Linux with `unshare` and `mount`, as root or where user namespaces are allowed.

Half of the kills come at a random moment, half while a file is written. All moments are functions
of --seed. A soak that was stopped goes on with the rounds that are missing. The program writes
soak.json and soak.md, and its exit code is 1 if something went wrong. docs/results/soak.md has the
results.
"""

import pathlib
import shlex
import subprocess
import sys

from absl import flags
from keras_dsnet_recipes.lib import checks
from keras_dsnet_recipes.lib import flags as shared
from keras_dsnet_recipes.lib.soak import disk
from keras_dsnet_recipes.lib.soak.results import Results, format_markdown, summary
from keras_dsnet_recipes.lib.start import start

FLAGS = flags.FLAGS
PARTS = ("predictions", "kills", "workers", "disk")
shared.define_workdir("Folder that the runs and the results are written into.")
flags.DEFINE_multi_enum("parts", list(PARTS), list(PARTS), "Part to run. Can be repeated.")
shared.define_saved_model(
    required=False,
    help="Network of the predictions: a .keras file or the work directory of a run. Defaults to "
    "the weights for CIFAR-10 that come with the package.",
)
flags.DEFINE_integer("predictions", 10_000, "Predictions by each routing.", lower_bound=1)
flags.DEFINE_integer("callers", 8, "Number of threads that predict.", lower_bound=1)
flags.DEFINE_integer("kills", 50, "Number of kills of programs.", lower_bound=0)
flags.DEFINE_integer("worker_kills", 20, "Number of kills of workers.", lower_bound=0)
flags.DEFINE_integer("disks", 5, "Number of sizes of the disk for each program.", lower_bound=0)
flags.DEFINE_bool("in_namespace", False, "For internal use.")
shared.define_seed("Seed of the batches, the moments and the sizes.")


def check_flags():
    """Raises an error if the folder cannot be written or the disk cannot be limited."""
    checks.check_workdir(FLAGS.workdir, folders=PARTS)
    if FLAGS.model is not None:
        checks.check_model(checks.find_model(FLAGS.model))
    if "disk" in FLAGS.parts and not FLAGS.in_namespace:
        reason = disk.why_not()
        if reason is not None:
            others = " ".join(f"--parts={part}" for part in PARTS if part != "disk")
            raise ValueError(
                f"--parts=disk needs a file system of a limited size, and {reason}: leave it out "
                f"by {others}"
            )


def main(_):
    workdir = pathlib.Path(FLAGS.workdir)
    for part in dict.fromkeys(FLAGS.parts):
        (workdir / part).mkdir(parents=True, exist_ok=True)
        results = open_results(part)
        if part == "predictions":
            run_predictions(results, workdir / part)
        elif part == "kills":
            from keras_dsnet_recipes.lib.soak.kills import run_kills

            run_kills(results, workdir / part, FLAGS.kills, FLAGS.seed)
        elif part == "workers":
            from keras_dsnet_recipes.lib.soak.workers import run_worker_kills

            run_worker_kills(results, workdir / part, FLAGS.worker_kills, FLAGS.seed)
        elif FLAGS.in_namespace:
            disk.run_full_disks(results, workdir / part, FLAGS.disks, FLAGS.seed)
        else:
            enter_namespace()
    return 0 if FLAGS.in_namespace else write_summary(workdir)


def open_results(part):
    """Returns the `Results` of a part, with the rows of an earlier start."""
    settings = {"seed": FLAGS.seed}
    if part == "predictions":
        names = ("predictions", "callers", "model")
        settings |= {name: FLAGS[name].value for name in names}
    return Results(pathlib.Path(FLAGS.workdir) / part / "rounds.json", settings)


def run_predictions(results, folder):
    """Runs the predictions with the network of --model."""
    import keras
    from keras_dsnet.applications import DSMobileNet
    from keras_dsnet_recipes.lib.soak import predictions

    if FLAGS.model is None:
        network = DSMobileNet(weights="cifar10")
    else:
        network = keras.models.load_model(checks.find_model(FLAGS.model), compile=False)
    predictions.run_predictions(
        results, folder, network, FLAGS.predictions, FLAGS.callers, FLAGS.seed
    )


def enter_namespace():
    """Runs the part of the disk again where it may mount file systems."""
    given = [f"--{name}={FLAGS[name].value}" for name in ("workdir", "disks", "seed", "debug")]
    program = [sys.executable, __file__, *given, "--parts=disk", "--in_namespace"]
    code = subprocess.run([*disk.namespace(), *program], check=False).returncode
    if code:
        raise ValueError(f"the part of the disk ended with exit code {code}; its error is above")


def write_summary(workdir):
    """Prints the rows of all parts and writes their summary; returns the exit code."""
    import json

    from keras_dsnet.runs import format_table
    from keras_dsnet.utils.atomic_file import atomic_file

    rows = [row for part in PARTS for row in open_rows(workdir / part)]
    table = summary(rows)
    print(format_table(table))
    words = ["python", "recipes/benchmarks/soak.py", *sys.argv[1:]]
    with atomic_file(workdir / "soak.json") as file:
        json.dump(rows, file, indent=1)
    with atomic_file(workdir / "soak.md") as file:
        file.write(format_markdown(table, shlex.join(words)))
    print(f"\nwritten: {workdir / 'soak.json'}, {workdir / 'soak.md'}")
    problems = sum(row["problems"] for row in table)
    print(f"{problems} problems in {sum(row['rounds'] for row in table)} rounds", flush=True)
    return int(problems > 0)


def open_rows(folder):
    """Returns the rows of a part, also of one that only an earlier start has run."""
    path = folder / "rounds.json"
    return Results.read(path) if path.exists() else []


if __name__ == "__main__":
    start(main, check_flags)
