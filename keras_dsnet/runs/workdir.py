"""The folder of a run, tied to the configuration that the run was started with."""

import fcntl
import json
import os
import pathlib
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from keras_dsnet.runs.run_checkpoint import RunCheckpoint
from keras_dsnet.utils.atomic_file import atomic_file, remove_leftovers_of_the_dead

_CONFIG = "config.json"
# The entry of the configuration file with the resolved values of those settings that are paths.
_PLACES = "places"
_LOCK = ".lock"
# The locks that this process holds, by device and inode of their files. The process can open a
# folder several times; the lock ends with the last `WorkDir` of the folder.
_held: weakref.WeakValueDictionary = weakref.WeakValueDictionary()


class WorkDir:
    """The folder of a run. It is created if it is missing.

    The first start ties the folder to its configuration. A run that fails before training does not
    tie the folder. Files that killed processes left incomplete in the folder are removed. Only one
    process at a time can train in a folder: it holds a lock, which ends with the process. The same
    process can open its folder again.

    Args:
        path: Path of the folder.
        config: Dict that JSON can hold, the settings that determine the run.
        exempt: Names in `config` whose values can differ at every start, such as the interval of
            logs.
        growing: Names in `config` of numbers that can grow but not shrink, such as the number of
            epochs.
        paths: Names in `config` whose values can be paths. Different spellings of the same file or
            folder are the same value.

    Raises:
        ConfigMismatchError: If the folder holds a run of another configuration.
        OSError: If the folder cannot be created or written, or another process trains in it.

    Example:

    ```python
    import tempfile
    from keras_dsnet.runs import WorkDir

    folder = tempfile.mkdtemp()
    workdir = WorkDir(folder, {"alpha": 0.5, "log_steps": 50}, exempt=("log_steps",))
    print(workdir.checkpoint, workdir.log)
    ```
    """

    def __init__(
        self,
        path: str | os.PathLike,
        config: Mapping[str, Any],
        exempt: Iterable[str] = (),
        growing: Iterable[str] = (),
        paths: Iterable[str] = (),
    ):
        self._set(path, config, paths)
        self._make()
        locked = self._lock()
        if (self.path / _CONFIG).exists() and not (locked and self._is_unused()):
            self._compare(read_config(self.path), exempt, growing, paths)
        if locked:
            for folder in (self.path, self.path / "tables", self.path / "plots"):
                remove_leftovers_of_the_dead(folder)
        self._write_config()

    @classmethod
    def check(
        cls,
        path: str | os.PathLike,
        config: Mapping[str, Any],
        exempt: Iterable[str] = (),
        growing: Iterable[str] = (),
        paths: Iterable[str] = (),
    ) -> None:
        """Checks that a folder does not hold a run of another configuration. Creates nothing.

        Args:
            path: Path of the folder, as in the constructor.
            config: Dict, as in the constructor.
            exempt: Names, as in the constructor.
            growing: Names, as in the constructor.
            paths: Names, as in the constructor.

        Raises:
            ConfigMismatchError: If the folder holds a run of another configuration.
        """
        workdir = cls.__new__(cls)
        workdir._set(path, config, paths)
        if (workdir.path / _CONFIG).exists() and not workdir._is_unused():
            workdir._compare(read_config(workdir.path), exempt, growing, paths)

    @classmethod
    def reader(
        cls,
        path: str | os.PathLike,
        config: Mapping[str, Any],
        exempt: Iterable[str] = (),
        growing: Iterable[str] = (),
        paths: Iterable[str] = (),
    ) -> "WorkDir":
        """Returns the folder for a process that writes nothing, while another trains in it.

        Args:
            path: Path of the folder, as in the constructor. It need not exist.
            config: Dict, as in the constructor.
            exempt: Names, as in the constructor.
            growing: Names, as in the constructor.
            paths: Names, as in the constructor.

        Returns:
            `WorkDir` without a lock.
        """
        del exempt, growing
        workdir = cls.__new__(cls)
        workdir._set(path, config, paths)
        return workdir

    def _set(self, path, config, paths):
        self.path = pathlib.Path(path).expanduser()
        # Converted as the file will be: tuples become lists.
        self.config = json.loads(json.dumps(config, default=os.fspath))
        places = {name: _place(self.config.get(name)) for name in paths}
        self._places = {name: place for name, place in places.items() if place is not None}

    @property
    def checkpoint(self) -> pathlib.Path:
        """Path of the state to resume from."""
        return self.path / "checkpoint.npz"

    @property
    def log(self) -> pathlib.Path:
        """Path of the CSV file of the metrics of every epoch."""
        return self.path / "log.csv"

    @property
    def tensorboard(self) -> pathlib.Path:
        """Folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def tables(self) -> pathlib.Path:
        """Folder of tables, created if it is missing."""
        return self._folder("tables")

    @property
    def plots(self) -> pathlib.Path:
        """Folder of plots, created if it is missing."""
        return self._folder("plots")

    def _folder(self, name):
        folder = self.path / name
        folder.mkdir(exist_ok=True)
        return folder

    def _make(self):
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise NotADirectoryError(
                error.errno,
                f"The folder of a run must not be a file or lie inside one. Received: {self.path}",
            ) from error
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def _is_unused(self):
        """Returns whether no run has begun to train in the folder.

        TensorBoard's files are created before the first step. A saved network can be the only file
        that is kept of a run, and its configuration still describes it.
        """
        results = (self.checkpoint, self.log, self.tensorboard, *self.path.glob("*.keras"))
        return not any(path.exists() for path in results)

    def _lock(self):
        """Takes the folder's lock. Returns whether it was free, so that nobody else can train."""
        try:
            descriptor = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        lock, status = _Lock(descriptor), os.fstat(descriptor)
        file = status.st_dev, status.st_ino
        locked = file not in _held and self._acquire(descriptor)
        self._own_lock = _held.setdefault(file, lock)
        return locked

    def _acquire(self, descriptor):
        """Locks a file. Returns whether its file system has locks."""
        try:
            # Unlike a `lockf` lock, this one survives when other descriptors of the file close.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise OSError(
                error.errno,
                f"The folder {self.path} is in use by another process: wait until it ends, or use "
                "another folder",
            ) from error
        except OSError:
            # Some network file systems have no locks, and the run goes on without one.
            return False
        return True

    def _write_config(self):
        try:
            with atomic_file(self.path / _CONFIG) as file:
                places = {_PLACES: self._places} if self._places else {}
                json.dump(self.config | places, file, indent=2)
                file.write("\n")
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def _compare(self, before, exempt, growing, paths):
        """Raises the error of the first setting that has changed."""
        places = before.pop(_PLACES, {})
        for name in [*self.config, *before]:
            old, new = before.get(name), self.config.get(name)
            can_grow = name in growing and None not in (old, new)
            if can_grow and new < old:
                old = self._trained_with(name, old)
            if name in paths and None not in (old, new):
                unchanged = self._is_same_place(name, old, places)
            else:
                unchanged = _is_same(old, new) or (can_grow and new > old)
            if not unchanged and name not in exempt:
                was, now = (old, places.get(name)), (new, self._places.get(name))
                raise ConfigMismatchError(self.path, name, was, now, can_grow)

    def _trained_with(self, name, old):
        """Returns a setting as the last checkpoint knows it: a start may have ended before a step.

        Args:
            name: String, name of the setting.
            old: The value of the last start.
        """
        try:
            return (RunCheckpoint(self.checkpoint).read_meta() or {}).get(name, old)
        except ValueError:
            return old

    def _is_same_place(self, name, old, places):
        """Returns whether a path leads to the same place as before.

        Args:
            name: String, name of the setting.
            old: The value of before.
            places: Dict from names to the resolved paths of before.
        """
        before, now = places.get(name), self._places.get(name)
        if _is_same(old, self.config[name]):
            # A relative path leads elsewhere if the process started in another folder. If the place
            # of before is gone, the data have moved.
            return None in (before, now) or before == now or not pathlib.Path(before).exists()
        before = _place(old) if before is None else before
        return before is not None and before == now


