"""Accuracy, cost and gate choices of a trained network."""

import collections

import numpy as np
import tensorflow as tf

from keras_dsnet.training.arguments import check_network, resolve_paths
from keras_dsnet.utils.argument_checks import check_bool
from keras_dsnet.utils.batch_checks import class_numbers
from keras_dsnet.utils.batches import batch_count, labelled_batches

# Names of the rows that belong to no path of the routes: the routed network, and the widest path
# after the wide front.
OFF_ROUTE_ROWS = ("dynamic", "largest")


def evaluate_paths(
    model, dataset, paths=None, dynamic=None, input_shape=None, steps=None, verbose=False
):
    """Measures top-1 and top-5 accuracy against multiply-adds.

    Args:
        model: a `DynamicSlimmableNetwork` with a classifier.
        dataset: batches of `(images, labels)`: a `tf.data.Dataset`, `keras.utils.PyDataset`,
            generator or other iterable, a function that returns one, or two arrays. Images are
            float `[batch, height, width, 3]`; labels are class numbers, `[batch]` or `[batch, 1]`,
            or probabilities `[batch, classes]`, of which the likeliest class counts. Sample weights
            in third place are left out: every image counts alike.
        paths: list of the static paths to measure; None: every width, at all gates alike.
        dynamic: bool: measure the routed network too; None: where the gates are trained.
        input_shape: `(height, width, 3)` that MAdds are counted at; None: what the images have.
        steps: int, how many batches to read; None: all of a data set that ends.
        verbose: bool: show a progress bar.

    Returns:
        List of dicts: "path", "rho", "madds", "top1", "top5" (accuracies 0..1; "top5" only with
        more than five classes), a row per path. MAdds of images of several sizes are their mean.
        The last row's path is "dynamic": it has the mean of rho, the mean MAdds, slimming heads
        counted, and "shares": for each gate a dict from width to the share of the images that took
        it; with several gates also "path_shares", a dict from paths such as "0-1-2-3" to shares,
        the most frequent first.

    Raises:
        ValueError: on a path that the model does not have, a batch that does not fit it, an empty
            data set, or an endless one without `steps`.
    """
    check_network(model)
    paths, resolved = resolve_paths(model, paths)
    dynamic = model.gates_trained if dynamic is None else check_bool("dynamic", dynamic)
    if input_shape is not None:
        # Before the data, so that a wrong shape is told at once.
        model.costs("slimmest", input_shape)
    batches = labelled_batches(dataset, model.input_shape[1:], model.classes, steps)
    hits, routed = np.zeros((len(paths), 2), "int64"), np.zeros(2, "int64")
    sizes, widths = collections.Counter(), collections.defaultdict(list)
    for images, labels in _with_progress(batches, batch_count(dataset, steps), verbose):
        labels, fronts = class_numbers(labels), {}
        for index, path in enumerate(resolved):
            front = (path.widths[0], path.statistics[0])
            if front not in fronts:
                fronts[front] = model.run_any_width(0, images, path)
            hits[index] += _hits(model.run_any_width(1, fronts[front], path), labels)
        size = tuple(input_shape or images.shape[1:])
        sizes[size] += images.shape[0]
        if dynamic:
            logits, chosen = model.run_dynamic(images)
            routed += _hits(logits, labels)
            widths[size].append(chosen.numpy())
    count = sum(sizes.values())
    if not count:
        raise ValueError("`dataset` has no images to evaluate.")
    rows = [
        _row(path, _rho(model, p.gates), _mean_madds(model, p, sizes), hit / count, model.classes)
        for path, p, hit in zip(paths, resolved, hits)
    ]
    if dynamic:
        widths = {size: np.concatenate(chosen) for size, chosen in widths.items()}
        rows.append(_dynamic_row(model, widths, routed / count))
    return rows


def _with_progress(batches, count, verbose):
    from tqdm import tqdm

    return tqdm(batches, "evaluating", count, disable=not verbose, unit="batch")


def _mean_madds(model, path, sizes):
    """Returns the MAdds of one image: an int where all have one size."""
    madds = [model.madds(path, size) for size in sizes]
    return madds[0] if len(madds) == 1 else float(np.average(madds, weights=[*sizes.values()]))


def _hits(logits, labels):
    logits = tf.cast(logits, tf.float32)
    top1 = tf.argmax(logits, axis=1, output_type=tf.int32) == labels
    top5 = tf.math.in_top_k(labels, logits, min(5, logits.shape[1]))
    return np.array([np.sum(top1), np.sum(top5)])


def _rho(model, widths):
    return float(np.mean([model.spec.ratios[width] for width in widths]))


