"""Accuracy and cost of every sub-network and of the dynamic network."""

import numpy as np
import tensorflow as tf


def evaluate_paths(model, dataset, paths=None, dynamic=None, input_shape=None):
    """Measures top-1 and top-5 accuracy against multiply-adds.

    Args:
        model: a `DynamicSlimmableNetwork` with a classifier.
        dataset: finite iterable of `(images, labels)`: `[batch, height, width, 3]` and int
            `[batch]`.
        paths: the static paths to measure; None: every width, at all gates alike.
        dynamic: bool: measure the routed network too; None: where the gates are trained.
        input_shape: `(height, width, 3)` that MAdds are counted at; None: the model's.

    Returns:
        List of dicts: "path", "rho", "madds", "top1", "top5" (accuracies 0..1; "top5" only with
        more than five classes), a row per path. The last row's path is "dynamic": it has the mean
        of rho, the mean MAdds, slimming heads counted, and "shares": for each gate a dict from
        width to the share of the images that took it; with several gates also "path_shares", a
        dict from paths such as "0-1-2-3" to shares, the most frequent first.

    Raises:
        ValueError: on a path that the model does not have, or an empty data set.
    """
    paths = list(range(model.num_widths) if paths is None else paths)
    resolved = [model.resolve_path(path) for path in paths]
    dynamic = model.gates_trained if dynamic is None else dynamic
    # Before the data, so that an open input shape is told at once.
    costs = [model.madds(path, input_shape) for path in resolved]
    hits, routed, widths, count = np.zeros((len(paths), 2), "int64"), np.zeros(2, "int64"), [], 0
    for images, labels in dataset:
        fronts = {}
        for index, path in enumerate(resolved):
            front = (path.widths[0], path.statistics[0])
            if front not in fronts:
                fronts[front] = model.run_any_width(0, images, path)
            hits[index] += _hits(model.run_any_width(1, fronts[front], path), labels)
        if dynamic:
            logits, chosen = model.run_dynamic(images)
            routed += _hits(logits, labels)
            widths.append(chosen.numpy())
        count += int(tf.shape(labels)[0])
    if not count:
        raise ValueError("`dataset` has no images to evaluate.")
    rows = [
        _row(path, _rho(model, p.gates), cost, hit / count, model.classes)
        for path, p, cost, hit in zip(paths, resolved, costs, hits)
    ]
    if dynamic:
        rows.append(_dynamic_row(model, np.concatenate(widths), routed / count, input_shape))
    return rows


def _hits(logits, labels):
    logits, labels = tf.cast(logits, tf.float32), tf.cast(labels, tf.int32)
    top1 = tf.argmax(logits, axis=1, output_type=tf.int32) == labels
    top5 = tf.math.in_top_k(labels, logits, min(5, logits.shape[1]))
    return np.array([np.sum(top1), np.sum(top5)])


def _rho(model, widths):
    return float(np.mean([model.spec.ratios[width] for width in widths]))


def _row(path, rho, madds, accuracy, classes):
    row = {"path": path, "rho": rho, "madds": madds, "top1": float(accuracy[0])}
    return {**row, "top5": float(accuracy[1])} if classes > 5 else row


def _dynamic_row(model, widths, accuracy, input_shape):
    taken, counts = np.unique(widths, axis=0, return_counts=True)
    taken = [tuple(map(int, path)) for path in taken]
    shares = counts / counts.sum()
    madds = [model.madds(path, input_shape) for path in taken]
    madds = float(np.dot(shares, madds)) + model.costs(taken[0], input_shape).slimming
    rho = float(np.dot(shares, [_rho(model, path) for path in taken]))
    row = _row("dynamic", rho, madds, accuracy, model.classes)
    row["shares"] = [
        {int(width): float(np.mean(gate == width)) for width in np.unique(gate)}
        for gate in widths.T
    ]
    if widths.shape[1] > 1:
        order = np.argsort(-counts, kind="stable")
        row["path_shares"] = {"-".join(map(str, taken[i])): float(shares[i]) for i in order}
    return row
