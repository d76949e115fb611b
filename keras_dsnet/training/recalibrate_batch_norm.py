"""Batch-norm statistics of every path, computed anew."""

import contextlib
import itertools

import tensorflow as tf

from keras_dsnet.layers import SwitchableBatchNormalization
from keras_dsnet.models.path import Path
from keras_dsnet.models.sliced_executor import SlicedExecutor


def recalibrate_batch_norm(model, dataset, paths=None, steps=None, verbose=True):
    """Replaces the batch-norm statistics by plain averages over batches (Sec. 4 of the paper).

    Moving averages of a width that was drawn now and then lag behind the weights. Here each path
    that is asked for sees the same batches, and its statistics become the cumulative mean of
    theirs, whether the network is trainable or frozen. No other variable changes.

    Args:
        model: a `DynamicSlimmableNetwork`.
        dataset: iterable of batches: images `[batch, height, width, 3]`, or `(images, labels)`.
        paths: what to recalibrate; None: every width, at all gates alike. "largest" is one of its
            own.
        steps: int, how many batches; None: all of a finite data set.
        verbose: bool: show a progress bar.

    Returns:
        The number of batches that the statistics are means of; 0, and nothing is run, for a network
        without batch norm, such as DS-ResNet.

    Raises:
        ValueError: on a path that the model does not have, or a data set without batches.
    """
    resolved = [
        model.resolve_path(p) for p in (range(model.num_widths) if paths is None else paths)
    ]
    norms = [
        layer for layer in model.supernet_layers if isinstance(layer, SwitchableBatchNormalization)
    ]
    if not norms:
        return 0
    with _trainable(norms):
        count = _run(model, resolved, _progress(dataset, steps, verbose))
    if not count:
        raise ValueError("`dataset` has no batches to recalibrate batch norm with.")
    return count


def _run(model, paths, batches):
    """Moves the statistics of `paths` to their means over the batches and counts these."""
    fronts = {}
    for path in paths:
        fronts.setdefault((path.widths[0], path.statistics[0]), []).append(path)
    run_front, run_tail = _traced(model)
    count = 0
    for batch in batches:
        images = batch[0] if isinstance(batch, (tuple, list)) else batch
        # After i batches the mean is (i * old + new) / (i + 1): a momentum that changes.
        momentum = tf.constant(count / (count + 1.0), tf.float32)
        for group in fronts.values():
            # Paths that share a front share its statistics, which must move once a batch.
            features = run_front(images, momentum, group[0])
            for path in group:
                run_tail(features, tf.constant(path.widths), tf.constant(path.statistics), momentum)
        count += 1
    return count


def _traced(model):
    """Returns functions for front and rest that update statistics; one trace for every path."""

    @tf.function(autograph=False, reduce_retracing=True)
    def front(images, momentum, path):
        executor = _StatisticsExecutor(path, training=True, momentum=momentum)
        return model.run_sections(images, path, last=0, executor=executor)

    @tf.function(autograph=False, reduce_retracing=True)
    def tail(features, widths, rows, momentum):
        path = Path(tuple(tf.unstack(widths)), tuple(tf.unstack(rows)))
        executor = _StatisticsExecutor(path, training=True, momentum=momentum)
        model.run_sections(features, path, first=1, executor=executor)

    return front, tail


class _StatisticsExecutor(SlicedExecutor):
    def dropout(self, step, x):
        # It stands behind every norm: its noise would change its seed and no statistic.
        return x


@contextlib.contextmanager
def _trainable(norms):
    """Batch norm that is frozen keeps its statistics: it is trainable in here, and frozen after."""
    frozen = [norm for norm in norms if not norm.trainable]
    for norm in frozen:
        norm.trainable = True
    try:
        yield
    finally:
        for norm in frozen:
            norm.trainable = False


def _progress(dataset, steps, verbose):
    from tqdm import tqdm

    if steps is None:
        steps = len(dataset) if hasattr(dataset, "__len__") else None
    batches = itertools.islice(dataset, steps)
    return tqdm(batches, "recalibrating batch norm", steps, disable=not verbose, unit="batch")
