"""A callback that saves the network while a trainer trains it."""

import os
import pathlib
from typing import Any

import keras

from keras_dsnet.training.network_trainer import NetworkTrainer
from keras_dsnet.utils.atomic_file import atomic_path


class SaveNetwork(keras.callbacks.ModelCheckpoint):
    """Keras's `ModelCheckpoint` for the network inside a trainer.

    `ModelCheckpoint` saves the model that is fitted: the trainer, with its optimizer and teacher,
    from which training can go on. This callback saves `trainer.model`, which
    `keras.models.load_model` loads as a network. A file is replaced only when the new one is
    complete.

    Args:
        filepath: Path that ends in ".keras", or in ".weights.h5" with `save_weights_only=True`. It
            can have placeholders such as "{epoch}".
        monitor: String, the metric that decides which network is the best, such as "val_loss" or
            "val_slimmest_accuracy". The metrics are those of the network, and those of its teacher
            are not measured. Defaults to `"val_loss"`.
        mode: String, `"min"`, `"max"`, or `"auto"` to infer it from the name of the metric.
            Defaults to `"auto"`.
        save_best_only: Boolean, whether to save only when `monitor` has a new best value. Defaults
            to `False`.
        teacher: Boolean, whether to save the teacher's weights if the trainer has a teacher, as
            `load_teacher` would assign them to the network. Training goes on with the network's
            weights. Use `recalibrate_batch_norm` on the saved network in both cases. Defaults
            to `True`.
        **kwargs: Keyword arguments of `keras.callbacks.ModelCheckpoint`.

    Raises:
        ValueError: If the path has another ending, or `mode` cannot be inferred from the name of
            the metric. `fit` raises it if the fitted model is not a trainer of this package.

    Example:

    ```python
    import pathlib
    import tempfile
    import keras
    import numpy as np
    from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, MobileNetStage
    from keras_dsnet.runs import SaveNetwork
    from keras_dsnet.training import SupernetTrainer

    stages = MobileNetStage(1, 2, (8, 12)), MobileNetStage(1, 2, (8, 12, 16), gated=True)
    spec = MobileNetSpec(stem=(8, 12), stages=stages)
    model = DynamicSlimmableNetwork(spec, input_shape=(32, 32, 3), classes=10)
    images = np.random.normal(size=(16, 32, 32, 3)).astype("float32")
    data = (images, np.arange(16) % 10)

    trainer = SupernetTrainer(model, num_random=1)
    trainer.compile()
    path = str(pathlib.Path(tempfile.mkdtemp()) / "best.keras")
    best = SaveNetwork(path, monitor="val_slimmest_accuracy", save_best_only=True)
    trainer.fit(*data, validation_data=data, epochs=1, callbacks=[best])
    network = keras.models.load_model(path)
    ```
    """

    def __init__(
        self,
        filepath: str | os.PathLike,
        monitor: str = "val_loss",
        mode: str = "auto",
        save_best_only: bool = False,
        teacher: bool = True,
        **kwargs: Any,
    ):
        ending = ".weights.h5" if kwargs.get("save_weights_only") else ".keras"
        if not str(filepath).endswith(ending):
            raise ValueError(f"`filepath` must end in '{ending}'. Received: {str(filepath)!r}")
        if mode not in ("min", "max", "auto"):
            raise ValueError(f"`mode` must be 'min', 'max' or 'auto'. Received: mode={mode!r}")
        if mode == "auto" and save_best_only:
            mode = _mode_of(monitor)
        super().__init__(filepath, monitor, mode=mode, save_best_only=save_best_only, **kwargs)
        self.teacher = teacher

    def set_model(self, model: NetworkTrainer) -> None:
        if not isinstance(model, NetworkTrainer):
            raise ValueError(
                "`SaveNetwork` must be a callback of SupernetTrainer or GateTrainer; use "
                f"`ModelCheckpoint` for another model. Received: a {type(model).__name__}"
            )
        super().set_model(_SavedNetwork(model, self.teacher))


class _SavedNetwork:
    """Stands for the model in `ModelCheckpoint`. Its `save` saves the network of the trainer."""

    def __init__(self, trainer, teacher):
        self._trainer = trainer
        self._teacher = teacher
        self.metrics = trainer.metrics

    def save(self, filepath, overwrite=True):
        self._write(filepath, self._trainer.model.save)

    def save_weights(self, filepath, overwrite=True):
        self._write(filepath, self._trainer.model.save_weights)

    def _write(self, filepath, write):
        pathlib.Path(filepath).parent.mkdir(parents=True, exist_ok=True)
        with self._trainer.saved_weights(self._teacher), atomic_path(filepath) as beside:
            write(beside)


def _mode_of(monitor):
    ends = {"loss": "min", "madds": "min", "accuracy": "max"}
    for end, mode in ends.items():
        if monitor.endswith(end):
            return mode
    raise ValueError(
        "`mode` must be 'min' or 'max' if the name of the metric does not end in 'loss', "
        f"'accuracy' or 'madds'. Received: mode='auto', monitor={monitor!r}"
    )
