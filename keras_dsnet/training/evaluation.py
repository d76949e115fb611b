"""Evaluation of a network: accuracy against multiply-adds of static widths, gates, confidence."""

import collections
import numbers
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_dsnet.models.costs import dynamic_madds, worst_case_madds
from keras_dsnet.models.path import check_routes
from keras_dsnet.models.routing_settings import DEFAULT_THRESHOLD, ROUTINGS
from keras_dsnet.training.network_trainer import check_network
from keras_dsnet.utils.argument_checks import check_bool
from keras_dsnet.utils.batch_checks import class_numbers
from keras_dsnet.utils.batches import batch_count, check_num_batches, labelled_batches

# A gate has collapsed if a larger share of the images takes one width.
_COLLAPSED = 0.99

# Names of the rows that belong to no path of the routes: the routed network, and the widest path
# after the wide front.
OFF_ROUTE_ROWS = ("dynamic", *ROUTINGS, "largest")

# Resamples of the bootstrap, how many are drawn at once, and the percentiles of a 95 % interval.
_RESAMPLES, _CHUNK, _INTERVAL = 1000, 50, (2.5, 97.5)
_CURVE_POINTS = 21


def evaluate_paths(
    model: keras.Model,
    dataset: Any,
    paths: Iterable | None = None,
    dynamic: bool | None = None,
    input_shape: Sequence[int] | None = None,
    num_batches: int | None = None,
    verbose: bool = False,
    *,
    steps: Sequence[int] | int | None = None,
    routings: Sequence[str] | None = None,
    per_image: bool = False,
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
        dynamic: Boolean, whether to measure the routed network too. Defaults to True where the
            gates are trained or the model's routing is by confidence.
        input_shape: `(height, width, 3)`, the size of the images that MAdds are counted for.
            Defaults to the size of the images.
        num_batches: Int, the maximum number of batches to read. Defaults to the whole data set.
        verbose: Boolean, whether to show a progress bar. Defaults to `False`.
        steps: Tuple of ascending ints, the widths that routing by confidence tries. Defaults to
            `model.confidence_steps`. Other steps than the model's have thresholds of 0.7, also in
            the row "dynamic". An int is the deprecated form of `num_batches`.
        routings: Sequence of "gate", "confidence" and "gate+confidence", the routings to measure
            beside the model's. By default, if `dynamic` is True or `steps` are given, all that can
            run: those with gates need trained gates.
        per_image: Boolean, whether every row has "hits" too, bool `[images]`: whether the likeliest
            class was right. Defaults to `False`.

    Returns:
        List of dicts with "path", "rho", "madds", "top1" and "top5", one for each path. Accuracies
        are in [0, 1], and "top5" is left out for five classes or fewer. If the images have several
        sizes, MAdds are the mean over the images. Then one row for each of `routings` follows,
        whose path is its name. The path of the last row is "dynamic", by the model's routing. In
        these rows "rho" is the mean over the images of the path that gave the output, and MAdds are
        the mean of everything that ran, with the slimming heads of gates that were asked.

        All rows of routings have "shares", a dict for each gate, from widths to the shares of the
        images that took them. With several gates they also have "path_shares", a dict from paths
        such as "0-1-2-3" to shares, the most frequent first. They have "madds_p95" and
        "madds_worst", the 95th percentile over the images and the most that an image can cost,
        "static_line", the top-1 of the line between the static paths at the same MAdds, "gain",
        the top-1 above it, and "gain_low" and "gain_high", the 95 % interval of the gain by a
        paired bootstrap over the images: all None where the MAdds are outside the static paths.

        The row of the gate has "curve", a list of dicts with "bias", "madds" and "top1", if the
        network has one gate and all routes were measured: `bias` times the relative MAdds of a
        route is added to its score, which moves the gate along the axis of MAdds.

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
    if steps is not None and not isinstance(steps, Sequence | np.ndarray):
        num_batches, steps = _renamed_steps(steps, num_batches), None
    by_confidence = model.routing == "confidence"
    dynamic = (
        model.gates_trained or by_confidence if dynamic is None else check_bool("dynamic", dynamic)
    )
    if routings is None and not dynamic and steps is None:
        routings = ()
    measured = _Routings(model, steps, routings, dynamic)
    if input_shape is not None:
        # Raises the error of a wrong shape before any data are read.
        model.costs("slimmest", input_shape)
    batches = labelled_batches(dataset, model.input_shape[1:], model.classes, num_batches)
    batches = _with_progress(batches, batch_count(dataset, num_batches), verbose)
    sizes, hits = _measure(model, batches, resolved, input_shape, measured)
    count = sum(sizes.values())
    if not count:
        raise ValueError("`dataset` has no images to evaluate.")
    rows = [
        _row(
            path,
            _rho(model, p.gates),
            _mean_madds(model, p, sizes),
            hit.mean(axis=1),
            model.classes,
        )
        for path, p, hit in zip(paths, resolved, hits)
    ]
    routed = measured.rows(rows, hits, resolved, sizes)
    if check_bool("per_image", per_image):
        for row, hit in zip(rows, hits):
            row["hits"] = hit[0]
        for row in routed:
            name = model.routing if row["path"] == "dynamic" else row["path"]
            row["hits"] = np.concatenate(measured.hits[name], axis=1)[0]
    return rows + routed


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
    given = [_as_plain(path) for path in given]
    return given, [model.resolve_path(path) for path in given]


def _as_plain(path):
    """Returns an array or a tensor, as `model.route` returns them, as an int or a tuple of ints."""
    if not (tf.is_tensor(path) or isinstance(path, (np.ndarray, np.generic))):
        return path
    plain = np.asarray(path).tolist()
    return tuple(plain) if isinstance(plain, list) else plain


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


def _measure(model, batches, paths, input_shape, routings):
    """Runs all paths and routings on all batches.

    Returns:
        `(sizes, hits)`: the number of images of each size, and bool `[paths, 2, images]`, whether
        the class of an image was the likeliest, and among the five likeliest.
    """
    sizes, hits = collections.Counter(), []
    for images, labels in batches:
        labels, batch = class_numbers(labels), []
        trunk = routings.run_trunk(images)
        # All paths of the routes have the front of the trunk.
        fronts = {(0, 0): trunk[0]} if trunk else {}
        for path in paths:
            front = (path.widths[0], path.statistics[0])
            if front not in fronts:
                fronts[front] = model.run_any_width(0, images, path)
            batch.append(_hits(model.run_any_width(1, fronts[front], path), labels))
        size = tuple(input_shape or images.shape[1:])
        sizes[size] += images.shape[0]
        hits.append(np.reshape(batch, (len(paths), 2, images.shape[0])))
        routings.run(images, trunk, labels, size)
    return sizes, np.concatenate(hits, axis=2) if hits else None


class _Routings:
    """Measures the routed network by several routings.

    Args:
        model: `DynamicSlimmableNetwork`.
        steps: Tuple of ints or None, see `evaluate_paths`.
        names: Sequence of routings or None, see `evaluate_paths`.
        dynamic: Bool, whether to measure anything.
    """

    def __init__(self, model, steps, names, dynamic):
        self.model = model
        self.steps = model.confidence_steps
        if steps is not None:
            self.steps = check_routes(steps, model.num_widths, "steps")
        own = self.steps == model.confidence_steps
        self.thresholds = model.thresholds if own else (DEFAULT_THRESHOLD,) * (len(self.steps) - 1)
        if names is None:
            names = [name for name in ROUTINGS if model.gates_trained or name == "confidence"]
        wrong = [name for name in names if name not in ROUTINGS]
        if isinstance(names, str) or wrong:
            raise ValueError(f"`routings` must be some of {ROUTINGS}. Received: routings={names!r}")
        self.names = [name for name in ROUTINGS if name in names]
        self.dynamic = dynamic
        self.all_names = {*self.names, *([model.routing] if dynamic else [])}
        self.hits, self.paths, self.madds = ({n: [] for n in ROUTINGS} for _ in range(3))
        self.scores = []

    def run_trunk(self, images):
        """Returns the features and scores that all routings share, or None without a routing."""
        if not self.all_names:
            return None
        asked = self.all_names != {"confidence"}
        images = tf.cast(images, self.model.compute_dtype)
        return self.model.run_section(0, None, (0, 0), images, with_scores=asked)

    def run(self, images, trunk, labels, size):
        """Runs one batch by every routing, after one run of the trunk."""
        start = None
        for name in (name for name in ROUTINGS if name in self.all_names):
            logits, paths, starts = self.model.run_routed(
                images, name, self.steps, self.thresholds, trunk=trunk, start=start
            )
            # "gate+confidence" goes on from where the gates lead.
            start = (logits, paths) if name == "gate" else start
            steps = () if name == "gate" else self.steps
            asked = name != "confidence"
            self.hits[name].append(_hits(logits, labels))
            self.paths[name].append(paths.numpy())
            madds = dynamic_madds(self.model, starts.numpy(), paths.numpy(), steps, asked, size)
            self.madds[name].append(madds)
        if "gate" in self.names and self.model.num_gates == 1 and self.model.gates_trained:
            (gate,) = self.model.slimming_gates
            self.scores.append(gate.route_scores(trunk[1], self.model.routes).numpy())

    def rows(self, static, hits, resolved, sizes):
        """Returns the rows of the routings, the dynamic row last.

        Args:
            static: List of dicts, the rows of the static paths.
            hits: bool `[paths, 2, images]` of these paths.
            resolved: List of the same paths as `Path`.
            sizes: Counter of the sizes of the images.
        """
        line = {}
        for row, hit in zip(static, hits):
            if row["path"] not in OFF_ROUTE_ROWS:
                line[row["madds"]] = hit[0]
        rows = {name: self._row(name, line, sizes) for name in self.all_names}
        if self.scores and "gate" in rows:
            # The rows of the wide front are of other costs.
            narrow = [(row, p) for row, p in zip(static, resolved) if p.widths[0] == 0]
            known = {p.gates[0]: row["madds"] for row, p in narrow}
            by_width = {p.gates[0]: hit[0] for p, hit in zip(resolved, hits) if p.widths[0] == 0}
            if set(self.model.routes) <= set(by_width):
                rows["gate"]["curve"] = self._curve(by_width, known, sizes)
        named = [rows[name] for name in self.names]
        if not self.dynamic:
            return named
        dynamic = {**rows[self.model.routing], "path": "dynamic"}
        dynamic.pop("curve", None)
        return [*named, dynamic]

    def _row(self, name, line, sizes):
        model = self.model
        hits, madds = np.concatenate(self.hits[name], 1), np.concatenate(self.madds[name])
        paths, counts = np.unique(np.concatenate(self.paths[name]), axis=0, return_counts=True)
        rho = float(np.average([_rho(model, path) for path in paths.tolist()], weights=counts))
        row = _row(name, rho, float(madds.mean()), hits.mean(axis=1), model.classes)
        row.update(_shares(np.concatenate(self.paths[name])))
        row["madds_p95"] = float(np.percentile(madds, 95))
        routes = model.routes if model.gates_trained else model.routes[-1:]
        row["madds_worst"] = max(
            worst_case_madds(model, name, self.steps, routes, size) for size in sizes
        )
        row.update(dict.fromkeys(("static_line", "gain", "gain_low", "gain_high")))
        if line and min(line) <= row["madds"] <= max(line):
            costs = sorted(line)
            static = np.array([line[cost] for cost in costs])
            row["static_line"] = float(np.interp(row["madds"], costs, static.mean(axis=1)))
            row["gain"] = row["top1"] - row["static_line"]
            low, high = gain_interval(hits[0], madds, static, costs)
            row.update(gain_low=low, gain_high=high)
        return row

    def _curve(self, hits, known, sizes):
        """Returns the accuracy of the gate with a bias on its scores, for many biases."""
        routes, scores = self.model.routes, np.concatenate(self.scores).astype("float64")
        costs = np.array([known[width] for width in routes], "float64")
        relative = (costs - costs[0]) / (costs[-1] - costs[0] or 1)
        correct = np.stack([hits[width] for width in routes], axis=1)
        slimming = _mean_slimming(self.model, sizes)
        # The bias at which an image is undecided between the first and the last route.
        undecided = scores[:, 0] - scores[:, -1]
        rows = []
        for bias in {0.0, *np.quantile(undecided, np.linspace(0, 1, _CURVE_POINTS)).tolist()}:
            choice = np.argmax(scores + bias * relative, axis=1)
            top1 = float(correct[np.arange(len(choice)), choice].mean())
            madds = float(costs[choice].mean() + slimming)
            rows.append({"bias": bias, "madds": madds, "top1": top1})
        return sorted(rows, key=lambda row: row["madds"])


def gain_interval(
    hits: np.ndarray, madds: np.ndarray, static_hits: np.ndarray, static_madds: Sequence[float]
) -> tuple[float, float]:
    """Returns the 95 % interval of a gain over the static line, by a paired bootstrap.

    A resample draws as many images as there are, with replacement. It takes the mean MAdds of the
    routed network, its top-1, and the static line at these MAdds from the same images. The seed is
    fixed.

    Args:
        hits: bool `[images]`, whether the routed network was right.
        madds: `[images]`, its MAdds.
        static_hits: bool `[paths, images]`, the same of the static paths.
        static_madds: `[paths]`, their MAdds in ascending order.

    Returns:
        `(low, high)`, fractions of top-1.
    """
    generator, gains, images = np.random.default_rng(0), [], len(hits)
    columns = np.stack([hits, madds, *static_hits]).astype("float64").T
    for _ in range(_RESAMPLES // _CHUNK):
        drawn = generator.integers(images, size=(_CHUNK, images))
        weights = np.stack([np.bincount(row, minlength=images) for row in drawn])
        means = weights @ columns / images
        gains += [top1 - np.interp(cost, static_madds, rest) for top1, cost, *rest in means]
    low, high = np.percentile(gains, _INTERVAL)
    return float(low), float(high)


def _with_progress(batches, count, verbose):
    from tqdm import tqdm

    return tqdm(batches, "evaluating", count, disable=not verbose, unit="batch")


def _mean_slimming(model, sizes):
    madds = [model.costs("slimmest", size).slimming for size in sizes]
    return madds[0] if len(madds) == 1 else float(np.average(madds, weights=[*sizes.values()]))


def _mean_madds(model, path, sizes):
    """Returns the MAdds of one image: an int if all images have the same size, else the mean."""
    madds = [model.madds(path, size) for size in sizes]
    return madds[0] if len(madds) == 1 else float(np.average(madds, weights=[*sizes.values()]))


def _hits(logits, labels):
    logits = tf.cast(logits, tf.float32)
    top1 = tf.argmax(logits, axis=1, output_type=tf.int32) == labels
    top5 = tf.math.in_top_k(labels, logits, min(5, logits.shape[1]))
    return np.array([top1, top5])


def _rho(model, widths):
    return float(np.mean([model.spec.ratios[width] for width in widths]))


def _row(path, rho, madds, accuracy, classes):
    row = {"path": path, "rho": rho, "madds": madds, "top1": float(accuracy[0])}
    return {**row, "top5": float(accuracy[1])} if classes > 5 else row


def _shares(widths):
    """Returns the shares of the images, for each gate by width and for several gates by path."""
    paths, counts = np.unique(widths, axis=0, return_counts=True)
    shares = counts / counts.sum()
    row = {
        "shares": [
            {int(width): float(np.mean(gate == width)) for width in np.unique(gate)}
            for gate in widths.T
        ]
    }
    if widths.shape[1] > 1:
        order = np.argsort(-counts, kind="stable")
        names = ["-".join(map(str, path)) for path in paths.tolist()]
        row["path_shares"] = {names[i]: float(shares[i]) for i in order}
    return row


def describe_gates(rows: list[dict[str, Any]]) -> str:
    """Describes in words the choices of each gate, and the gain of routing.

    Args:
        rows: List of dicts that `evaluate_paths` returned, with a row "gate" or else "dynamic".

    Returns:
        String. It has one line per gate, numbered from 1, with the number of widths in use, or the
        fact that the gate collapsed: more than 99 % of the images took one width. With several
        gates a line describes the paths in use. The last line gives the gain over the static
        widths, see `static_gain`.
    """
    by_name = {row["path"]: row for row in rows}
    routed = by_name["gate" if "gate" in by_name else "dynamic"]
    lines = [_describe(number, gate) for number, gate in enumerate(routed["shares"], start=1)]
    if paths := routed.get("path_shares"):
        path, share = next(iter(paths.items()))
        lines.append(f"{len(paths)} paths are in use, {path} for {share:.1%} of the images")
    gain = _gain(routed, rows)
    if gain is not None:
        lines.append(
            f"top-1 is {abs(gain):.2%} {'above' if gain >= 0 else 'below'} the line between the "
            f"static widths at the same {routed['madds'] / 1e6:.2f}M MAdds"
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
    return _gain(next(row for row in rows if row["path"] == "dynamic"), rows)


def _gain(routed, rows):
    static = [row for row in rows if row["path"] not in OFF_ROUTE_ROWS]
    points = sorted((row["madds"], row["top1"]) for row in static)
    if not points or not points[0][0] <= routed["madds"] <= points[-1][0]:
        return None
    madds, accuracies = zip(*points)
    return float(routed["top1"] - np.interp(routed["madds"], madds, accuracies))


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
