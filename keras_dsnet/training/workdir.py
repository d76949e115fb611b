"""The folder that everything of a run goes to."""

import fcntl
import json
import os
import pathlib
import weakref

from keras_dsnet.utils.atomic_file import atomic_file

_CONFIG = "config.json"
_LOCK = ".lock"
# The locks that this process holds, by device and number of their files. It may open a folder
# again: a lock ends with the last `WorkDir` that has it.
_held = weakref.WeakValueDictionary()


class WorkDir:
    """A run's folder: made where it is missing, and tied to the configuration of its first start.

    A start that ended before it trained, by a mistake in its flags say, ties the folder to nothing.
    One process at a time trains in a folder; a lock, which ends with the process, sees to it. The
    same process may open its folder again.

    Args:
        path: of the folder.
        config: dict of what JSON can hold: the flags that make the run what it is.
        exempt: names in `config` that may be different at every start, such as how often to log.

    Raises:
        ValueError: the folder holds a run of another configuration.
        OSError: the folder cannot be made or written, or another process trains in it.

    Example:

    >>> workdir = WorkDir("runs/x", {"alpha": 0.5, "log_steps": 50}, exempt=("log_steps",))
    >>> workdir.checkpoint
    PosixPath('runs/x/checkpoint.npz')
    """

    def __init__(self, path, config, exempt=()):
        self.path = pathlib.Path(path)
        # As they come back from the file: tuples are lists there.
        self.config = json.loads(json.dumps(config, default=os.fspath))
        self._make()
        locked = self._lock()
        if (self.path / _CONFIG).exists() and not (locked and self._is_unused()):
            self._compare(read_config(self.path), frozenset(exempt))
        self._write_config()

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
                json.dump(self.config, file, indent=2)
                file.write("\n")
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def _compare(self, before, exempt):
        for name in [*self.config, *before]:
            old, new = before.get(name), self.config.get(name)
            if name not in exempt and old != new:
                raise ValueError(
                    f"--workdir={self.path} was started {_flag(name, old)}, and now runs "
                    f"{_flag(name, new)}: give the same flags, or name another folder"
                )


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


def _flag(name, value):
    if value is None:
        return f"without --{name}"
    return f"with --{name}={value if isinstance(value, str) else json.dumps(value)}"


def _cannot_write(path, error):
    return OSError(error.errno, f"--workdir={path} cannot be written: {error.strerror}")
