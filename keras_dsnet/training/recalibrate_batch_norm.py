"""Batch-norm statistics of every path, computed anew."""

import contextlib

import tensorflow as tf

from keras_dsnet.layers import SwitchableBatchNormalization
from keras_dsnet.models.executors import SlicedExecutor
from keras_dsnet.models.path import Path
from keras_dsnet.training.arguments import check_network, resolve_paths
from keras_dsnet.utils.batches import batch_count, check_steps, image_batches


def recalibrate_batch_norm(model, dataset, paths=None, steps=None, verbose=True):
    """Replaces the batch-norm statistics by plain averages over batches (Sec. 4 of the paper).

    Moving averages of a width that was drawn now and then lag behind the weights. Here each path
    that is asked for sees the same batches, and its statistics become the cumulative mean of
    theirs, whether the network is trainable or frozen. No other variable changes.

    Args:
        model: a `DynamicSlimmableNetwork`.
        dataset: batches of images, float `[batch, height, width, 3]`, or of `(images, labels)`: a
            `tf.data.Dataset`, `keras.utils.PyDataset`, generator or other iterable, a function that
            returns one, or an array of all images. Labels are left out.
        paths: list of what to recalibrate; None: every width, at all gates alike. "largest" is one
            of its own.
        steps: int, how many batches at most; None: all of a data set that ends.
        verbose: bool: show a progress bar.

    Returns:
        The number of batches that the statistics are means of; 0, and nothing is run, for a network
        without batch norm, such as DS-ResNet.

    Raises:
        ValueError: on a path that the model does not have, a batch that does not fit it, a data set
            without batches, or an endless one without `steps`.
    """
    check_network(model, with_classifier=False)
    _, resolved = resolve_paths(model, paths)
    check_steps(steps)
    norms = [
        layer for layer in model.supernet_layers if isinstance(layer, SwitchableBatchNormalization)
    ]
    if not norms:
        return 0
    batches = image_batches(dataset, model.input_shape[1:], steps)
    with (
        _trainable(norms),
        _restored_on_error(norms),
        _progress(batch_count(dataset, steps), verbose) as progress,
    ):
        count = 0
        for count, _ in enumerate(_run(model, resolved, batches), start=1):
            # Devices compute on while Python counts: a value waits for them.
            norms[-1].moving_mean.numpy()
            progress(count - 1)
        # The last batch counts when the data set is closed too.
        progress(count)
    if not count:
        raise ValueError("`dataset` has no batches to recalibrate batch norm with.")
    return count


def _run(model, paths, batches):
    """Moves the statistics of `paths` to their means over the batches, and yields after each."""
    fronts = {}
    for path in paths:
        fronts.setdefault((path.widths[0], path.statistics[0]), []).append(path)
    run_front, run_tail = _traced(model)
    for count, images in enumerate(batches):
        # After i batches the mean is (i * old + new) / (i + 1): a momentum that changes.
        momentum = tf.constant(count / (count + 1.0), tf.float32)
        for group in fronts.values():
            # Paths that share a front share its statistics, which must move once a batch.
            features = run_front(images, momentum, group[0])
            for path in group:
                run_tail(features, tf.constant(path.widths), tf.constant(path.statistics), momentum)
        yield


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


@contextlib.contextmanager
def _restored_on_error(norms):
    """Gives the statistics back where a batch does not fit: means of few batches are of no use."""
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
    """Gives a function of the number of batches done, which moves a bar."""
    from tqdm import tqdm

    with tqdm(None, "recalibrating batch norm", count, disable=not verbose, unit="batch") as bar:
        yield lambda done: bar.update(done - bar.n)
