"""Saves the network while a trainer trains it."""

import pathlib
import keras
from keras_dsnet.training.network_trainer import NetworkTrainer
from keras_dsnet.utils.atomic_file import atomic_path


class SaveNetwork(keras.callbacks.ModelCheckpoint):
    """Keras's `ModelCheckpoint` for the network in a trainer.

    `ModelCheckpoint` saves what is fitted: the trainer, with its optimizer and teacher, from which
    training goes on. This callback saves `trainer.model`, which `keras.models.load_model` gives
    back as a network. A file is replaced only when the new one is complete.

    Args:
        filepath: ends in ".keras", or in ".weights.h5" with `save_weights_only`; may have
            placeholders such as "{epoch}".
        monitor: str, name of the metric whose best value is wanted, such as "val_loss" or
            "val_slimmest_accuracy". Metrics are the network's own, those of its teacher are not
            measured.
        mode: "min", "max" or "auto": by the name of the metric.
        save_best_only: bool: save only where `monitor` has a new best value.
        teacher: bool: save the teacher's weights where the trainer has a teacher, as
            `load_teacher` would give them to the network; it trains on with its own. Their batch
            norm gains from `recalibrate_batch_norm` all the same.
        **kwargs: of `keras.callbacks.ModelCheckpoint`.

    Raises:
        ValueError: on a name that ends otherwise, or a `mode` that cannot be known from the name;
            from `fit`, where it is none of a trainer of this package.

    Example:

    >>> best = SaveNetwork("best.keras", monitor="val_slimmest_accuracy", save_best_only=True)
    >>> trainer.fit(dataset, validation_data=validation_dataset, epochs=150, callbacks=[best])
    >>> model = keras.models.load_model("best.keras")
    """

    def __init__(
        self,
        filepath,
        monitor="val_loss",
        mode="auto",
        save_best_only=False,
        teacher=True,
        **kwargs,
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

    def set_model(self, model):
        if not isinstance(model, NetworkTrainer):
            raise ValueError(
                "`SaveNetwork` must be a callback of SupernetTrainer or GateTrainer; of another "
                f"model `ModelCheckpoint` does the same. Received: a {type(model).__name__}"
            )
        super().set_model(_SavedNetwork(model, self.teacher))


class _SavedNetwork:
    """What `ModelCheckpoint` takes for the model: its `save` is that of the network."""

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
        "`mode` must be 'min' or 'max' where the name of the metric does not end in 'loss', "
        f"'accuracy' or 'madds'. Received: mode='auto', monitor={monitor!r}"
    )
