"""Batch-norm statistics of every path, computed anew."""

import itertools

import tensorflow as tf

from keras_dsnet.layers import SwitchableBatchNormalization
from keras_dsnet.models.path import Path


def recalibrate_batch_norm(model, dataset, paths=None, steps=None, verbose=True):
    """Replaces the batch-norm statistics by plain averages over batches (Sec. 4 of the paper).

    Moving averages of a width that was drawn now and then lag behind the weights. Here each path
    that is asked for sees the same batches, and its statistics become the cumulative mean of
    theirs. No other variable changes.

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
    if not any(isinstance(layer, SwitchableBatchNormalization) for layer in model.supernet_layers):
        return 0
    fronts = {}
    for path in resolved:
        fronts.setdefault((path.widths[0], path.statistics[0]), []).append(path)
    run_front, run_tail = _traced(model)
    count = 0
    for batch in _progress(dataset, steps, verbose):
        images = batch[0] if isinstance(batch, (tuple, list)) else batch
        # After i batches the mean is (i * old + new) / (i + 1): a momentum that changes.
        momentum = tf.constant(count / (count + 1.0), tf.float32)
        for group in fronts.values():
            # Paths that share a front share its statistics, which must move once a batch.
            features = run_front(images, momentum, group[0])
            for path in group:
                run_tail(features, tf.constant(path.widths), tf.constant(path.statistics), momentum)
        count += 1
    if not count:
        raise ValueError("`dataset` has no batches to recalibrate batch norm with.")
    return count


def _traced(model):
    """Returns functions for front and rest that update statistics; one trace for every path."""

    @tf.function(autograph=False, reduce_retracing=True)
    def front(images, momentum, path):
        return model.run_sections(images, path, last=0, training=True, momentum=momentum)

    @tf.function(autograph=False, reduce_retracing=True)
    def tail(features, widths, rows, momentum):
        path = Path(tuple(tf.unstack(widths)), tuple(tf.unstack(rows)))
        model.run_sections(features, path, first=1, training=True, momentum=momentum)

    return front, tail


def _progress(dataset, steps, verbose):
    from tqdm import tqdm

    if steps is None:
        steps = len(dataset) if hasattr(dataset, "__len__") else None
    batches = itertools.islice(dataset, steps)
    return tqdm(batches, "recalibrating batch norm", steps, disable=not verbose, unit="batch")