def _row(path, rho, madds, accuracy, classes):
    row = {"path": path, "rho": rho, "madds": madds, "top1": float(accuracy[0])}
    return {**row, "top5": float(accuracy[1])} if classes > 5 else row


def _dynamic_row(model, by_size, accuracy):
    widths = np.concatenate([*by_size.values()])
    taken, counts = np.unique(widths, axis=0, return_counts=True)
    taken = [tuple(map(int, path)) for path in taken]
    shares = counts / counts.sum()
    means = [_mean_routed_madds(model, chosen, size) for size, chosen in by_size.items()]
    madds = float(np.average(means, weights=[len(chosen) for chosen in by_size.values()]))
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


def _mean_routed_madds(model, widths, size):
    """Returns the mean MAdds of images of one size along the paths that they took."""
    taken, counts = np.unique(widths, axis=0, return_counts=True)
    taken = [tuple(map(int, path)) for path in taken]
    madds = np.average([model.madds(path, size) for path in taken], weights=counts)
    return madds + model.costs(taken[0], size).slimming


_COLLAPSED = 0.99


def describe_gates(rows):
    """Says in words what the gates of an evaluated network do, and what they gain.

    Args:
        rows: of `evaluate_paths`, with a row "dynamic".

    Returns:
        One line per gate, numbered from 1: how many widths it uses, or that it collapsed: over 99 %
        of the images took one width. Of several gates a line with the paths in use. And a line with
        the gain over the static widths, see `static_gain`.
    """
    dynamic = next(row for row in rows if row["path"] == "dynamic")
    lines = [_describe(number, gate) for number, gate in enumerate(dynamic["shares"], start=1)]
    if paths := dynamic.get("path_shares"):
        path, share = next(iter(paths.items()))
        lines.append(f"{len(paths)} paths are in use, {path} for {share:.1%} of the images")
    gain = static_gain(rows)
    if gain is not None:
        lines.append(
            f"top-1 is {abs(gain):.2%} {'above' if gain >= 0 else 'below'} the line between the "
            f"static widths at the same {dynamic['madds'] / 1e6:.2f}M MAdds"
        )
    return "\n".join(lines)


def _describe(number, gate):
    width, share = max(gate.items(), key=lambda item: item[1])
    if share > _COLLAPSED:
        return (
            f"gate {number} collapsed: {share:.1%} of the images take width {width}. Train it on "
            "images that the supernet has not memorised (augmentation, or a held-out split), or "
            "change the loss weights"
        )
    return f"gate {number} uses {len(gate)} widths, width {width} for {share:.1%} of the images"


def static_gain(rows):
    """Returns what the dynamic network gains over the static ones at its mean MAdds.

    Args:
        rows: of `evaluate_paths`: static paths and a row "dynamic". The row "largest", whose front
            is another one, is no point of their line.

    Returns:
        float: its top-1 less that of the line between the two static paths whose MAdds are next to
        its own, on the scale 0..1; None where its MAdds lie beyond the static paths'.
    """
    dynamic = next(row for row in rows if row["path"] == "dynamic")
    static = [row for row in rows if row["path"] not in OFF_ROUTE_ROWS]
    static = sorted((row["madds"], row["top1"]) for row in static)
    if not static or not static[0][0] <= dynamic["madds"] <= static[-1][0]:
        return None
    madds, accuracies = zip(*static)
    return float(dynamic["top1"] - np.interp(dynamic["madds"], madds, accuracies))


def better_excluded_widths(rows, routes, images=None):
    """Finds widths that routes leave out and that are clearly better than those in them.

    A width is clearly better if its top-1 is above that of the widest route by more than chance
    (two standard errors of the difference), or if it is as good at fewer MAdds.

    Args:
        rows: of `evaluate_paths`: a row for each width; others are left out.
        routes: tuple of ints, the candidate widths of the gates.
        images: int, how many images were measured; None: any difference counts.

    Returns:
        List of pairs `(row, row of the widest route)`, the highest top-1 first.
    """
    static = {row["path"]: row for row in rows if isinstance(row["path"], int)}
    widest = static.get(max(routes))
    if widest is None:
        return []
    noise = 2 * (2 * widest["top1"] * (1 - widest["top1"]) / images) ** 0.5 if images else 0.0
    better = [
        row
        for width, row in static.items()
        if width not in routes
        and (
            row["top1"] > widest["top1"] + noise
            or (row["top1"] >= widest["top1"] and row["madds"] < widest["madds"])
        )
    ]
    better.sort(key=lambda row: (-row["top1"], row["madds"]))
    return [(row, widest) for row in better]
