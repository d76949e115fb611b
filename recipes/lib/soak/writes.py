"""Each kind of file that the library writes, on a disk that is full.

As a program it checks one kind, since a native library can end the process.
"""

import contextlib
import os
import pathlib
import subprocess
import sys


class Disk:
    """A file system in memory that holds only some bytes.

    Args:
        path: Path where it is mounted.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)

    def fill(self, free):
        """Fills the disk until only some bytes are free."""
        state = os.statvfs(self.path)
        size = max(0, state.f_bavail * state.f_frsize - free)
        with (self.path / ".filler").open("wb") as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, size)

    def clear(self):
        """Frees what `fill` has taken."""
        (self.path / ".filler").unlink()

    def enlarge(self):
        """Gives the disk as much space as the programs need."""
        subprocess.run(["mount", "-o", "remount,size=256m", str(self.path)], check=True)


def check_write(name, disk, share):
    """Writes a file, fills the disk, and writes it again: that fails, and leaves the first file.

    Args:
        name: Str, a key of `WRITES`.
        disk: `Disk`, empty.
        share: Float, the share of the file's size that is free when it is written again.

    Returns:
        List of str, what went wrong.
    """
    path, write = WRITES[name](disk.path)
    write(1)
    before = _bytes(path)
    disk.fill(int(share * len(before)))
    problems = []
    try:
        write(2)
    except OSError as error:
        if "\n" in str(error):
            problems.append(f"the error has several lines: {str(error)!r}")
        if "No space left on device" not in str(error):
            problems.append(f"the error does not name the reason: {error}")
    except Exception as error:
        problems.append(f"the error is {type(error).__name__}: {error}")
    else:
        problems.append("nothing was raised on a full disk")
    # A log grows at its end.
    if not _bytes(path).startswith(before):
        problems.append("the earlier file has changed")
    left = [left.name for left in disk.path.rglob("partial-*")]
    problems += [f"{name} was left" for name in left]
    disk.clear()
    try:
        write(2)
    except Exception as error:
        problems.append(f"with space the write raised {type(error).__name__}: {error}")
    if _bytes(path) == before:
        problems.append("with space the file was not written")
    return problems


def _bytes(path):
    """Returns the content of a file, or of the only file in a folder."""
    if path.is_dir():
        (path,) = path.iterdir()
    return path.read_bytes()


def _checkpoint(folder):
    import keras

    from keras_dsnet.runs import RunCheckpoint

    variable = keras.Variable([0.0] * 100_000)
    checkpoint = RunCheckpoint(folder / "checkpoint.npz")

    def write(version):
        variable.assign([float(version)] * 100_000)
        checkpoint.save({"model": [variable]}, step=version)

    return checkpoint.path, write


def _csv_log(folder):
    from keras_dsnet.runs import CsvLog

    log = CsvLog(folder / "log.csv")

    def write(version):
        log.on_epoch_begin(version - 1)
        log.on_epoch_end(version - 1, {f"metric{i}": version / 3 for i in range(2000)})

    return log.path, write


def _tensorboard(folder):
    from keras_dsnet.runs import TensorBoardLog

    log = TensorBoardLog(folder / "tensorboard")

    def write(version):
        log.on_train_begin()
        log.step = version
        log.on_epoch_end(version, {f"metric{i}": version / 3 for i in range(2000)})

    return folder / "tensorboard", write


def _network(method, filename):
    def prepare(folder):
        from keras_dsnet_recipes.lib.soak.programs import small_network

        network = small_network(10)

        def write(version):
            for variable in network.variables:
                variable.assign(variable * 0 + version)
            _calls(network)[method](folder / filename)

        return folder / filename, write

    return prepare


def _calls(network):
    from keras_dsnet.weights import save_compact_weights

    def export(path):
        network.export(path, format="litert", routing="confidence", verbose=False)

    return {
        "save": network.save,
        "save_weights": network.save_weights,
        "compact": lambda path: save_compact_weights(network, path),
        "export": export,
    }


def _table(folder):
    from keras_dsnet.runs import write_table

    def write(version):
        write_table([{"path": i, "madds": version * i} for i in range(2000)], folder, "paths")

    return folder / "paths.csv", write


def _plot(folder):
    from keras_dsnet.runs import plot_accuracy_against_madds

    def write(version):
        rows = [{"path": i, "madds": version * i, "top1": i / 9} for i in range(9)]
        plot_accuracy_against_madds(rows, folder / "accuracy.png")

    return folder / "accuracy.png", write


WRITES = {
    "checkpoint": _checkpoint,
    "CSV log": _csv_log,
    "TensorBoard": _tensorboard,
    "saved network": _network("save", "model.keras"),
    "weights": _network("save_weights", "model.weights.h5"),
    "compact weights": _network("compact", "compact.weights.h5"),
    "TFLite file": _network("export", "m.tflite"),
    "results table": _table,
    "plot": _plot,
}


if __name__ == "__main__":
    for problem in check_write(sys.argv[1], Disk(sys.argv[2]), float(sys.argv[3])):
        print(f"problem: {problem!r}", flush=True)
