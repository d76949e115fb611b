"""The threshold of a detector's routing by confidence, from a budget of multiply-adds."""

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np

from keras_dsnet.detection.confidence import CONFIDENCES
from keras_dsnet.detection.fssd import FSSD
from keras_dsnet.models.costs import dynamic_madds
from keras_dsnet.utils.argument_checks import check_number
from keras_dsnet.utils.batches import check_num_batches, refuse_endless


def calibrate_detector(
    detector: Any, dataset: Iterable, max_madds: float, *, num_batches: int | None = None
) -> dict[str, float]:
    """Chooses the threshold of routing by confidence for a budget, and sets it.

    The first of the two `confidence_steps` runs on all images, and those of the lowest
    `detector.confidence` go on to the second, as many as the budget allows. Boxes are not needed.
    The images must not have trained the detector, which is more sure of those.

    Args:
        detector: `FSSD` with two `confidence_steps`, trained.
        dataset: Batches of images, float32 `[batch, height, width, 3]`, or of `(images, target)`.
        max_madds: Number, the largest mean of the multiply-adds of an image.
        num_batches: Int, the maximum number of batches to read. Defaults to the whole data set.

    Returns:
        Dict of `"threshold"`; `"share"`, the share of the images that go on; and `"madds"`, the
        mean of all that runs for an image.

    Raises:
        ValueError: If the data set is empty or never ends, the detector has not two steps, or the
            first step costs more than the budget.

    Example:

    ```python
    import numpy as np
    from keras_dsnet.detection import FSSD, calibrate_detector
    from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, MobileNetStage

    stages = MobileNetStage(1, 2, (8, 12)), MobileNetStage(1, 2, (8, 12, 16), gated=True)
    spec = MobileNetSpec(stem=(8, 12), stages=stages)
    backbone = DynamicSlimmableNetwork(spec, input_shape=(32, 32, 3), include_top=False)
    detector = FSSD(backbone, classes=2, channels=8, pyramid=(16,), scales=(0.3, 0.5))
    images = np.random.normal(size=(4, 32, 32, 3)).astype("float32")
    budget = detector.madds("slimmest") + 0.5 * detector.madds("widest")

    row = calibrate_detector(detector, [images], budget)
    detector.routing = "confidence"
    assert row["madds"] <= budget and detector.thresholds == (row["threshold"],)
    ```
    """
    if not isinstance(detector, FSSD):
        raise ValueError(
            "`detector` must be a detector such as keras_dsnet.detection.FSSD. "
            f"Received: a {type(detector).__name__}"
        )
    check_num_batches(num_batches)
    first, both = confidence_costs(detector, max_madds)
    refuse_endless(dataset, num_batches)
    step = detector.confidence_steps[0]
    read, values = CONFIDENCES[detector.confidence], []
    for batch in itertools.islice(dataset, num_batches):
        images = batch[0] if isinstance(batch, (tuple, list)) else batch
        values.append(np.asarray(read(detector(images, path=step)["scores"])))
    if not values:
        raise ValueError("`dataset` must have one image or more. Received: none")
    threshold, share = _threshold(np.concatenate(values), (max_madds - first) / (both - first))
    detector.thresholds = (threshold,)
    return {"threshold": threshold, "share": share, "madds": first + share * (both - first)}


def confidence_costs(detector: Any, max_madds: float) -> tuple[int, int]:
    """Returns the multiply-adds of an image that stays at the first step, and of one that goes on.

    Args:
        detector: `FSSD`.
        max_madds: Number, the largest mean of the multiply-adds of an image.

    Raises:
        ValueError: If the detector has not two steps, or the first one costs more than the budget.
    """
    steps = detector.confidence_steps
    if len(steps) != 2:
        raise ValueError(
            f"`detector.confidence_steps` must be two widths. Received: confidence_steps={steps}"
        )
    check_number("max_madds", max_madds, "positive", lambda madds: madds > 0)
    starts, ends = ([[width] * detector.num_gates for width in widths] for widths in _pairs(steps))
    first, both = dynamic_madds(detector, np.array(starts), np.array(ends), steps, False).tolist()
    if max_madds < first:
        raise ValueError(
            f"`max_madds` must be {first} or more, the multiply-adds of width {steps[0]}. "
            f"Received: max_madds={max_madds}"
        )
    return first, both


def _pairs(steps):
    """Returns where images start and end: at the first step, or at the first and the last."""
    return (steps[0], steps[0]), (steps[0], steps[1])


def _threshold(confidence, share):
    """Returns the threshold at which at most a share of the images goes on, and their share."""
    values = np.sort(confidence)
    count = min(len(values), int(share * len(values)))
    if count == len(values):
        return 1.0, 1.0
    # Images of the same confidence stay together.
    count = int(np.searchsorted(values, values[count]))
    if not count:
        return 0.0, 0.0
    low, high = float(values[count - 1]), float(values[count])
    middle = float(np.float32((low + high) / 2))
    return (middle if middle < high else low), count / len(values)
