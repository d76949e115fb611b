"""Trains the tasks of folders, side by side where they are of one kind.

Nothing here imports TensorFlow.
"""

import json
import pathlib
import time

import jax
from keras_dsnet_recipes.lib.jax_training import files
from keras_dsnet_recipes.lib.jax_training.supernet import OWN, JaxSupernet


def describe_machine():
    """Returns the version of JAX and the device that it uses, str."""
    return f"JAX {jax.__version__} on {jax.devices()[0].device_kind}"


def find_tasks(names):
    """Returns the folders of tasks that have no result yet.

    Args:
        names: List of str, folders of tasks or folders of such folders.

    Raises:
        FileNotFoundError: If a folder holds no task.
    """
    found = []
    for name in map(pathlib.Path, names):
        inside = [path.parent for path in sorted(name.glob(f"*/{files.TASK}"))]
        folders = [name] if (name / files.TASK).is_file() else inside
        if not folders:
            raise FileNotFoundError(
                f"--tasks={name}: there is no {files.TASK} in it. imagenet_stage1.py --jax_task "
                "writes it"
            )
        found += folders
    return [folder for folder in found if not (folder / files.RESULT).is_file()]


def grouped(folders, largest):
    """Returns lists of folders whose tasks can be trained side by side.

    These are tasks of the same network, data and schedule, at the same step.

    Args:
        folders: List of paths.
        largest: Int, the largest length of a list.
    """
    kinds = {}
    for folder in folders:
        settings = files.read_settings(folder / files.TASK)
        kind = {name: value for name, value in settings.items() if name not in OWN}
        progress = read_progress(folder, settings)
        kind["step"] = progress["step"] if progress else settings["step"]
        kinds.setdefault(json.dumps(kind, sort_keys=True), []).append(folder)
    return [
        group[start : start + largest]
        for group in kinds.values()
        for start in range(0, len(group), largest)
    ]


def read_progress(folder, settings):
    """Returns the settings of a task's progress, or None if the task has none.

    Args:
        folder: Path of the task.
        settings: Dict, the settings of the task.
    """
    path = folder / files.PROGRESS
    progress = files.read_settings(path) if path.is_file() else None
    return progress if progress and progress["task"] == settings else None


def train(folders):
    """Trains tasks side by side, from their progress on, and writes their results.

    Args:
        folders: List of paths.
    """
    tasks = [files.read(folder / files.TASK) for folder in folders]
    originals = [task["settings"] for task in tasks]
    records = [resume(folder, task) for folder, task in zip(folders, tasks)]
    path = folders[0].parent / originals[0]["images"]
    images = files.read_images(path)
    supernet = JaxSupernet(tasks, images["images"], images["labels"])
    epochs, per_epoch = originals[0]["epochs"], originals[0]["steps_per_epoch"]
    print(f"\n{len(tasks)} side by side: {', '.join(map(str, folders))}", flush=True)
    for epoch in range(tasks[0]["settings"]["step"] // per_epoch, epochs):
        begin = time.monotonic()
        rows = supernet.run_epoch()
        seconds = time.monotonic() - begin
        speed = per_epoch * originals[0]["batch_size"] * len(tasks) / seconds
        print(f"epoch {epoch + 1}/{epochs}, {speed:,.0f} images/s", flush=True)
        for number, (folder, row) in enumerate(zip(folders, rows)):
            values = (f"{name} {value:.4g}" for name, value in row.items() if name != "epoch")
            print(f"    {folder.name}: {', '.join(values)}", flush=True)
            record = records[number]
            record["log"].append(row)
            record |= {"seconds": record["seconds"] + seconds, "step": (epoch + 1) * per_epoch}
            arrays = supernet.arrays(number)
            files.write(folder / files.PROGRESS, arrays, {**record, "task": originals[number]})
    machine = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    for number, folder in enumerate(folders):
        record = {**records[number], **machine, "together": len(tasks)}
        arrays = supernet.arrays(number)
        files.write(folder / files.RESULT, arrays, {**originals[number], **record})
        (folder / files.PROGRESS).unlink(missing_ok=True)
        print(f"written: {folder / files.RESULT}", flush=True)


def resume(folder, task):
    """Puts the state of a task's progress into it, and returns its record.

    Args:
        folder: Path of the task.
        task: Dict of `files.read`, which is changed.
    """
    settings = task["settings"]
    progress = read_progress(folder, settings)
    if not progress:
        return {"log": [], "seconds": 0.0, "step": settings["step"]}
    task.update(files.read(folder / files.PROGRESS))
    task["settings"] = settings | {"step": progress["step"]}
    return {name: progress[name] for name in ("log", "seconds", "step")}
