"""Learning rates of the paper."""

import keras

BASE_BATCH = 512


def scaled_learning_rate(base, batch_size, base_batch=BASE_BATCH):
    """Returns the learning rate for a batch size, by the linear scaling rule.

    Args:
        base: float, the learning rate at `base_batch`: 0.08 in stage I, 0.05 in stage II.
        batch_size: int, images per step, of all replicas.
        base_batch: int.
    """
    return base * batch_size / base_batch


def cosine_schedule(learning_rate, total_steps, warmup_steps=0, final_fraction=0.01):
    """Stage I: linear warm-up from 0, then a cosine to a fraction of the learning rate.

    Args:
        learning_rate: float, at the end of the warm-up.
        total_steps: int, of warm-up and cosine; the rate is constant after it.
        warmup_steps: int.
        final_fraction: float, of `learning_rate` at `total_steps`.

    Returns:
        A `keras.optimizers.schedules.LearningRateSchedule`.

    Raises:
        ValueError: the warm-up leaves no steps for the cosine.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"`warmup_steps` must be from 0 to less than `total_steps`={total_steps}. "
            f"Received: warmup_steps={warmup_steps}"
        )
    return keras.optimizers.schedules.CosineDecay(
        0.0 if warmup_steps else learning_rate,
        decay_steps=total_steps - warmup_steps,
        alpha=final_fraction,
        warmup_target=learning_rate if warmup_steps else None,
        warmup_steps=warmup_steps,
    )


def exponential_schedule(learning_rate, steps_per_epoch, decay_rate=0.9):
    """Stage II: the learning rate is multiplied by `decay_rate` after every epoch.

    Args:
        learning_rate: float, of the first epoch.
        steps_per_epoch: int.
        decay_rate: float.

    Returns:
        A `keras.optimizers.schedules.LearningRateSchedule`.
    """
    return keras.optimizers.schedules.ExponentialDecay(
        learning_rate, steps_per_epoch, decay_rate, staircase=True
    )
