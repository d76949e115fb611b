"""The peers of a table: lines of accuracy against multiply-adds, compared at equal ones.

A static peer is a line through the widths of its networks. A routed peer runs a first network, or
the layers up to a first exit, and goes on where it is unsure. Its thresholds are chosen on the
images of every choice for a series of limits of multiply-adds, and each choice is a point of the
line. Between two points the hits of an image are interpolated.
"""

import dataclasses

import numpy as np
from keras_dsnet_recipes.lib.reproduction import comparison, hits
from keras_dsnet_recipes.lib.reproduction.planned_runs import is_finished

# Points of the line of a routed peer, beside those of the contrasts.
_LIMITS = 9


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of a line.

    Attributes:
        path: Str, a width or the limit that the thresholds were chosen for.
        madds: Float, mean multiply-adds of an image.
        hits: Float or bool array `[images]`.
        ends: Dict from the names of what an image can run to the share of the images that do.
        parameters: Int, number of parameters that the network or the networks store.
    """

    path: str
    madds: float
    hits: np.ndarray
    ends: dict[str, float]
    parameters: int


@dataclasses.dataclass(frozen=True)
class Line:
    """The line of a peer with one seed.

    Attributes:
        seed: Int.
        points: List of `Point`, in the order of multiply-adds.
        most: Float, the multiply-adds of an image that runs everything.
        named: Dict of `Point` by the paths of the contrasts. Two limits can have the same point.
    """

    seed: int
    points: list[Point]
    most: float
    named: dict[str, Point] = dataclasses.field(default_factory=dict)

    def at(self, madds):
        """Returns the hits of the line at some multiply-adds, or None outside of it.

        A routed network can be most accurate below its most multiply-adds. With more it does not
        have to be worse.
        """
        points = {point.madds: point.hits for point in self.points}
        if self.points[-1].madds < madds <= self.most:
            return self.points[-1].hits
        if len(points) < 2:
            return None
        return comparison.static_line(list(points.values()), list(points), madds)


class Peers:
    """Measures the peers of a table.

    Args:
        table: A `Table` with peers.
        runs: List of the finished `Run` of the table.
        workdir: Path of the folder with the folders of the runs.
        split: Str, TFDS slice of the images that are read, or None for those of every choice.
        data_dir: Str or None, folder of prepared data sets.
    """

    def __init__(self, table, runs, workdir, split, data_dir):
        self._table, self._workdir = table, workdir
        self._split, self._data_dir = split, data_dir
        self._runs = {(run.arm.name, run.seed): run for run in runs}
        self._lines = {}

    def lines(self, name):
        """Returns the `Line` of each seed of a peer whose arms are all finished."""
        if name not in self._lines:
            peer = next(peer for peer in self._table.peers if peer.name == name)
            make = self._routed_line if peer.routed else self._static_line
            self._lines[name] = [make(peer, runs) for runs in self._seeds(peer)]
        return self._lines[name]

    def _seeds(self, peer):
        seeds = sorted({seed for _, seed in self._runs})
        found = [[self._runs.get((arm, seed)) for arm in peer.arms] for seed in seeds]
        return [runs for runs in found if all(runs)]

    def _static_line(self, peer, runs):
        points = []
        for run in runs:
            folder = self._workdir / run.name
            rows = hits.load_hits(
                folder, self._workdir / "hits", self._split, "saved", self._data_dir
            )
            paths = hits.static_paths(rows)
            for row in paths:
                path = row["path"] if len(runs) == 1 else run.arm.name
                ends = {f"{run.name}/{path}": 1.0}
                points.append(Point(path, row["madds"], row["hits"], ends, row["parameters"]))
        points.sort(key=lambda point: point.madds)
        return Line(runs[0].seed, points, points[-1].madds)

    def _routed_line(self, peer, runs):
        """Chooses thresholds on the images of every choice, and applies them to those read."""
        from keras_dsnet.training.confidence import choose_row, confidence_curve

        choice, parameters = self._steps(runs, None)
        read, _ = self._steps(runs, self._split)
        curve = confidence_curve(choice)
        points = {}
        for path, limit in self._limits(peer, choice).items():
            row = choose_row(curve, choice, limit, None)
            points[path] = _routed_point(path, read, row["thresholds"], runs, parameters)
        # Two limits can have the same best thresholds.
        different = {point.madds: point for point in points.values()}
        return Line(
            runs[0].seed,
            [different[madds] for madds in sorted(different)],
            read.trunk + int(read.madds.sum()),
            {path: point for path, point in points.items() if path in self._contrast_paths(peer)},
        )

    def _steps(self, runs, split):
        """Returns the steps of a network, or of the networks of a cascade one after the other."""
        found = [
            hits.load_steps(self._workdir / run.name, self._workdir / "hits", split, self._data_dir)
            for run in runs
        ]
        parameters = sum(each for _, each in found)
        return cascade([results for results, _ in found]), parameters

    def _limits(self, peer, results):
        """Returns the limits of the mean multiply-adds by their names."""
        totals = results.trunk + np.cumsum(results.madds)
        widest = results.trunk + int(results.madds[-1])
        limits = {
            contrast.path: contrast.share * widest
            for contrast in self._table.contrasts
            if contrast.first == peer.name and contrast.share * widest >= totals[0]
        }
        grid = np.linspace(totals[0], totals[-1], _LIMITS)
        return limits | {f"{limit / 1e6:.2f}M": limit for limit in grid}

    def _contrast_paths(self, peer):
        return {c.path for c in self._table.contrasts if c.first == peer.name}

    def rows(self, latency=None):
        """Returns the rows of the table: static widths, and the points of the contrasts.

        Args:
            latency: See `curves`.
        """
        rows = []
        for peer in self._table.peers:
            for line in self.lines(peer.name):
                shown = list(line.named.values()) or _shown(line.points)
                rows += [
                    {
                        "arm": peer.name,
                        "seed": line.seed,
                        "weights": "saved",
                        "path": point.path,
                        **_drawn(point, latency),
                        "parameters": point.parameters,
                    }
                    for point in shown
                ]
        return rows

    def curves(self, latency=None):
        """Returns for each peer a list of its lines, each a list of points for a picture.

        Args:
            latency: Dict from what an image can run to milliseconds, or None.

        Returns:
            Dict from names to lists of lists of dicts with "madds", "top1" and, if all that it runs
            was timed, "ms".
        """
        return {
            peer.name: [
                [_drawn(point, latency) for point in line.points] for line in self.lines(peer.name)
            ]
            for peer in self._table.peers
        }

    def not_compared(self):
        """Returns the contrasts of finished peers at multiply-adds that one of them lacks."""
        return [
            f"{contrast.first} - {contrast.second}, {contrast.path}"
            for contrast in self._table.contrasts
            if self.lines(contrast.first)
            and self.lines(contrast.second)
            and self.contrast(contrast) is None
        ]

    def contrast(self, contrast):
        """Returns the row of a contrast, or None if a peer is missing or has no such MAdds."""
        first, second = self.lines(contrast.first), self.lines(contrast.second)
        if not first or not second:
            return None
        peers = {peer.name: peer for peer in self._table.peers}
        if peers[contrast.first].routed:
            points = [line.named.get(contrast.path) for line in first]
            if None in points:
                return None
            at = float(np.mean([point.madds for point in points]))
            left = [point.hits for point in points]
        else:
            at = contrast.share * max(point.madds for point in first[0].points)
            left = [line.at(at) for line in first]
        right = [line.at(at) for line in second]
        if any(each is None for each in (*left, *right)):
            return None
        # A routed network and the static widths of the same network have the same seeds.
        paired = peers[contrast.first].arms == peers[contrast.second].arms
        others = [] if paired else self._others(contrast, at)
        found = comparison.difference(np.stack(left), np.stack(right), others, paired)
        return comparison.contrast_row(contrast, found, madds=at)

    def _others(self, contrast, at):
        """Returns the hits of peers of other runs, which tell of the deviation between seeds."""
        known = {contrast.first, contrast.second}
        counted = {arm for peer in self._table.peers if peer.name in known for arm in peer.arms}
        others = []
        for peer in self._table.peers:
            arrays = [line.at(at) for line in self.lines(peer.name)]
            if counted & set(peer.arms) or not arrays or any(each is None for each in arrays):
                continue
            counted |= set(peer.arms)
            others.append(np.stack(arrays))
        return others


def cascade(results):
    """Returns the steps of networks that run one after the other, from those of each.

    Args:
        results: List of `StepResults` on the same images. A single one is returned as it is.

    Raises:
        ValueError: If one of several networks has more than one step.
    """
    from keras_dsnet.training.confidence import StepResults

    if len(results) == 1:
        return results[0]
    counts = [len(each.widths) for each in results]
    if set(counts) != {1}:
        raise ValueError(f"A cascade needs networks of one width each. Received: {counts} widths")
    return StepResults(
        tuple(range(len(results))),
        np.array([each.trunk + int(each.madds[0]) for each in results], "int64"),
        0,
        np.concatenate([each.confidence for each in results], axis=1),
        np.concatenate([each.correct for each in results], axis=1),
    )


def finished(table, runs, workdir):
    """Returns the finished runs of the arms of a table."""
    return [run for run in runs if run.arm in table.arms and is_finished(workdir / run.name)]


def _routed_point(path, results, thresholds, runs, parameters):
    from keras_dsnet.training.confidence import ends_of

    ends = ends_of(results, thresholds)
    madds = results.trunk + np.cumsum(results.madds)[ends].mean()
    right = results.correct[np.arange(len(ends)), ends]
    shares = np.bincount(ends, minlength=len(results.widths)) / len(ends)
    names = [f"{runs[0].name}/step_{step}" for step in range(len(shares))]
    if len(runs) > 1:
        names = ["+".join(f"{run.name}" for run in runs[: step + 1]) for step in range(len(shares))]
    return Point(path, float(madds), right, dict(zip(names, shares.tolist())), parameters)


def _shown(points):
    """Returns the points, or the ends and the middle of many."""
    if len(points) <= 3:
        return points
    return [points[0], points[(len(points) - 1) // 2], points[-1]]


def _drawn(point, latency):
    drawn = {"madds": point.madds, "top1": float(np.mean(point.hits))}
    if latency and all(name in latency for name in point.ends):
        drawn["ms"] = sum(share * latency[name] for name, share in point.ends.items())
    return drawn
