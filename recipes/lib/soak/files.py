"""The files of a run: what is damaged, what differs from those of another run."""

import csv
import io
import json
import pathlib
import shutil
import zipfile

_TEMPORARY = "partial-"
_PNG_END = b"IEND\xaeB`\x82"


def damaged_files(folder):
    """Returns what is wrong with the files of a folder.

    TensorBoard's event files are not checked: they grow at their end, and their readers leave out a
    last record that is not complete. Temporary files of a killed process are no results.

    Args:
        folder: Path.

    Returns:
        List of str, one for each file that is not complete.
    """
    problems = []
    for path in result_files(folder):
        try:
            _check(path)
        except Exception as error:
            line = (str(error).splitlines() or [""])[0]
            problems.append(f"{path.name} is damaged: {type(error).__name__}: {line}")
    return problems


def differences(expected, folder):
    """Returns the differences between the files of a finished run and those of another one.

    Weights, tables and exported files must be equal bit for bit. Of a log only the evaluations
    count, since the means of an interrupted epoch are those since the resume. Plots and event files
    must be there.

    Args:
        expected: Path of the folder of the run that was not interrupted.
        folder: Path of the other folder.

    Returns:
        List of str.
    """
    expected, folder = pathlib.Path(expected), pathlib.Path(folder)
    names = {path.relative_to(expected) for path in result_files(expected)}
    others = {path.relative_to(folder) for path in result_files(folder)}
    problems = [f"{name} is missing" for name in sorted(names - others)]
    problems += [f"{name} is new" for name in sorted(others - names)]
    for name in sorted(names & others):
        if _content(expected / name) != _content(folder / name):
            problems.append(f"{name} differs")
    problems += [f"{name} was left" for name in temporary_files(folder)]
    return problems


def result_files(folder):
    """Returns the paths of the files in a folder that are results, in order."""
    paths = pathlib.Path(folder).rglob("*")
    return sorted(path for path in paths if path.is_file() and _is_result(path))


def temporary_files(folder):
    """Returns the names of the temporary files in a folder."""
    return sorted(path.name for path in pathlib.Path(folder).rglob(f"{_TEMPORARY}*"))


def make_empty(folder):
    """Makes a folder that is empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _is_result(path):
    is_other = path.name.startswith((_TEMPORARY, ".", "events.out."))
    return not is_other


def _check(path):
    """Raises an error if a file is not complete."""
    match path.suffix:
        case ".npz" | ".keras":
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
            if broken:
                raise ValueError(f"{broken} has another checksum")
        case ".png":
            if not path.read_bytes().endswith(_PNG_END):
                raise ValueError("the end of the picture is missing")
        case ".tflite":
            from keras_dsnet.export import DynamicInterpreter

            DynamicInterpreter(path)
        case ".csv":
            rows = list(csv.reader(io.StringIO(path.read_text())))
            if not rows or not path.read_text().endswith("\n"):
                raise ValueError("the last row is not complete")
        case ".txt":
            if not path.read_text().endswith("\n"):
                raise ValueError("the last line is not complete")
    _content(path)


def _content(path):
    """Returns what two equal runs have in common in a file."""
    match path.suffix:
        case ".npz":
            import numpy as np

            with np.load(path) as archive:
                return {name: _bits(archive[name]) for name in archive.files if "/" in name}
        case ".keras":
            with zipfile.ZipFile(path) as archive:
                config = json.loads(archive.read("config.json"))
                weights = archive.read("model.weights.h5")
            return _without_numbers(config), _arrays(io.BytesIO(weights))
        case ".h5":
            return _arrays(path)
        case ".json":
            return json.loads(path.read_text())
        case ".csv" if path.name == "log.csv":
            rows = csv.DictReader(io.StringIO(path.read_text()))
            return [
                {name: value for name, value in row.items() if name.startswith(("epoch", "val_"))}
                for row in rows
            ]
        case ".png":
            return None
    return path.read_bytes()


def _arrays(file):
    """Returns the arrays of an HDF5 file by their names."""
    import h5py

    arrays = {}

    def keep(name, node):
        # The facts of a network repeat its config, with the name that Keras gave it.
        if isinstance(node, h5py.Dataset) and node.dtype.kind in "fi":
            arrays[name] = _bits(node[()])

    with h5py.File(file, "r") as opened:
        opened.visititems(keep)
    return arrays


def _bits(array):
    return array.dtype.str, array.shape, array.tobytes()


def _without_numbers(value):
    """Returns a config without what Keras numbers anew in each process."""
    if isinstance(value, dict):
        return {
            key: _without_numbers(item) for key, item in value.items() if key != "shared_object_id"
        }
    return [_without_numbers(item) for item in value] if isinstance(value, list) else value
