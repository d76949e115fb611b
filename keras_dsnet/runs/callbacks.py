"""The callbacks of a run that count its steps: their base class, with the progress bar."""

import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

import keras


class GlobalStepCallback(keras.callbacks.Callback):
    """Calls `on_step_end(logs)` after every step, with `self.step` counted over all epochs.

    Args:
        start_step: Int, the number of steps before this start, such as those of a checkpoint.
            Defaults to `0`.
    """

    def __init__(self, start_step: int = 0):
        super().__init__()
        self.step = start_step
        self.epoch = 0
        self._last_batch = -1

    @property
    def is_end_of_epoch(self) -> bool:
        """Whether the epoch has no further step. False if Keras does not know its steps."""
        steps = (self.params or {}).get("steps")
        return steps is not None and self._last_batch + 1 >= steps

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self._last_batch = -1

    def on_train_batch_end(self, batch, logs=None):
        # With `steps_per_execution` one call follows several steps.
        self.step += batch - self._last_batch
        self._last_batch = batch
        self.on_step_end(logs or {})

    def on_step_end(self, logs: dict[str, Any]) -> None:
        """Runs after one or more steps. `self.step` is the number of steps so far.

        Args:
            logs: Dict of the step's losses and metrics. It is empty if Keras passes none.
        """


class ProgressBar(GlobalStepCallback):
    """Shows one bar per epoch: the loss of every sub-network, learning rate and images per second.

    If the stream is not a terminal, it writes one line per epoch, and one every `line_minutes`
    within the epoch. Images per second are the mean over the epoch without its first step, which
    can include the tracing.

    Args:
        batch_size: Int, images per step, over all replicas.
        steps_per_epoch: Int, steps per epoch.
        start_step: Int, the number of steps before this start. The first bar starts within its
            epoch. Defaults to `0`.
        epochs: Int, number of epochs to show after the number of the epoch. Defaults to the epochs
            of this call of `fit`.
        names: List of the metrics to show. Defaults to all except those of evaluation, which begin
            with "val_".
        line_minutes: Float, minutes between lines. Defaults to `1.0`.
        stream: Text stream to write to. Defaults to `sys.stdout`.
    """

    def __init__(
        self,
        batch_size: int,
        steps_per_epoch: int,
        start_step: int = 0,
        epochs: int | None = None,
        names: Sequence[str] | None = None,
        line_minutes: float = 1.0,
        stream: TextIO | None = None,
    ):
        super().__init__(start_step)
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.epochs = epochs
        self.names = names
        self.line_minutes = line_minutes
        self._stream = stream or sys.stdout
        self._bar = None

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch)
        self._done = self.step % self.steps_per_epoch
        self._epoch_start = self.step
        self._clock_start = None
        self._line_time = time.monotonic()
        if self._stream.isatty():
            self._bar = self._make_bar()

    def _make_bar(self):
        # Imported here to keep `import keras_dsnet` fast.
        from tqdm import tqdm

        return tqdm(
            total=self.steps_per_epoch,
            initial=self._done,
            desc=self._title(),
            file=self._stream,
            dynamic_ncols=True,
            bar_format="{desc} |{bar:8}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )

    def on_step_end(self, logs):
        steps = self.step - self._epoch_start
        now = time.monotonic()
        if self._clock_start is None:
            self._clock_start, self._clock_step = now, self.step
        # The speed does not include the time of an evaluation, after which a line can be written.
        self._clock_end = now
        if self._bar is not None:
            self._bar.set_postfix_str(self._describe(logs), refresh=False)
            self._bar.update(self._done + steps - self._bar.n)
        elif now - self._line_time >= 60 * self.line_minutes:
            self._line_time = now
            self._print(self._done + steps, logs)

    def on_epoch_end(self, epoch, logs=None):
        done = self._done + self.step - self._epoch_start
        if self._bar is None:
            self._print(done, logs or {})
        else:
            self._bar.set_postfix_str(self._describe(logs or {}))
        self.close()

    def on_train_end(self, logs=None):
        self.close()

    def close(self) -> None:
        """Ends the bar and its line, also after an exception."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _title(self):
        epochs = self.epochs or (self.params or {}).get("epochs")
        return f"epoch {self.epoch + 1}" + (f"/{epochs}" if epochs else "")

    def _print(self, done, logs):
        steps = f"step {done}/{self.steps_per_epoch}"
        print(self._title(), steps, self._describe(logs), sep=", ", file=self._stream, flush=True)

    def _describe(self, logs):
        names = self.names or [name for name in logs if not name.startswith("val_")]
        values = {name: float(logs[name]) for name in names if name in logs}
        # The short and important parts come first, because a narrow terminal cuts the end.
        parts = [self._speed()]
        if "learning_rate" in values:
            parts.append(f"lr {values.pop('learning_rate'):.3g}")
        nets = [name for name in values if name.endswith("_loss")]
        losses = [f"{name.removesuffix('_loss')} {values.pop(name):.3f}" for name in nets]
        total = f"loss {values.pop('loss'):.3f}" if "loss" in values else ""
        parts.append(f"{total} ({', '.join(losses)})".lstrip() if losses else total)
        parts += [f"{name} {_number(value)}" for name, value in values.items()]
        return ", ".join(part for part in parts if part)

    def _speed(self):
        if self._clock_start is None or self.step == self._clock_step:
            return ""
        images = (self.step - self._clock_step) * self.batch_size
        seconds = max(self._clock_end - self._clock_start, 1e-9)
        return f"{images / seconds:,.0f} images/s"


def _number(value):
    return f"{value / 1e6:.1f}M" if abs(value) >= 1e6 else f"{value:.4g}"
