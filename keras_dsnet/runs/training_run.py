"""A training run that survives a kill: fits a trainer, and resumes where it stopped."""

import itertools
import keras
from keras_dsnet.runs.callbacks import CsvLog, evaluation_metrics
from keras_dsnet.runs.callbacks import GlobalStepCallback
from keras_dsnet.runs.callbacks import ProgressBar
from keras_dsnet.runs.run_checkpoint import RunCheckpoint
from keras_dsnet.runs.run_checkpoint import SaveRunCheckpoint
import math
import tensorflow as tf


class TrainingRun:
    """Fits a compiled trainer in a work directory, from its checkpoint where it has one.

    Args:
        trainer: a compiled `SupernetTrainer` or `GateTrainer`.
        workdir: a `WorkDir`.
        make_dataset: function of a start step that gives endless batches from that step on.
        batch_size: int, images per step.
        steps_per_epoch: int.
        epochs: int.
        checkpoint_steps: int: steps between checkpoints; the end of an epoch is always one.
        evaluate: function that gives the rows of `evaluate_paths`; None: no evaluation.
        evaluate_epochs: int: epochs between evaluations.
        progress_names: metrics that the progress bar shows; None: all.
        class_names: the names of the data set's classes, by index, or None.
        num_images: int, how many images are trained on, or None. Data that changed since the run
            began are noticed by these two.
    """

    def __init__(
        self,
        trainer,
        workdir,
        make_dataset,
        *,
        batch_size,
        steps_per_epoch,
        epochs,
        checkpoint_steps=500,
        evaluate=None,
        evaluate_epochs=1,
        progress_names=None,
        class_names=None,
        num_images=None,
    ):
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
        self.checkpoint = RunCheckpoint(workdir.checkpoint)

    def variables(self):
        """The groups of variables that make the state of the run.

        Returns:
            Dict from the group's name to a list of `keras.Variable`.
        """
        trainer = self.trainer
        if not trainer.optimizer.built:
            # The momenta of every replica: they are made where the trainer's variables were.
            with trainer.distribute_strategy.scope():
                trainer.optimizer.build(trainer.optimized_variables)
        return {
            "model": trainer.model.variables,
            "teacher": list(getattr(trainer, "teacher_variables", [])),
            "optimizer": trainer.optimizer.variables,
        }

    def is_complete(self):
        """Whether the last epoch was trained and its state is in the checkpoint."""
        state = self.checkpoint.read_meta()
        return state is not None and state["step"] >= self.epochs * self.steps_per_epoch

    def fit(self):
        """Trains to the last epoch, of a run that has ended to the new last one.

        Returns:
            The step that this start began at: 0, or that of the checkpoint.

        Raises:
            ValueError: the run began with other classes, or with fewer or more steps of an epoch.
            Exception: what `evaluate` raised, after the epoch's state is in the checkpoint.
        """
        self._check_data()
        state = self.checkpoint.restore(self.variables())
        start = state["step"] if state else 0
        total = self.epochs * self.steps_per_epoch
        if state:
            # Of more epochs than it was saved with, a run that had ended goes on.
            before = state.get("epochs")
            grown = f" (epochs: {before}, now {self.epochs})" if before else ""
            grown = grown if before != self.epochs else ""
            print(f"resuming {self.workdir.path} at step {start} of {total}{grown}", flush=True)
        progress, callbacks = self._callbacks(start)
        try:
            self._fit_from(start, callbacks)
        finally:
            progress.close()
        return start

    def _check_data(self):
        """Raises a ValueError where a run cannot go on with the data as they are now."""
        before = (self.checkpoint.read_meta() or {}).get("data")
        if before is None or before == self.data:
            return
        names = before["classes"], self.data["classes"]
        if None not in names and names[0] != names[1]:
            pairs = enumerate(itertools.zip_longest(*names))
            index, (was, now) = next(pair for pair in pairs if pair[1][0] != pair[1][1])
            raise ValueError(
                f"--workdir={self.workdir.path} was started with other classes: class {index} was "
                f"{was!r} and is {now!r} in the data set now: put the classes back, or name "
                "another folder"
            )
        was, now = before["images"], self.data["images"]
        if before["steps_per_epoch"] != self.steps_per_epoch:
            raise ValueError(
                f"--workdir={self.workdir.path} was started with {before['steps_per_epoch']} steps "
                f"per epoch, and now has {self.steps_per_epoch}"
                + ("" if was == now else f": {was} training images became {now}; put them back")
                + ", or name another folder"
            )
        if was != now:
            print(
                f"note: {was} training images became {now} since the run of {self.workdir.path} "
                "was started: what is held out for evaluation may have changed too",
                flush=True,
            )

    def _fit_from(self, start, callbacks):
        epoch, done = divmod(start, self.steps_per_epoch)
        if done:
            # Keras counts whole epochs: the torn one is a fit of its own.
            self._fit(start, epoch, epoch + 1, self.steps_per_epoch - done, callbacks)
            epoch += 1
        if epoch < self.epochs:
            step = epoch * self.steps_per_epoch
            self._fit(step, epoch, self.epochs, self.steps_per_epoch, callbacks)

    def _fit(self, step, first_epoch, last_epoch, steps, callbacks):
        self.trainer.fit(
            self.make_dataset(step),
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
        evaluation, raise_failure = [], []
        if self.evaluate:
            evaluation = [_Evaluation(self.evaluate, self.evaluate_epochs, self.epochs, start)]
            raise_failure = [
                keras.callbacks.LambdaCallback(on_epoch_end=evaluation[0].raise_failure)
            ]
        # The checkpoint comes after the logs: what it says is done must be on the disk by then.
        save = SaveRunCheckpoint(
            self.checkpoint,
            self.checkpoint_steps,
            self.variables,
            lambda: {"epochs": self.epochs, "data": self.data},
            start_step=start,
        )
        return progress, [
            TerminateOnNaN(start),
            progress,
            *evaluation,
            CsvLog(self.workdir.log),
            TensorBoardLog(self.workdir.tensorboard, start_step=start),
            save,
            *raise_failure,
        ]


class _Evaluation(GlobalStepCallback):
    """Adds the accuracy of every path to the logs of each `every`-th epoch and of the last."""

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
                # Not before the epoch that was trained is on the disk.
                self._failure = failure

    def raise_failure(self, epoch, logs=None):
        """Raises the error of the epoch's evaluation, if there was one."""
        if self._failure is not None:
            raise self._failure


class TerminateOnNaN(GlobalStepCallback):
    """Raises as soon as a loss is NaN or infinite, and says which, when and what to try.

    Keras's callback of this name watches the total alone, and ends `fit` as if all were well.

    Args:
        start_step: int, steps that were done before.
    """

    def on_step_end(self, logs):
        losses = {name: float(value) for name, value in logs.items() if name.endswith("loss")}
        diverged = {name: value for name, value in losses.items() if not math.isfinite(value)}
        if not diverged:
            return
        # The total says less than the net whose loss made it so.
        name = next((name for name in diverged if name != "loss"), "loss")
        rate = logs.get("learning_rate")
        at = "" if rate is None else f" at a learning rate of {float(rate):.3g}"
        what = "NaN" if math.isnan(diverged[name]) else "infinite"
        raise ValueError(
            f"Training diverged: {name} became {what} in step {self.step} (epoch "
            f"{self.epoch + 1}){at}. Try, in another workdir, a lower learning rate, a longer "
            "warm-up, or float32 where this is mixed precision; the last checkpoint is from before"
        )


class TensorBoardLog(GlobalStepCallback):
    """Writes the metrics every `every_steps` global steps and at the end of each epoch.

    Keras's TensorBoard callback counts batches from 0 again in a resumed run.

    Args:
        folder: of the event files.
        every_steps: int; None: at the ends of epochs alone.
        start_step: int, steps that were done before.
    """

    def __init__(self, folder, every_steps=None, start_step=0):
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
            # The step wrote the rest already.
            logs = {name: value for name, value in logs.items() if name.startswith("val_")}
        self._write(logs)
        self._writer.flush()

    def on_train_end(self, logs=None):
        self._writer.close()
        self._writer = None

    def _write(self, logs):
        self._written_step = self.step
        with self._writer.as_default(step=self.step):
            for name, value in logs.items():
                tf.summary.scalar(_tag(name), float(value))


def _tag(name):
    if name.startswith("val_"):
        return f"evaluation/{name.removeprefix('val_')}"
    return f"losses/{name}" if name.endswith("loss") else f"training/{name}"