class ConfigMismatchError(ValueError):
    """A folder holds a run that was started with another configuration.

    Args:
        folder: `pathlib.Path` of the run.
        name: String, the first setting that differs.
        before: `(value, place)` of the setting when the run was started. The value is None if it
            was not set. The place is the resolved path if the value is a path, else None.
        now: `(value, place)` of the setting at this start.
        can_grow: Boolean, whether the setting is a number that can grow. Defaults to `False`.

    Attributes:
        folder, name, before, now, can_grow: The arguments, for programs that describe the setting
            in other words.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        name: str,
        before: tuple[Any, str | None],
        now: tuple[Any, str | None],
        can_grow: bool = False,
    ):
        self.folder, self.name, self.before, self.now = folder, name, before, now
        self.can_grow = can_grow
        super().__init__(self.describe())

    def describe(self, setting: str = "{name}") -> str:
        """Returns the message, with the setting in the words of a program.

        Args:
            setting: String, a format of the setting with `{name}`, such as `"--{name}"`. Defaults
                to its name.
        """
        label = setting.format(name=self.name)
        old, new = _text(label, *self.before), _text(label, *self.now)
        if self.can_grow:
            return (
                f"The folder {self.folder} was started {old}, which may grow, and now runs "
                f"{new}: use the same value or a larger one, or another folder"
            )
        return (
            f"The folder {self.folder} was started {old}, and now runs {new}: use the same value, "
            "or another folder"
        )


class _Lock:
    """Closes a descriptor, and so releases its lock, when the object is garbage."""

    def __init__(self, descriptor):
        weakref.finalize(self, os.close, descriptor)


def read_config(path: str | os.PathLike) -> dict[str, Any]:
    """Returns the configuration of the run in a folder.

    Args:
        path: Path of the folder.

    Raises:
        FileNotFoundError: If the folder has no run.
        ValueError: If the configuration is damaged.
    """
    path = pathlib.Path(path)
    try:
        config = json.loads((path / _CONFIG).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(
            error.errno, f"{path} is not the folder of a run: it has no {_CONFIG}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path / _CONFIG} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path / _CONFIG} is damaged: it does not hold an object")
    return config


def _place(value):
    """Returns the resolved path of a value, or None if it is not the path of something."""
    if not isinstance(value, str):
        return None
    try:
        return str(pathlib.Path(value).expanduser().resolve(strict=True))
    except (OSError, RuntimeError, ValueError):
        # Nothing has this path, or it cannot be read.
        return None


def _is_same(old, new):
    """Returns whether two values are equal. Numbers in lists can be spelled as 1 or 1.0."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return all(a == b or _number(a) == _number(b) is not None for a, b in zip(old, new))
    return old == new


def _number(value):
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _text(label, value, place=None):
    if value is None:
        return f"without {label}"
    shown = value if isinstance(value, str) else json.dumps(value)
    return f"with {label}={shown}" + (f" ({place})" if place not in (None, value) else "")


def _cannot_write(path, error):
    return OSError(error.errno, f"The folder {path} cannot be written: {error.strerror}")
