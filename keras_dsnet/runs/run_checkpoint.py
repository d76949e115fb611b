"""The checkpoint of a run: one file with everything that resuming needs."""

import json
import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_dsnet.runs.callbacks import GlobalStepCallback
from keras_dsnet.utils.atomic_file import atomic_file, remove_leftovers

_FORMAT = 1
_MANIFEST = "manifest.json"


class RunCheckpoint:
    """The last saved state of a run, in one file: groups of variables, the step, and metadata.

    A save replaces the file only when the new file is on the disk. A process that is killed at any
    moment, or a full disk, leaves the last good state. Values are restored bit for bit, whatever
    their dtype, and the checksum of every variable is verified.

    The file is a NumPy archive: `np.load(path)["model/0"]` is the first variable of "model".

    Args:
        path: Path of the file, by convention `checkpoint.npz`. Its folder must exist.
        is_reader: Boolean, whether to leave the incomplete files alone that a killed process has
            left. Set it where another process may be writing. Defaults to `False`.

    Example:

    ```python
    import pathlib
    import tempfile
    import keras
    from keras_dsnet.runs import RunCheckpoint

    groups = {"model": [keras.Variable([1.0, 2.0])]}
    checkpoint = RunCheckpoint(pathlib.Path(tempfile.mkdtemp()) / "checkpoint.npz")
    start = checkpoint.restore(groups)
    step = start["step"] if start else 0
    checkpoint.save(groups, step=1000, meta={"seed": 0})
    ```
    """

    def __init__(self, path: str | os.PathLike, is_reader: bool = False):
        self.path = pathlib.Path(path)
        if not is_reader:
            remove_leftovers(self.path)

    def save(
        self,
        variables: Mapping[str, Sequence[keras.Variable]],
        step: int,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves a state in place of the last one.

        Args:
            variables: Dict from group names to lists of `keras.Variable`.
            step: Int, the number of training steps that have changed the variables.
            meta: Dict that JSON can hold, without a key "step". Defaults to an empty dict.

        Raises:
            ValueError: If a variable is NaN or infinite. The last good state is then kept.
            OSError: If the file could not be written, for example because the disk is full. The
                last state is then kept.
        """
        arrays = {name: [v.numpy() for v in group] for name, group in variables.items()}
        self._check_finite(variables, arrays, step)
        manifest = {
            "format": _FORMAT,
            "step": int(step),
            "meta": dict(meta or {}),
            "groups": {name: [_describe(v) for v in group] for name, group in variables.items()},
        }
        try:
            with atomic_file(self.path, "wb") as file:
                _write(file, manifest, arrays)
        except OSError as error:
            kept = "the last checkpoint is unchanged" if self.path.exists() else "there is none yet"
            raise OSError(
                error.errno,
                f"The checkpoint of step {step} could not be saved in {self.path}: "
                f"{error.strerror}; {kept}",
            ) from error

    def _check_finite(self, variables, arrays, step):
        for name, group in arrays.items():
            for variable, array in zip(variables[name], group):
                if not (_is_float(variable) and not np.isfinite(array).all()):
                    continue
                raise ValueError(
                    f"The state of step {step} is not saved, because {variable.path!r} of its "
                    f"{name!r} variables is not finite. Training has diverged: try a lower "
                    f"learning rate. {self.path} is unchanged"
                )

    def read_meta(self) -> dict[str, Any] | None:
        """Returns the metadata of the saved state with its "step", or None if there is no state.

        Raises:
            ValueError: If the file is damaged.
        """
        if not self.path.exists():
            return None
        manifest = self._read({})[0]
        return {**manifest["meta"], "step": manifest["step"]}

    def restore(self, variables: Mapping[str, Sequence[keras.Variable]]) -> dict[str, Any] | None:
        """Assigns the saved values to all variables, or to none if there is an error.

        Args:
            variables: Dict as in `save`, with the same groups, shapes and dtypes.

        Returns:
            Dict, the saved metadata with its "step", or None if nothing was saved yet.

        Raises:
            ValueError: If the file is damaged, or holds the state of other variables.
        """
        if not self.path.exists():
            return None
        manifest, arrays = self._read(variables)
        for name, group in variables.items():
            for variable, array in zip(group, arrays[name]):
                # NumPy files have no bfloat16, which is stored as an integer of the same bits.
                variable.assign(array.view(tf.as_dtype(_dtype(variable)).as_numpy_dtype))
        return {**manifest["meta"], "step": manifest["step"]}

    def _read(self, variables):
        """Returns the manifest, and the arrays of the groups in `variables`."""
        with self.path.open("rb") as file:
            try:
                with zipfile.ZipFile(file) as archive:
                    manifest = json.loads(archive.read(_MANIFEST))
                    mismatch = _mismatch(manifest, variables)
                    arrays = {} if mismatch else _read_arrays(archive, variables)
            except Exception as error:  # The libraries raise many types on arbitrary bytes.
                raise ValueError(
                    f"The checkpoint {self.path} is damaged ({_first_line(error)}): remove it to "
                    "start the run again, or replace it by a copy"
                ) from error
        if mismatch:
            raise ValueError(
                f"The checkpoint {self.path} is of another run: {mismatch}. Use the configuration "
                "that the run was started with, or another folder"
            )
        return manifest, arrays


def _write(file, manifest, arrays):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_MANIFEST, json.dumps(manifest))
        for name, group in arrays.items():
            for index, array in enumerate(group):
                if array.dtype.kind == "V":
                    array = array.view(f"u{array.dtype.itemsize}")
                with archive.open(f"{name}/{index}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)


def _read_arrays(archive, variables):
    arrays = {}
    for name, group in variables.items():
        arrays[name] = []
        for index, _ in enumerate(group):
            with archive.open(f"{name}/{index}.npy") as member:
                arrays[name].append(np.lib.format.read_array(member, allow_pickle=False))
    return arrays


def _mismatch(manifest, variables):
    """Returns the first difference between a file and the variables, or None if there is none."""
    if manifest["format"] != _FORMAT:
        return f"its format is {manifest['format']}, and this version reads {_FORMAT}"
    if not variables:
        return None
    groups = manifest["groups"]
    if set(groups) != set(variables):
        return f"it holds {_listed(groups)}, and this run has {_listed(variables)}"
    for name, group in variables.items():
        saved = groups[name]
        for index, (old, variable) in enumerate(zip(saved, group)):
            new = _describe(variable)
            if (_stem(old["path"]), *_form(old)) != (_stem(new["path"]), *_form(new)):
                return f"variable {index} of {name!r} is {_text(old)} there, {_text(new)} here"
        if len(saved) != len(group):
            return f"{name!r} has {len(saved)} variables there, {len(group)} here"
    return None


def _describe(variable):
    return {
        "path": variable.path,
        "dtype": _dtype(variable),
        "shape": [int(size) for size in variable.shape],
    }


def _dtype(variable):
    return keras.backend.standardize_dtype(variable.dtype)


def _is_float(variable):
    return "float" in _dtype(variable)


def _form(description):
    return description["dtype"], list(description["shape"])


def _stem(path):
    # Keras numbers unnamed layers in the order of their creation in the process.
    return re.sub(r"_\d+", "", path)


def _text(description):
    shape = tuple(description["shape"])
    return f"{description['path']!r} {description['dtype']} {shape}"


def _listed(groups):
    return ", ".join(repr(name) for name in sorted(groups)) or "nothing"


def _first_line(error):
    return (str(error).splitlines() or [type(error).__name__])[0]


class SaveRunCheckpoint(GlobalStepCallback):
    """Saves the checkpoint every `every_steps` steps, and at the end of each epoch and of the run.

    It should be the last of the callbacks. The results that the others write of an epoch are then
    on the disk before the state, after which no resumed run would write them again. For the same
    reason the last step of an epoch is saved when the epoch ends, after its evaluation.

    Args:
        checkpoint: `RunCheckpoint`.
        every_steps: Int, number of steps between saves. With None, only the ends of epochs and of
            the run are saved.
        get_variables: Function without arguments that returns the groups of variables to save.
        get_meta: Function without arguments that returns a dict for JSON. Defaults to an empty
            dict.
        start_step: Int, the number of steps before this start. Defaults to `0`.
    """

    def __init__(
        self,
        checkpoint: RunCheckpoint,
        every_steps: int | None,
        get_variables: Callable[[], Mapping[str, Sequence[keras.Variable]]],
        get_meta: Callable[[], Mapping[str, Any]] | None = None,
        start_step: int = 0,
    ):
        super().__init__(start_step)
        if every_steps is not None and every_steps < 1:
            raise ValueError(f"`every_steps` must be 1 or more. Received: {every_steps}")
        self.checkpoint = checkpoint
        self.every_steps = every_steps
        self.get_variables = get_variables
        self.get_meta = get_meta or dict
        self._saved_step = start_step

    def on_step_end(self, logs):
        every = self.every_steps
        is_due = every and self.step // every > self._saved_step // every
        if is_due and not self.is_end_of_epoch:
            self._save()

    def on_epoch_end(self, epoch, logs=None):
        self._save()

    def on_train_end(self, logs=None):
        self._save()

    def _save(self):
        if self.step != self._saved_step:
            self.checkpoint.save(self.get_variables(), self.step, self.get_meta())
            self._saved_step = self.step
