r"""Reproduces the tables of the paper on small photographs: trains, collects, compares.

    python recipes/reproduce.py --table=5 --data_dir=/data/tfds --workdir=runs/reproduce
    python recipes/reproduce.py --table=5 --workdir=runs/reproduce --collect_only --read_test
    python recipes/reproduce.py --list

Each arm of a table is a run of another program with a flag file of recipes/configs/, once for each
seed. The program prints the command of a run before it starts it. A run that is finished is not
started again, and a run that was killed goes on. Runs that several tables need are made once, and
networks that come with the package are loaded.

Then the program reads the images of every choice, or with --read_test the test images, and writes
into the work directory:
- hits/, which images each network classifies correctly;
- results/table<name>.md, .csv and .json: accuracies, differences with their 95 % intervals,
  verdicts, and a record of commit, versions, seeds and wall time;
- results/table<name>_differences.png and _curves.png;
- for tables 2 and 8, which compare lines of accuracy against multiply-adds, _lines.png, and with
  --latency, which times the networks on LiteRT, _latency.png.

--publish copies these to docs/results/reproduction/ and writes docs/results/reproduction.md, which
explains the protocol and the verdicts.

--jax_tasks=FOLDER writes the supernets as tasks for recipes/jax_stage1.py, which trains them on a
GPU. The same command takes them over, and goes on with the runs that need them.

--quick trains for seconds on the digits of scikit-learn, to see that every step works. --list
prints the arms and what they cost. A cost is marked as estimated until a run has recorded its wall
time.
"""

import contextlib
import json
import pathlib
import shlex
import shutil
import subprocess
import sys
import time

from absl import flags
from keras_dsnet_recipes.lib import checks
from keras_dsnet_recipes.lib import flags as shared
from keras_dsnet_recipes.lib.jax_training import files
from keras_dsnet_recipes.lib.reproduction.paper_tables import STAGE_1, TABLES
from keras_dsnet_recipes.lib.reproduction.planned_runs import TEST_SPLITS, is_finished, plan
from keras_dsnet_recipes.lib.start import start

FLAGS = flags.FLAGS
RECIPES = pathlib.Path(__file__).resolve().parent
# What a program that is asked to end may take to save its state.
_END_SECONDS = 60
_CLAIMS = [name for name, table in TABLES.items() if table.claim]

flags.DEFINE_list("table", None, f"Tables to make: {','.join(_CLAIMS)}.")
shared.define_path(
    "workdir", "runs/reproduce", "Folder that the runs and results are written into."
)
flags.DEFINE_enum(
    "data",
    "cifar10",
    ["cifar10", "tiny_imagenet"],
    "Images. Those of tiny_imagenet are the folder --data_dir.",
)
shared.define_path(
    "data_dir", None, "Folder of prepared TFDS data sets, or of the images of tiny_imagenet."
)
shared.define_path(
    "pretraining_dir", None, "Folder of the images of Tiny-ImageNet, which Table 3 transfers from."
)
flags.DEFINE_list("arms", None, "Arms to run and to collect. Defaults to all.")
flags.DEFINE_list("seeds", None, "Seeds, such as 0,1. Defaults to those of each table.")
flags.DEFINE_bool("list", False, "Print the arms of every table and their costs.")
shared.define_quick()
flags.DEFINE_bool("collect_only", False, "Train nothing; collect the runs that are finished.")
flags.DEFINE_bool("read_test", False, "Read the test images. Do so once, when all is chosen.")
flags.DEFINE_bool(
    "latency",
    False,
    "Time the networks of tables 2 and 8 on LiteRT too, with one thread, on a quiet machine.",
)
shared.define_path(
    "jax_tasks",
    None,
    "Folder of tasks for recipes/jax_stage1.py, which trains the supernets on a GPU. They are "
    "written first; once they are trained, the same command takes them over.",
)
flags.DEFINE_bool("publish", False, "Write the results into docs/results/ too.")


def chosen_tables():
    """Returns the tables of --table."""
    for name in FLAGS.table or ():
        if name not in _CLAIMS:
            raise ValueError(
                f"--table must be some of {','.join(_CLAIMS)}. Received: --table={name}"
            )
    return [TABLES[name] for name in FLAGS.table or ()]


def chosen_seeds():
    """Returns the seeds of --seeds, or None."""
    if FLAGS.seeds is not None and not all(seed.isdecimal() for seed in FLAGS.seeds):
        raise ValueError(
            f"--seeds must be whole numbers such as 0,1. Received: --seeds={','.join(FLAGS.seeds)}"
        )
    return None if FLAGS.seeds is None else [int(seed) for seed in FLAGS.seeds]


def data_name():
    """Returns the name of the data, a key of `TEST_SPLITS`."""
    return "digits" if FLAGS.quick else FLAGS.data


def plans():
    """Returns pairs of a table and its runs."""
    seeds = chosen_seeds()
    return [
        (table, plan(table, FLAGS.data, FLAGS.arms, seeds, FLAGS.quick))
        for table in chosen_tables()
    ]


