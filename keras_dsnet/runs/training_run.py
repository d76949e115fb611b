"""A training run that survives a kill: it resumes from its checkpoint."""

import contextlib
import errno
import itertools
import logging
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_dsnet.runs.callbacks import GlobalStepCallback, ProgressBar
from keras_dsnet.runs.csv_log import CsvLog, evaluation_metrics
from keras_dsnet.runs.distributed_loop import DistributedLoop, is_multi_worker
from keras_dsnet.runs.run_checkpoint import RunCheckpoint, SaveRunCheckpoint
from keras_dsnet.runs.workdir import WorkDir

_logger = logging.getLogger("keras_dsnet")


class TrainingRun:
    """Fits a compiled trainer in a work directory, and resumes from its checkpoint if it has one.

    The resumed run ends with the same values as a run that was never interrupted. The events of the
    run, such as a resume, go to the logger "keras_dsnet".

    A trainer that was created in the scope of `tf.distribute.MultiWorkerMirroredStrategy` trains on
    several machines, each of which makes the same `TrainingRun`. Only the chief, worker 0, reads
    and writes the work directory and evaluates. All other workers begin with the chief's state, so
    a run can be resumed on another number of machines.

    Args:
        trainer: Compiled `SupernetTrainer` or `GateTrainer`.
        workdir: `WorkDir` of the run.
        make_dataset: Function of a start step that returns an endless data set of batches from this
            step on. On several machines it also takes the keyword arguments `shard_index` and
            `num_shards` of `training_pipeline`, and returns this worker's rows of the batches.
        batch_size: Int, images per step, over all replicas.
        steps_per_epoch: Int, steps per epoch.
        epochs: Int, number of epochs.
        checkpoint_steps: Int, number of steps between checkpoints. The end of an epoch always
            has one. Defaults to `500`.
        evaluate: Function without arguments that returns the rows of `evaluate_paths`. By default
            there is no evaluation.
        evaluate_epochs: Int, number of epochs between evaluations. The last epoch is always
            evaluated. Defaults to `1`.
        progress_names: List of the metrics that the progress bar shows. Defaults to all.
        class_names: List of the names of the data set's classes. A run is not resumed with other
            classes. Optional.
        num_images: Int, number of training images. A resumed run logs a warning if it has changed.
            Optional.

    Example:

    ```python
    import tempfile
    import numpy as np
    import tensorflow as tf
    from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, MobileNetStage
    from keras_dsnet.runs import TrainingRun, WorkDir
    from keras_dsnet.training import SupernetTrainer

    stages = MobileNetStage(1, 2, (8, 12)), MobileNetStage(1, 2, (8, 12, 16), gated=True)
    spec = MobileNetSpec(stem=(8, 12), stages=stages)
    model = DynamicSlimmableNetwork(spec, input_shape=(32, 32, 3), classes=10)
    images = np.random.normal(size=(16, 32, 32, 3)).astype("float32")
    batches = tf.data.Dataset.from_tensor_slices((images, np.arange(16) % 10)).batch(8).repeat()

    trainer = SupernetTrainer(model, num_random=1)
    trainer.compile()
    workdir = WorkDir(tempfile.mkdtemp(), {"epochs": 2}, growing=("epochs",))
    options = {"batch_size": 8, "steps_per_epoch": 2, "epochs": 2}
    run = TrainingRun(trainer, workdir, lambda step: batches.skip(step % 2), **options)
    run.fit()
    ```
    """

    def __init__(
        self,
        trainer: keras.Model,
        workdir: WorkDir,
        make_dataset: Callable[..., tf.data.Dataset],
        *,
        batch_size: int,
        steps_per_epoch: int,
        epochs: int,
        checkpoint_steps: int = 500,
        evaluate: Callable[[], list[dict[str, Any]]] | None = None,
        evaluate_epochs: int = 1,
        progress_names: Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
        num_images: int | None = None,
    ):
        together = trainer.steps_per_execution
        if steps_per_epoch % together:
            raise ValueError(
                "`steps_per_execution` of `trainer.compile` must divide the steps of an epoch, "
                f"{steps_per_epoch}. Received: steps_per_execution={together}"
            )
        self.trainer = trainer
        self.workdir = workdir
        self.make_dataset = make_dataset
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.epochs = epochs
        self.checkpoint_steps = checkpoint_steps
        self.evaluate = evaluate
        self.evaluate_epochs = evaluate_epochs
        self.progress_names = progress_names
        self.data = {
            "classes": None if class_names is None else list(class_names),
            "images": num_images,
            "steps_per_epoch": steps_per_epoch,
        }
        self._has_state = False
        self._loop = None
        if is_multi_worker(trainer.distribute_strategy):
            self._loop = DistributedLoop(trainer)
            self._loop.check_batch_size(batch_size)
        self.checkpoint = RunCheckpoint(workdir.checkpoint, is_reader=not self.is_chief)

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the results. It is False on all machines except one."""
        return self._loop is None or self._loop.index == 0

    def stop(self) -> None:
        """Asks a run on several machines to end after the step at hand, with a checkpoint.

        Every worker can ask, also in a signal handler, and all of them end after the same step.

        Raises:
            RuntimeError: If the run is on one machine.
        """
        if self._loop is None:
            raise RuntimeError("Only a run on several machines can be asked to stop")
        self._loop.stop()

    def variables(self) -> dict[str, list[keras.Variable]]:
        """Returns the variables that make up the state of the run.

        Returns:
            Dict from group names to lists of `keras.Variable`.
        """
        trainer = self.trainer
        if not trainer.optimizer.built:
            # The optimizer's variables need the scope in which the trainer's were created.
            with trainer.distribute_strategy.scope():
                trainer.optimizer.build(trainer.optimized_variables)
        return {
            "model": trainer.model.variables,
            "teacher": list(getattr(trainer, "teacher_variables", [])),
            "optimizer": trainer.optimizer.variables,
        }

    def is_complete(self) -> bool:
        """Returns whether the last epoch was trained and its state is in the checkpoint."""
        state = self.checkpoint.read_meta()
        return state is not None and state["step"] >= self.epochs * self.steps_per_epoch

    def holds_last_epoch(self) -> bool:
        """Returns whether the variables of this process have the values after the last epoch.

        They do not before `fit`, nor where `fit` has refused to go on with a finished run.
        """
        return self._has_state and self.is_complete()

    def fit(self) -> int:
        """Trains to the last epoch. A run that had ended goes on if `epochs` is larger now.

        Returns:
            Int, the step that this start began at: 0, or the step of the checkpoint.

        Raises:
            ValueError: If the run was started with other classes, or with another number of steps
                per epoch, or if the workers have different data.
            RunStoppedError: If a worker asked to stop. The state of the last step is in the
                checkpoint.
            Exception: The error of `evaluate`, after the state of the epoch is in the checkpoint.
        """
        if self._loop:
            self._loop.agree({**self.data, "batch_size": self.batch_size, "epochs": self.epochs})
        state = None
        if self.is_chief:
            self._check_data()
            state = self.checkpoint.restore(self.variables())
        start = state["step"] if state else 0
        if self._loop:
            start = self._loop.broadcast(self.variables(), start)
        self._has_state = True
        if start:
            # Its steps are done, also where none is left.
            getattr(self.trainer, "after_step", lambda: None)()
        total = self.epochs * self.steps_per_epoch
        if state:
            before = state.get("epochs") or self.epochs
            grown = "" if before == self.epochs else f" (epochs: {before}, now {self.epochs})"
            _logger.info("resuming %s at step %d of %d%s", self.workdir.path, start, total, grown)
        progress, callbacks = self._callbacks(start)
        try:
            self._fit_from(start, callbacks)
        finally:
            progress.close()
        return start

    def _check_data(self):
        """Checks that the run can go on with the present data."""
        before = (self.checkpoint.read_meta() or {}).get("data")
        if before is None or before == self.data:
            return
        folder = self.workdir.path
        names = before["classes"], self.data["classes"]
        if None not in names and names[0] != names[1]:
            pairs = enumerate(itertools.zip_longest(*names))
            index, (was, now) = next(pair for pair in pairs if pair[1][0] != pair[1][1])
            raise ValueError(
                f"The folder {folder} was started with other classes: class {index} was {was!r} "
                f"and is {now!r} in the present data set. Restore the classes, or use another "
                "folder"
            )
        was, now = before["images"], self.data["images"]
        if before["steps_per_epoch"] != self.steps_per_epoch:
            images = "" if was == now else f": {was} training images became {now}; restore them"
            raise ValueError(
                f"The folder {folder} was started with {before['steps_per_epoch']} steps per "
                f"epoch, and now has {self.steps_per_epoch}{images}, or use another folder"
            )
        if was != now:
            _logger.warning(
                "%s training images became %s since the run of %s was started: the images that "
                "are held out for evaluation may have changed too",
                was,
                now,
                folder,
            )

    def _fit_from(self, start, callbacks):
        epoch, done = divmod(start, self.steps_per_epoch)
        if done:
            # Keras counts whole epochs, so the rest of an interrupted epoch is a separate `fit`.
            self._fit(start, epoch, epoch + 1, self.steps_per_epoch - done, callbacks)
            epoch += 1
        if epoch < self.epochs:
            step = epoch * self.steps_per_epoch
            self._fit(step, epoch, self.epochs, self.steps_per_epoch, callbacks)

    def _fit(self, step, first_epoch, last_epoch, steps, callbacks):
        if self._loop:
            self._loop.fit(
                self.make_dataset,
                step,
                first_epoch=first_epoch,
                last_epoch=last_epoch,
                steps=steps,
                callbacks=callbacks,
            )
            return
        batches = self.make_dataset(step)
        needed = steps * (last_epoch - first_epoch)
        if isinstance(batches, tf.data.Dataset) and 0 <= int(batches.cardinality()) < needed:
            raise ValueError(
                "`make_dataset` must return a data set with a batch for every step, such as one "
                f"that `repeat()` makes. Received: {int(batches.cardinality())} batches for "
                f"{needed} steps"
            )
        self.trainer.fit(
            batches,
            initial_epoch=first_epoch,
            epochs=last_epoch,
            steps_per_epoch=steps,
            callbacks=callbacks,
            shuffle=False,
            verbose=0,
        )

    def _callbacks(self, start):
        progress = ProgressBar(
            self.batch_size,
            self.steps_per_epoch,
            start_step=start,
            epochs=self.epochs,
            names=self.progress_names,
        )
        if not self.is_chief:
            return progress, [TerminateOnNaN(start)]
        evaluation, raise_failure = [], []
        if self.evaluate:
            evaluation = [_Evaluation(self.evaluate, self.evaluate_epochs, self.epochs, start)]
            raise_failure = [
                keras.callbacks.LambdaCallback(on_epoch_end=evaluation[0].raise_failure)
            ]
        # The checkpoint comes after the logs: a step of the checkpoint must be in them already.
        save = SaveRunCheckpoint(
            self.checkpoint,
            self.checkpoint_steps,
            self.variables,
            lambda: {"epochs": self.epochs, "data": self.data},
            start_step=start,
        )
        return progress, [
            TerminateOnNaN(start),
            _WholeEpochs(start, self.steps_per_epoch),
            progress,
            *evaluation,
            CsvLog(self.workdir.log),
            TensorBoardLog(self.workdir.tensorboard, start_step=start),
            save,
            *raise_failure,
        ]


class _WholeEpochs(GlobalStepCallback):
    """Raises an error at the end of an epoch of too few steps, which Keras only warns of."""

    def __init__(self, start_step, steps_per_epoch):
        super().__init__(start_step)
        self._steps_per_epoch = steps_per_epoch

    def on_epoch_end(self, epoch, logs=None):
        missing = (epoch + 1) * self._steps_per_epoch - self.step
        if missing:
            raise ValueError(
                "`make_dataset` must return a data set with a batch for every step. Received: a "
                f"data set that ended {missing} of {self._steps_per_epoch} steps before the end of "
                f"epoch {epoch + 1}"
            )


class _Evaluation(GlobalStepCallback):
    """Adds the accuracy of every path to the logs of each `every`-th epoch and of the last one."""

    def __init__(self, evaluate, every, epochs, start_step):
        super().__init__(start_step)
        self.evaluate = evaluate
        self.every = every
        self.epochs = epochs
        self._failure = None

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.every == 0 or epoch + 1 == self.epochs:
            try:
                logs.update(evaluation_metrics(self.evaluate()))
            except Exception as failure:
                # `raise_failure` raises it when the trained epoch is on the disk.
                self._failure = failure

    def raise_failure(self, epoch, logs=None):
        """Raises the error of the epoch's evaluation, if there was one. Runs after the save."""
        if self._failure is not None:
            raise self._failure


