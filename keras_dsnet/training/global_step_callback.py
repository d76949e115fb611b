"""Base of the callbacks that count training steps over the whole run."""

import keras


class GlobalStepCallback(keras.callbacks.Callback):
    """Calls `on_step_end(logs)` after every step, with `self.step` counted over all epochs.

    Args:
        start_step: int, steps that were done before: those of a checkpoint.
    """

    def __init__(self, start_step=0):
        super().__init__()
        self.step = start_step
        self.epoch = 0
        self._last_batch = -1

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self._last_batch = -1

    def on_train_batch_end(self, batch, logs=None):
        # With `steps_per_execution` a call stands for several steps.
        self.step += batch - self._last_batch
        self._last_batch = batch
        self.on_step_end(logs or {})

    def on_step_end(self, logs):
        """Called after one or more steps; `self.step` of them are done.

        Args:
            logs: dict of the step's losses and metrics; empty where Keras gives none.
        """
