"""Metrics for TensorBoard, over the global steps of a run."""

import tensorflow as tf

from keras_dsnet.training.global_step_callback import GlobalStepCallback


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
