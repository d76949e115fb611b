"""What a program checks before TensorFlow is loaded: paths, packages, the folder of a run."""

import importlib.util
import os
import pathlib

# What a run writes into its folder.
_FOLDERS = ("tables", "plots", "tensorboard")
_FILES = (
    "checkpoint.npz",
    "config.json",
    "labels.txt",
    "log.csv",
    "model.keras",
    "supernet.keras",
)


def check_workdir(name, flag="workdir", folders=(), files=()):
    """Raises an OSError unless a folder can be made and written, with what is to be in it.

    Args:
        name: value of the flag.
        flag: name of the flag, for messages.
        folders: names of folders that will be made in it.
        files: names of files that will be written into it.
    """
    folder = pathlib.Path(name)
    if not name:
        raise ValueError(f"--{flag} must name a folder. Received: --{flag}=")
    there = folder
    while not _exists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(f"--{flag}={name} is a file, or is inside one: name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"--{flag}={name} cannot be written: no permission in {there}")
    for part in folders:
        inside = folder / part
        if _exists(inside) and not inside.is_dir():
            raise NotADirectoryError(f"--{flag}={name}: {inside} is a file; a folder goes there")
        if inside.is_dir() and not os.access(inside, os.W_OK | os.X_OK):
            raise PermissionError(f"--{flag}={name}: {inside} cannot be written")
    for part in files:
        if (folder / part).is_dir():
            raise IsADirectoryError(
                f"--{flag}={name}: {folder / part} is a folder; a file goes there"
            )


def check_run_folder(name):
    """Raises an error unless a training run can write all that it writes into its folder.

    Args:
        name: value of --workdir.
    """
    check_workdir(name, folders=_FOLDERS, files=_FILES)
    check_plots()


def check_plots():
    """Raises an error where the package that draws is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(
            "matplotlib is not installed, which draws the plots: pip install matplotlib"
        )


def check_output(name, flag="output"):
    """Raises an OSError unless a file can be written.

    Args:
        name: value of the flag.
        flag: name of the flag, for messages.
    """
    output = pathlib.Path(name)
    if not output.parent.is_dir():
        raise FileNotFoundError(f"--{flag}={name}: there is no folder {output.parent}")
    if output.is_dir():
        raise IsADirectoryError(f"--{flag}={name} is a folder; name a .tflite file")
    if output.suffix != ".tflite":
        raise ValueError(
            f"--{flag} must name a file that ends in .tflite. Received: --{flag}={name}"
        )
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"--{flag}={name}: {output.parent} cannot be written")


def check_source(values):
    """Raises an error where the values of --data_dir and --dataset name a folder that is missing.

    Args:
        values: dict by the names of the flags.
    """
    for name in ("data_dir", "dataset"):
        value = values[name]
        is_path = value and (name == "data_dir" or value[0] in "./~" or value[-1] == "/")
        if is_path and not pathlib.Path(value).expanduser().is_dir():
            if pathlib.Path(value).expanduser().is_file():
                raise NotADirectoryError(
                    f"--{name}={value} is a file: name a folder; an archive must be unpacked first"
                )
            raise FileNotFoundError(f"--{name}={value}: there is no such folder")
    if values["dataset"] is not None and not values["dataset"].strip():
        raise ValueError("--dataset must name a data set. Received: --dataset=")
    needs_sklearn = values["dataset"] == "digits" and importlib.util.find_spec("sklearn") is None
    if needs_sklearn:
        raise ValueError("--dataset=digits needs scikit-learn: pip install scikit-learn")


def _exists(path):
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        return False
    except OSError:
        # A name that is too long, or a folder that may not be looked into.
        raise OSError(f"{path} cannot be used as a path") from None
    return True
