"""The folder that everything of a run goes to."""

import fcntl
import json
import os
import pathlib
import weakref
from keras_dsnet.utils.atomic_file import atomic_file, remove_leftovers_of_the_dead


_CONFIG = "config.json"
# In the file beside the flags: where those values lay that are paths.
_PLACES = "places"
_LOCK = ".lock"
# The locks that this process holds, by device and number of their files. It may open a folder
# again: a lock ends with the last `WorkDir` that has it.
_held = weakref.WeakValueDictionary()


class WorkDir:
    """A run's folder: made where it is missing, and tied to the configuration of its first start.

    A start that ended before it trained, by a mistake in its flags say, ties the folder to nothing.
    What killed processes left half-written in the folder is removed. One process at a time trains
    in a folder; a lock, which ends with the process, sees to it. The same process may open its
    folder again.

    Args:
        path: of the folder.
        config: dict of what JSON can hold: the flags that make the run what it is.
        exempt: names in `config` that may be different at every start, such as how often to log.
        growing: names in `config` of numbers that may be larger than before, not smaller, such as
            that of the epochs.
        paths: names in `config` whose values may be paths: however it is spelled, the same file or
            folder is the same value.

    Raises:
        ValueError: the folder holds a run of another configuration.
        OSError: the folder cannot be made or written, or another process trains in it.

    Example:

    >>> workdir = WorkDir("runs/x", {"alpha": 0.5, "log_steps": 50}, exempt=("log_steps",))
    >>> workdir.checkpoint
    PosixPath('runs/x/checkpoint.npz')
    """

    def __init__(self, path, config, exempt=(), growing=(), paths=()):
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
    def check(cls, path, config, exempt=(), growing=(), paths=()):
        """Raises the error of a folder that holds a run of another configuration; makes nothing.

        Args:
            path: as of the constructor, as are the others.
            config: dict.
            exempt: names.
            growing: names.
            paths: names.

        Raises:
            ValueError: the folder holds a run of another configuration.
        """
        workdir = cls.__new__(cls)
        workdir._set(path, config, paths)
        if (workdir.path / _CONFIG).exists() and not workdir._is_unused():
            workdir._compare(read_config(workdir.path), exempt, growing, paths)

    def _set(self, path, config, paths):
        self.path = pathlib.Path(path).expanduser()
        # As they come back from the file: tuples are lists there.
        self.config = json.loads(json.dumps(config, default=os.fspath))
        places = {name: _place(self.config.get(name)) for name in paths}
        self._places = {name: place for name, place in places.items() if place is not None}

    @property
    def checkpoint(self):
        """Path of the state to resume from."""
        return self.path / "checkpoint.npz"

    @property
    def log(self):
        """Path of the metrics of every epoch, as CSV."""
        return self.path / "log.csv"

    @property
    def tensorboard(self):
        """Folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def tables(self):
        """Folder of tables; made where it is missing."""
        return self._folder("tables")

    @property
    def plots(self):
        """Folder of pictures; made where it is missing."""
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
                error.errno, f"--workdir={self.path} is a file, or is inside one: name a folder"
            ) from error
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def _is_unused(self):
        """Whether no run has begun to train here: TensorBoard's files come before its first step.

        A network may be all that is kept of a run; the configuration still tells of it.
        """
        results = (self.checkpoint, self.log, self.tensorboard, *self.path.glob("*.keras"))
        return not any(path.exists() for path in results)

    def _lock(self):
        """Takes the folder's lock; returns whether it was free: nobody else is about to train."""
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
        """Locks a file; returns whether its file system has locks."""
        try:
            # Unlike `lockf`, it lasts while other descriptors of the file are closed.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise OSError(
                error.errno,
                f"--workdir={self.path} is in use by another process: wait for its end, or name "
                "another folder",
            ) from error
        except OSError:
            # Some network file systems have no locks; the run is as safe there as without one.
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
        places = before.pop(_PLACES, {})
        for name in [*self.config, *before]:
            old, new = before.get(name), self.config.get(name)
            if name in exempt or _is_same(old, new):
                # A relative path means another folder where the process started elsewhere.
                if name in exempt or name not in paths or self._is_same_place(name, places):
                    continue
            elif name in paths and self._is_same_place(name, places, old):
                continue
            elif name in growing and None not in (old, new):
                if new > old:
                    continue
                raise ValueError(
                    f"--workdir={self.path} was started {_flag(name, old)}, which may grow, and "
                    f"now runs {_flag(name, new)}: give as many or more, or name another folder"
                )
            raise ValueError(
                f"--workdir={self.path} was started {_flag(name, old, places)}, and now runs "
                f"{_flag(name, new, self._places)}: give the same flags, or name another folder"
            )

    def _is_same_place(self, name, places, old=None):
        """Whether a path leads where it did before; of the same spelling also where that is gone.

        Args:
            name: of the flag.
            places: dict by name of where the paths led before.
            old: how it was spelled before, where that was different; None: as now.
        """
        before, now = places.get(name), self._places.get(name)
        if before is None and old is not None:
            before = _place(old)
        if old is None:
            return None in (before, now) or before == now or not pathlib.Path(before).exists()
        return before is not None and before == now


class _Lock:
    """Closes a descriptor, and so gives up its lock, when nobody has it any more."""

    def __init__(self, descriptor):
        weakref.finalize(self, os.close, descriptor)


def read_config(path):
    """Returns the configuration of the run in a folder.

    Args:
        path: of the folder.

    Raises:
        FileNotFoundError: there is no run in it.
        ValueError: its configuration is damaged.
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
        raise ValueError(f"{path / _CONFIG} is damaged: it holds no flags")
    return config


def _place(value):
    """Returns where a path leads, whatever its spelling; None: there is nothing."""
    if not isinstance(value, str):
        return None
    try:
        return str(pathlib.Path(value).expanduser().resolve(strict=True))
    except (OSError, RuntimeError, ValueError):
        # There is nothing, or it cannot be looked at.
        return None


def _is_same(old, new):
    """Whether two values are equal; numbers in lists may be spelled otherwise, as 1 and 1.0."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return all(a == b or _number(a) == _number(b) is not None for a, b in zip(old, new))
    return old == new


def _number(value):
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _flag(name, value, places=()):
    if value is None:
        return f"without --{name}"
    if name in places and places[name] != value:
        return f"with --{name}={value} ({places[name]})"
    return f"with --{name}={value if isinstance(value, str) else json.dumps(value)}"


def _cannot_write(path, error):
    return OSError(error.errno, f"--workdir={path} cannot be written: {error.strerror}")