def check_flags():
    """Raises an error for a mistake in the flags, and for a table that cannot be run yet."""
    tables = plans()
    if FLAGS.list:
        return
    checks.check_workdir(FLAGS.workdir, folders=["hits", "results"])
    if not tables:
        raise ValueError("--table must be given")
    for table, runs in tables:
        if not runs and table.arms:
            raise ValueError(
                f"--seeds must be some of {','.join(map(str, table.seeds))} that these arms of "
                f"--table={table.name} have. Received: --seeds={','.join(FLAGS.seeds)}"
            )
        if not runs:
            raise ValueError(
                f"--table={table.name} cannot be run yet. Missing: {table.missing}. Received: "
                f"--table={','.join(FLAGS.table)}"
            )
        for path in {pathlib.Path(run.arguments[0].partition("=")[2]) for run in runs}:
            if not path.is_file():
                raise ValueError(
                    f"--table={table.name} has no flag file {path.name} for --data={FLAGS.data}"
                )
    if FLAGS.data == "tiny_imagenet" and not FLAGS.data_dir:
        raise ValueError("--data=tiny_imagenet needs --data_dir, the folder of the images")
    for table, runs in tables:
        folders = [pathlib.Path(FLAGS.workdir, run.name) for run in runs if run.data != FLAGS.data]
        if not (FLAGS.quick or FLAGS.collect_only or all(map(is_finished, folders))):
            if not FLAGS.pretraining_dir:
                raise ValueError(
                    f"--table={table.name} needs --pretraining_dir, the images of Tiny-ImageNet"
                )
            if not pathlib.Path(FLAGS.pretraining_dir).is_dir():
                raise FileNotFoundError(
                    f"--pretraining_dir={FLAGS.pretraining_dir}: there is no such folder"
                )
    checks.check_source({"data_dir": FLAGS.data_dir, "dataset": "digits" if FLAGS.quick else None})
    checks.check_plots()


def print_list():
    """Prints what every arm costs."""
    for name in _CLAIMS:
        table = TABLES[name]
        print(f"--table={name}: {table.title}. {table.claim}")
        runs = plan(table)
        for arm, ships in dict.fromkeys((run.arm, run.ships) for run in runs):
            seeds = sum(run.arm == arm for run in runs)
            if ships:
                print(f"    {arm.name}: comes with the package")
                continue
            print(
                f"    {arm.name}: {seeds} seeds, {arm.hours:g} core-hours each ("
                f"{'measured' if arm.measured else 'estimated'}): {arm.program} "
                f"--flagfile=recipes/configs/{arm.config.format(data=arm.data or 'cifar10')}.cfg "
                f"{' '.join(arm.flags)}".rstrip()
            )
        if table.missing:
            print(f"    not built yet: {table.missing}")


def train(run, workdir):
    """Runs the program of an arm, or lets it go on, and records what it took.

    With --jax_tasks a supernet only becomes a task, and a run that needs it has to wait.
    """
    folder = workdir / run.name
    if run.ships and not FLAGS.quick:
        from keras_dsnet_recipes.lib.reproduction.shipped import save_shipped

        path = save_shipped(run.arm.ships, run.data, folder)
        print(f"{run.name} comes with the package: {path}", flush=True)
        return
    if is_finished(folder):
        print(f"{run.name} is finished", flush=True)
        return
    needed = [run.supernet] if run.supernet else []
    needed += [other for _, other in run.needs]
    waits_for = [other.name for other in needed if not is_ready(other, workdir)]
    if waits_for:
        print(f"{run.name} waits for {', '.join(waits_for)}", flush=True)
        return
    arguments = [*run.arguments, f"--workdir={folder}"]
    task = None
    if FLAGS.jax_tasks and run.arm.program == STAGE_1:
        task = pathlib.Path(FLAGS.jax_tasks, run.name)
        arguments.append(f"--jax_task={task}")
    if run.supernet:
        arguments.append(f"--supernet={workdir / run.supernet.name}")
    arguments += [f"--{name}={workdir / needed.name}" for name, needed in run.needs]
    folder_of_data = FLAGS.data_dir if run.data == FLAGS.data else FLAGS.pretraining_dir
    if folder_of_data and not FLAGS.quick:
        name = "dataset" if run.data == "tiny_imagenet" else "data_dir"
        arguments.append(f"--{name}={folder_of_data}")
    print(f"\n$ {shlex.join(['python', f'recipes/{run.arm.program}', *arguments])}", flush=True)
    command = [sys.executable, str(RECIPES / run.arm.program), *arguments]
    begin = time.monotonic()
    # `sys.stderr` is the terminal; file descriptor 2 of this process is the native log's filter.
    process = subprocess.Popen(command, stderr=sys.stderr)
    try:
        code = process.wait()
    except BaseException:
        # The program saves its state before it ends.
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
        process.kill()
        raise
    finally:
        _record(folder, arguments, time.monotonic() - begin, task)
    if code:
        sys.exit(code)


def is_ready(run, workdir):
    """Returns whether a run has ended, or its network comes with the package and is there."""
    folder = workdir / run.name
    return is_finished(folder) or (run.ships and (folder / "supernet.keras").is_file())


