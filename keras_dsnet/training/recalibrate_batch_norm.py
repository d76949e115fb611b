"""Recalibration: new batch-norm statistics for every path after training (Section 4)."""

import collections
import contextlib
from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from keras_dsnet.layers import SwitchableBatchNormalization
from keras_dsnet.models.executors import SlicedExecutor
from keras_dsnet.models.path import Path
from keras_dsnet.training.evaluation import resolve_paths
from keras_dsnet.training.network_trainer import check_network
from keras_dsnet.utils.batches import batch_count, check_num_batches, image_batches


def recalibrate_batch_norm(
    model: keras.Model,
    dataset: Any,
    paths: Iterable | None = None,
    steps: int | None = None,
    verbose: bool = True,
) -> int:
    """Replaces the batch-norm statistics by plain averages over batches (Sec. 4 of the paper).

    The moving averages of a width that training draws rarely lag its weights. Here each path sees
    the same batches, and its statistics become the cumulative mean of the statistics of these
    batches, whether the network is trainable or frozen. No other variable changes.

    Args:
        model: `DynamicSlimmableNetwork`, or a detector around one such as
            `keras_dsnet.detection.FSSD`.
        dataset: Batches of images, float `[batch, height, width, 3]`, or of `(images, labels)`: a
            `tf.data.Dataset`, `keras.utils.PyDataset`, generator or other iterable, a function that
            returns one, or an array of all images. Labels are ignored.
        paths: List of the paths to recalibrate. Defaults to every width, used at all gates. The
            path "largest" has separate statistics.
        steps: Int, the maximum number of batches to read. Defaults to the whole data set.
        verbose: Boolean, whether to show a progress bar. Defaults to `True`.

    Returns:
        Int, the number of batches in the means. It is 0 for a network without batch norm, such as
        DS-ResNet, for which nothing runs.

    Raises:
        ValueError: If the model does not have a path, a batch does not fit the model, the data set
            has no batches, or it is endless and `steps` is not given.

    Example:

    ```python
    import numpy as np
    from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, MobileNetStage
    from keras_dsnet.training import recalibrate_batch_norm

    stages = MobileNetStage(1, 2, (8, 12)), MobileNetStage(1, 2, (8, 12, 16), gated=True)
    spec = MobileNetSpec(stem=(8, 12), stages=stages)
    model = DynamicSlimmableNetwork(spec, input_shape=(32, 32, 3), classes=10)
    images = np.random.normal(size=(16, 32, 32, 3)).astype("float32")

    recalibrate_batch_norm(model, images, paths=["slimmest", "widest"])
    ```
    """
    # A detector runs its sections as its backbone does.
    check_network(getattr(model, "backbone", model), with_classifier=False)
    _, resolved = resolve_paths(model, paths)
    check_num_batches(steps, "steps")
    norms = [
        layer for layer in model.supernet_layers if isinstance(layer, SwitchableBatchNormalization)
    ]
    if not norms:
        return 0
    batches = image_batches(dataset, model.input_shape[1:], steps, count_name="steps")
    with (
        _trainable(norms),
        _restored_on_error(norms),
        _progress(batch_count(dataset, steps), verbose) as progress,
    ):
        count = 0
        for count, _ in enumerate(_run(model, resolved, batches), start=1):
            # Reading a value waits until the device has computed the batch.
            norms[-1].moving_mean.numpy()
            progress(count - 1)
        # The bar shows the last batch when the data set is closed too.
        progress(count)
    if not count:
        raise ValueError("`dataset` has no batches to recalibrate batch norm with.")
    return count


def _run(model, paths, batches):
    """Moves the statistics of `paths` to their means over the batches, and yields after each one.

    A section runs once per batch for all paths that are the same up to it. Behind several gates,
    paths that differ before a section can share its statistics, which are the mean over all.
    """
    run_section = _traced(model)
    updates = collections.Counter()
    for images in batches:
        outputs = {}
        for path in paths:
            features = images
            for section in range(model.num_gates + 1):
                begin = path.widths[: section + 1], path.statistics[: section + 1]
                if begin not in outputs:
                    row = section, path.statistics[section]
                    # The mean of n + 1 values is (n * mean of n + new) / (n + 1).
                    momentum = tf.constant(updates[row] / (updates[row] + 1.0), tf.float32)
                    outputs[begin] = run_section(section, features, path, momentum)
                    updates[row] += 1
                features = outputs[begin]
        yield


def _traced(model):
    """Returns a function that runs a section and updates its statistics.

    Behind the first gate one trace of a section serves all paths.
    """

    @tf.function(autograph=False, reduce_retracing=True)
    def front(images, momentum, path):
        executor = _StatisticsExecutor(path, training=True, momentum=momentum)
        return model.run_sections(images, path, last=0, executor=executor)

    @tf.function(autograph=False, reduce_retracing=True)
    def tail(features, widths, rows, momentum, section):
        path = Path(tuple(tf.unstack(widths)), tuple(tf.unstack(rows)))
        executor = _StatisticsExecutor(path, training=True, momentum=momentum)
        return model.run_sections(features, path, section, section, executor)

    def run_section(section, features, path, momentum):
        if section == 0:
            return front(features, momentum, path)
        widths, rows = tf.constant(path.widths), tf.constant(path.statistics)
        return tail(features, widths, rows, momentum, section)

    return run_section


class _StatisticsExecutor(SlicedExecutor):
    def dropout(self, step, x):
        # Dropout comes after every norm: its noise would change its seed and no statistic.
        return x


@contextlib.contextmanager
def _trainable(norms):
    """Makes frozen norms trainable inside the context: frozen ones would keep their statistics."""
    frozen = [norm for norm in norms if not norm.trainable]
    for norm in frozen:
        norm.trainable = True
    try:
        yield
    finally:
        for norm in frozen:
            norm.trainable = False


@contextlib.contextmanager
def _restored_on_error(norms):
    """Restores the statistics after an error, because the means of few batches are useless."""
    statistics = [table for norm in norms for table in (norm.moving_mean, norm.moving_variance)]
    before = [table.numpy() for table in statistics]
    try:
        yield
    except BaseException:
        for table, values in zip(statistics, before):
            table.assign(values)
        raise


@contextlib.contextmanager
def _progress(count, verbose):
    """Yields a function of the number of finished batches, which moves a progress bar."""
    from tqdm import tqdm

    with tqdm(None, "recalibrating batch norm", count, disable=not verbose, unit="batch") as bar:
        yield lambda done: bar.update(done - bar.n)
