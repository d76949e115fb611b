"""Ends a run whose loss is no number any more."""

import math

from keras_dsnet.training.global_step_callback import GlobalStepCallback


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