def _record(folder, arguments, seconds, task):
    """Adds a start of a run to the record in its folder, and what the training of its task took."""
    from keras_dsnet_recipes.lib.reproduction.collection import RECORD, versions

    if not folder.is_dir():
        return
    path = folder / RECORD
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    record = {
        **versions(),
        "arguments": arguments,
        "starts": before.get("starts", 0) + 1,
        "seconds": before.get("seconds", 0.0) + seconds,
    }
    if task and (task / files.RESULT).is_file():
        trained = files.read_settings(task / files.RESULT)
        names = ("jax", "device", "seconds", "together")
        record["accelerator"] = {name: trained[name] for name in names}
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def write_results(table, runs, workdir):
    """Collects a table and writes its files; returns the folder and the name of the files."""
    from keras_dsnet_recipes.lib.reproduction import collection, peer_latency
    from keras_dsnet_recipes.lib.reproduction.pictures import draw_pictures
    from keras_dsnet_recipes.lib.reproduction.result_page import section

    from keras_dsnet.runs import write_table
    from keras_dsnet.utils.atomic_file import atomic_file

    split = TEST_SPLITS[data_name()] if FLAGS.read_test else None
    data_dir = None if FLAGS.quick or FLAGS.data == "tiny_imagenet" else FLAGS.data_dir
    folder = workdir / "results"
    name = f"table{table.name}" + ("" if data_name() == "cifar10" else f"_{data_name()}")
    latency = peer_latency.load(folder / f"{name}_latency.json")
    if FLAGS.latency and table.peers:
        latency = peer_latency.measure(table, runs, workdir, folder / f"{name}_latency.json")
    result = collection.collect(table, runs, workdir, data_name(), split, data_dir, latency)
    result["read_test"] = FLAGS.read_test
    print(write_table(result["rows"], folder, name), flush=True)
    with atomic_file(folder / f"{name}.json") as file:
        file.write(json.dumps(result, indent=1) + "\n")
    text = section(result)
    with atomic_file(folder / f"{name}.md") as file:
        file.write(f"# {result['title']}\n\n{text}\n")
    draw_pictures(result, folder, name)
    print(f"\n{text}\n", flush=True)
    return folder, name


def _check_no_loss(published, new):
    """Raises an error where a result that is published has what a new one does not have.

    Args:
        published: `pathlib.Path` of the JSON file of the result, or of none.
        new: `pathlib.Path` of that of the new result.
    """
    if not published.is_file():
        return
    old, result = (json.loads(path.read_text(encoding="utf-8")) for path in (published, new))
    found = [{(row["arm"], row["seed"]) for row in each["rows"]} for each in (old, result)]
    lost = [f"{arm} of seed {seed}" for arm, seed in sorted(found[0] - found[1])]
    if old.get("read_test") and not result.get("read_test"):
        lost = ["the figures of the test images, which --read_test reads"]
    if lost:
        raise ValueError(
            f"--publish would replace {published}, and lose {', '.join(lost)}. The new results "
            f"are in {new.parent}; remove the published file to replace it all the same"
        )


def publish(written):
    """Copies the results into docs/results/reproduction/, and writes the page."""
    from keras_dsnet_recipes.lib.reproduction.pictures import PICTURES
    from keras_dsnet_recipes.lib.reproduction.result_page import write_page

    docs = RECIPES.parent / "docs" / "results"
    (docs / "reproduction").mkdir(parents=True, exist_ok=True)
    endings = ("", *(f"_{ending}" for ending in PICTURES))
    for folder, name in written:
        _check_no_loss(docs / "reproduction" / f"{name}.json", folder / f"{name}.json")
    for folder, name in written:
        for ending in PICTURES:
            (docs / "reproduction" / f"{name}_{ending}.png").unlink(missing_ok=True)
        for path in folder.glob(f"{name}*"):
            # The latency has a JSON file too, which is no result of a table.
            is_result = path.suffix in (".json", ".csv") and path.stem == name
            is_picture = path.suffix == ".png" and path.stem.removeprefix(name) in endings
            if is_result or is_picture:
                shutil.copyfile(path, docs / "reproduction" / path.name)
    print(f"written: {write_page(docs / 'reproduction.md', docs / 'reproduction')}", flush=True)


def main(_):
    if FLAGS.list:
        print_list()
        return
    workdir = pathlib.Path(FLAGS.workdir)
    # Test images are read only once all that was asked for is trained.
    ready = []
    for table, runs in plans():
        if not FLAGS.collect_only:
            for run in runs:
                train(run, workdir)
            if not all(is_ready(run, workdir) for run in runs):
                print(
                    f"--table={table.name} is collected when its tasks are trained: python "
                    f"recipes/jax_stage1.py --tasks={FLAGS.jax_tasks}",
                    flush=True,
                )
                continue
        ready.append((table, runs))
    written = [write_results(table, runs, workdir) for table, runs in ready]
    if FLAGS.publish and written:
        publish(written)
    if written:
        print(f"results are in {workdir / 'results'}", flush=True)


if __name__ == "__main__":
    start(main, check_flags)
