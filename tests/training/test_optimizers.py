"""The learning rates of the paper, at the steps where they change."""

import keras
import numpy as np
import pytest

from keras_dsnet.training.optimizers import (
    cosine_schedule,
    exponential_schedule,
    scaled_learning_rate,
    step_schedule,
)


def test_the_cosine_ends_at_its_fraction_and_stays_there():
    schedule = cosine_schedule(0.08, total_steps=1000)
    rates = [float(schedule(step)) for step in (0, 500, 1000, 5000)]
    np.testing.assert_allclose(rates, [0.08, 0.08 * 0.505, 0.0008, 0.0008], rtol=1e-5)


def test_the_warm_up_is_linear_and_part_of_the_steps():
    schedule = cosine_schedule(0.08, total_steps=1000, warmup_steps=100, final_fraction=0.1)
    rates = [float(schedule(step)) for step in (0, 25, 100, 550, 1000, 2000)]
    np.testing.assert_allclose(rates, [0, 0.02, 0.08, 0.044, 0.008, 0.008], rtol=1e-5)


@pytest.mark.parametrize("warmup_steps", [-1, 10, 11])
def test_a_warm_up_without_a_cosine_is_refused(warmup_steps):
    with pytest.raises(ValueError, match=f"total_steps`=10. Received: warmup_steps={warmup_steps}"):
        cosine_schedule(0.08, total_steps=10, warmup_steps=warmup_steps)


def test_the_gates_rate_falls_after_each_epoch_alone():
    schedule = exponential_schedule(0.05, steps_per_epoch=782)
    rates = [float(schedule(step)) for step in (0, 781, 782, 782 * 9)]
    np.testing.assert_allclose(rates, [0.05, 0.05, 0.045, 0.05 * 0.9**9], rtol=1e-5)


def test_schedules_are_saved_with_an_optimizer():
    for schedule in (cosine_schedule(0.08, 10, 2), exponential_schedule(0.05, 3)):
        optimizer = keras.optimizers.SGD(schedule)
        copy = keras.optimizers.SGD.from_config(optimizer.get_config())
        copy.iterations.assign(5)
        assert float(copy.learning_rate) == pytest.approx(float(schedule(5)))


def test_the_rate_grows_with_the_batch():
    assert scaled_learning_rate(0.08, 512) == 0.08
    assert scaled_learning_rate(0.08, 64) == pytest.approx(0.01)
    assert scaled_learning_rate(0.1, 128, base_batch=256) == pytest.approx(0.05)


def test_the_schedule_of_detectors_falls_at_its_steps():
    schedule = step_schedule(0.004, [200, 250], warmup_steps=10)
    steps = (0, 5, 10, 199, 200, 249, 250, 300)
    rates = [0, 0.002, 0.004, 0.004, 0.0004, 0.0004, 0.00004, 0.00004]
    np.testing.assert_allclose([float(schedule(s)) for s in steps], rates, rtol=1e-5)
    copy = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(schedule))
    np.testing.assert_allclose([float(copy(s)) for s in steps], rates, rtol=1e-5)
    with pytest.raises(ValueError, match="`boundaries` must ascend"):
        step_schedule(0.004, [250, 200])
