"""Evaluation of a network: accuracy against multiply-adds, choices of the gates."""

import collections
import numbers
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_dsnet.training.network_trainer import check_network
from keras_dsnet.utils.argument_checks import check_bool
from keras_dsnet.utils.batch_checks import class_numbers
from keras_dsnet.utils.batches import batch_count, check_num_batches, labelled_batches

# A gate has collapsed if a larger share of the images takes one width.
_COLLAPSED = 0.99

# Names of the rows that belong to no path of the routes: the routed network, and the widest path
# after the wide front.
OFF_ROUTE_ROWS = ("dynamic", "largest")


def evaluate_paths(
    model: keras.Model,
    dataset: Any,
    paths: Iterable | None = None,
    dynamic: bool | None = None,
    input_shape: Sequence[int] | None = None,
    num_batches: int | None = None,
    verbose: bool = False,
    *,
    steps: int | None = None,
) -> list[dict[str, Any]]:
    """Measures top-1 and top-5 accuracy against multiply-adds (MAdds).

    Args:
        model: `DynamicSlimmableNetwork` with a classifier.
        dataset: Batches of `(images, labels)`: a `tf.data.Dataset`, `keras.utils.PyDataset`,
            generator or other iterable, a function that returns one, or two arrays. Images are
            float `[batch, height, width, 3]`. Labels are class numbers, `[batch]` or `[batch, 1]`,
            or probabilities `[batch, classes]`, whose maximum is the class. Sample weights are
            ignored, and every image counts once.
        paths: List of the static paths to measure. Defaults to every width, used at all gates.
        dynamic: Boolean, whether to measure the routed network too. Defaults to
            `model.gates_trained`.
        input_shape: `(height, width, 3)`, the size of the images that MAdds are counted for.
            Defaults to the size of the images.
        num_batches: Int, the maximum number of batches to read. Defaults to the whole data set.
        verbose: Boolean, whether to show a progress bar. Defaults to `False`.
        steps: Deprecated name of `num_batches`.

    Returns:
        List of dicts with "path", "rho", "madds", "top1" and "top5", one for each path. Accuracies
        are in [0, 1], and "top5" is left out for five classes or fewer. If the images have several
        sizes, MAdds are the mean over the images. The path of the last row is "dynamic": its "rho"
        is the mean over the images, its MAdds are the mean with the slimming heads included, and
        "shares" has a dict for each gate, from widths to the shares of the images that took them.
        With several gates it also has "path_shares", a dict from paths such as "0-1-2-3" to shares,
        the most frequent first.

    Raises:
        ValueError: If the model does not have a path, a batch does not fit the model, the data set
            is empty, or it is endless and `num_batches` is not given.

    Example:

    ```python
    import numpy as np
    from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, MobileNetStage
    from keras_dsnet.training import evaluate_paths

    stages = MobileNetStage(1, 2, (8, 12)), MobileNetStage(1, 2, (8, 12, 16), gated=True)
    spec = MobileNetSpec(stem=(8, 12), stages=stages)
    model = DynamicSlimmableNetwork(spec, input_shape=(32, 32, 3), classes=10)
    images = np.random.normal(size=(16, 32, 32, 3)).astype("float32")

    rows = evaluate_paths(model, (images, np.arange(16) % 10), paths=["slimmest", "widest"])
    print(rows[0]["madds"], rows[0]["top1"])
    ```
    """
    check_network(model)
    paths, resolved = resolve_paths(model, paths)
    dynamic = model.gates_trained if dynamic is None else check_bool("dynamic", dynamic)
    if steps is not None:
        num_batches = _renamed_steps(steps, num_batches)
    if input_shape is not None:
        # Raises the error of a wrong shape before any data are read.
        model.costs("slimmest", input_shape)
    batches = labelled_batches(dataset, model.input_shape[1:], model.classes, num_batches)
    batches = _with_progress(batches, batch_count(dataset, num_batches), verbose)
    sizes, hits, routed_hits, widths = _measure(model, batches, resolved, input_shape, dynamic)
    count = sum(sizes.values())
    if not count:
        raise ValueError("`dataset` has no images to evaluate.")
    rows = [
        _row(path, _rho(model, p.gates), _mean_madds(model, p, sizes), hit / count, model.classes)
        for path, p, hit in zip(paths, resolved, hits)
    ]
    if dynamic:
        rows.append(_dynamic_row(model, widths, routed_hits / count))
    return rows


def resolve_paths(model: keras.Model, paths: Iterable | None) -> tuple[list, list]:
    """Checks a list of paths.

    Args:
        model: `DynamicSlimmableNetwork`.
        paths: List of values that a call of the network accepts as `path`, or None for every width,
            used at all gates.

    Returns:
        Two lists: the paths as given, and the same paths as `Path`.

    Raises:
        ValueError: If `paths` is not a list, or the network does not have one of the paths.
    """
    given = range(model.num_widths) if paths is None else paths
    if isinstance(given, (str, bytes, dict)) or not hasattr(given, "__iter__"):
        raise ValueError(
            f"`paths` must be a list of paths, or None for all widths. Received: paths={paths!r}"
        )
    given = list(given)
    return given, [model.resolve_path(path) for path in given]