class TerminateOnNaN(GlobalStepCallback):
    """Raises an error as soon as a loss is NaN or infinite.

    Keras's callback of this name watches only the total loss, and ends `fit` without an error.

    Args:
        start_step: Int, the number of steps before this start. Defaults to `0`.
    """

    def on_step_end(self, logs: dict[str, Any]) -> None:
        losses = {name: float(value) for name, value in logs.items() if name.endswith("loss")}
        diverged = {name: value for name, value in losses.items() if not math.isfinite(value)}
        if not diverged:
            return
        # The loss of a sub-network is more informative than the total.
        name = next((name for name in diverged if name != "loss"), "loss")
        rate = logs.get("learning_rate")
        at = "" if rate is None else f" at a learning rate of {float(rate):.3g}"
        value = "NaN" if math.isnan(diverged[name]) else "infinite"
        raise ValueError(
            f"Training diverged: {name} became {value} in step {self.step} (epoch "
            f"{self.epoch + 1}){at}. Try a lower learning rate, a longer warm-up, or float32 "
            "instead of mixed precision, in another folder; the last checkpoint is from before "
            "this step"
        )


class TensorBoardLog(GlobalStepCallback):
    """Writes the metrics for TensorBoard every `every_steps` steps and at the end of each epoch.

    Steps are counted over all epochs. Keras's TensorBoard callback counts batches from 0 again in a
    resumed run.

    Args:
        folder: Path of the folder of the event files.
        every_steps: Int, number of steps between writes. By default only the ends of epochs are
            written.
        start_step: Int, the number of steps before this start. Defaults to `0`.
    """

    def __init__(
        self, folder: str | os.PathLike, every_steps: int | None = None, start_step: int = 0
    ):
        super().__init__(start_step)
        if every_steps is not None and every_steps < 1:
            raise ValueError(f"`every_steps` must be 1 or more. Received: {every_steps}")
        self.folder = str(folder)
        self.every_steps = every_steps
        self._written_step = start_step
        self._writer = None

    def on_train_begin(self, logs=None):
        self._writer = self._writer or tf.summary.create_file_writer(self.folder)

    def on_step_end(self, logs):
        every = self.every_steps
        if every and self.step // every > self._written_step // every:
            self._write(logs)

    def on_epoch_end(self, epoch, logs=None):
        logs = logs or {}
        if self._written_step == self.step:
            # The last step wrote the other metrics already.
            logs = {name: value for name, value in logs.items() if name.startswith("val_")}
        self._write(logs)
        with _os_error_of_a_full_disk(self.folder):
            self._writer.flush()

    def on_train_end(self, logs=None):
        with _os_error_of_a_full_disk(self.folder):
            self._writer.close()
        self._writer = None

    def _write(self, logs):
        self._written_step = self.step
        with _os_error_of_a_full_disk(self.folder), self._writer.as_default(step=self.step):
            for name, value in logs.items():
                tf.summary.scalar(_tag(name), float(value))


@contextlib.contextmanager
def _os_error_of_a_full_disk(folder):
    """Raises an OSError where TensorFlow raises an error of several lines, which names no code."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), folder) from error


def _tag(name):
    if name.startswith("val_"):
        return f"evaluation/{name.removeprefix('val_')}"
    return f"losses/{name}" if name.endswith("loss") else f"training/{name}"
