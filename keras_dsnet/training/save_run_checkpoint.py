"""Saves the state of a run while it trains."""

from keras_dsnet.training.global_step_callback import GlobalStepCallback


class SaveRunCheckpoint(GlobalStepCallback):
    """Saves every `every_steps` global steps, and at the end of each epoch and of the run.

    Put it last among the callbacks: what the others write of an epoch is then on the disk before
    the state from which no resumed run would write it again.

    Args:
        checkpoint: a `RunCheckpoint`.
        every_steps: int; None: at the ends of epochs alone.
        get_variables: function without arguments that returns the groups to save.
        get_meta: function without arguments that returns a dict for JSON; None: nothing.
        start_step: int, steps that were done before.
    """

    def __init__(self, checkpoint, every_steps, get_variables, get_meta=None, start_step=0):
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
        if every and self.step // every > self._saved_step // every:
            self._save()

    def on_epoch_end(self, epoch, logs=None):
        self._save()

    def on_train_end(self, logs=None):
        self._save()

    def _save(self):
        if self.step != self._saved_step:
            self.checkpoint.save(self.get_variables(), self.step, self.get_meta())
            self._saved_step = self.step