def _renamed_steps(steps, num_batches):
    """Returns the number of batches that was passed by its deprecated name."""
    if num_batches is not None or not isinstance(steps, numbers.Integral):
        raise ValueError(
            "`steps` must be None or, as the deprecated name of `num_batches`, an int. "
            f"Received: steps={steps!r}, num_batches={num_batches!r}"
        )
    check_num_batches(steps, "steps")
    warnings.warn(
        "`steps` of evaluate_paths is deprecated: pass the number of batches as `num_batches`.",
        DeprecationWarning,
        stacklevel=3,
    )
    return steps


def _measure(model, batches, paths, input_shape, dynamic):
    """Runs all paths on all batches.

    Returns:
        `(sizes, hits, routed_hits, widths)`: the number of images of each size, the top-1 and top-5
        hits of each path, those of the routed network, and for each size of the images the widths
        that they took, int32 `[images, gates]`.
    """
    sizes = collections.Counter()
    hits, routed_hits = np.zeros((len(paths), 2), "int64"), np.zeros(2, "int64")
    widths = collections.defaultdict(list)
    for images, labels in batches:
        labels, fronts = class_numbers(labels), {}
        for index, path in enumerate(paths):
            front = (path.widths[0], path.statistics[0])
            if front not in fronts:
                fronts[front] = model.run_any_width(0, images, path)
            hits[index] += _hits(model.run_any_width(1, fronts[front], path), labels)
        size = tuple(input_shape or images.shape[1:])
        sizes[size] += images.shape[0]
        if dynamic:
            logits, chosen = model.run_dynamic(images)
            routed_hits += _hits(logits, labels)
            widths[size].append(chosen.numpy())
    return sizes, hits, routed_hits, {size: np.concatenate(parts) for size, parts in widths.items()}


def _with_progress(batches, count, verbose):
    from tqdm import tqdm

    return tqdm(batches, "evaluating", count, disable=not verbose, unit="batch")


def _mean_madds(model, path, sizes):
    """Returns the MAdds of one image: an int if all images have the same size, else the mean."""
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
    paths, counts = np.unique(widths, axis=0, return_counts=True)
    paths = [tuple(map(int, path)) for path in paths]
    shares = counts / counts.sum()
    means = [_mean_routed_madds(model, chosen, size) for size, chosen in by_size.items()]
    madds = float(np.average(means, weights=[len(chosen) for chosen in by_size.values()]))
    rho = float(np.dot(shares, [_rho(model, path) for path in paths]))
    row = _row("dynamic", rho, madds, accuracy, model.classes)
    row["shares"] = [
        {int(width): float(np.mean(gate == width)) for width in np.unique(gate)}
        for gate in widths.T
    ]
    if widths.shape[1] > 1:
        order = np.argsort(-counts, kind="stable")
        row["path_shares"] = {"-".join(map(str, paths[i])): float(shares[i]) for i in order}
    return row


def _mean_routed_madds(model, widths, size):
    """Returns the mean MAdds of images of one size over the paths that they took."""
    paths, counts = np.unique(widths, axis=0, return_counts=True)
    paths = [tuple(map(int, path)) for path in paths]
    madds = np.average([model.madds(path, size) for path in paths], weights=counts)
    return madds + model.costs(paths[0], size).slimming


def describe_gates(rows: list[dict[str, Any]]) -> str:
    """Describes in words the choices of each gate, and the gain of routing.

    Args:
        rows: List of dicts that `evaluate_paths` returned, with a row "dynamic".

    Returns:
        String. It has one line per gate, numbered from 1, with the number of widths in use, or the
        fact that the gate collapsed: more than 99 % of the images took one width. With several
        gates a line describes the paths in use. The last line gives the gain over the static
        widths, see `static_gain`.
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


def static_gain(rows: list[dict[str, Any]]) -> float | None:
    """Returns the gain of the dynamic network over the static ones at its mean MAdds.

    Args:
        rows: List of dicts that `evaluate_paths` returned, with static paths and a row "dynamic".
            The row "largest" is ignored, because it has another front.

    Returns:
        Float, the dynamic network's top-1 minus the top-1 at the same MAdds on the line between the
        two neighbouring static paths, in [-1, 1]. `None` if its MAdds are outside the range of the
        static paths.
    """
    dynamic = next(row for row in rows if row["path"] == "dynamic")
    static = [row for row in rows if row["path"] not in OFF_ROUTE_ROWS]
    points = sorted((row["madds"], row["top1"]) for row in static)
    if not points or not points[0][0] <= dynamic["madds"] <= points[-1][0]:
        return None
    madds, accuracies = zip(*points)
    return float(dynamic["top1"] - np.interp(dynamic["madds"], madds, accuracies))


def better_excluded_widths(
    rows: list[dict[str, Any]], routes: Sequence[int], images: int | None = None
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Finds widths outside the routes that are clearly better than the widest route.

    A width is clearly better if its top-1 is above that of the widest route by more than chance
    (two standard errors of the difference), or if it is as good at fewer MAdds.

    Args:
        rows: List of dicts that `evaluate_paths` returned, with a row for each width. Other rows
            are ignored.
        routes: Tuple of ints, the candidate widths of the gates.
        images: Int, the number of images that were measured. By default any difference counts.

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
