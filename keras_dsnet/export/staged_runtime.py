"""Routing of staged TFLite files, outside the file.

This file needs numpy and ai_edge_litert only. Copy it beside `dynamic_interpreter.py` to a device
that has no TensorFlow and runs staged files, and `detection_runtime.py` for those of detectors.
"""

import errno
import hashlib
import importlib
import os
import pathlib
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

TRUNK = "trunk"
# No confidence is at most the first limit, and every confidence is below the second one.
_NEVER, _ALWAYS = np.float32(-1.0), np.float32(2.0)


def segment_names(
    segments: int, segment: int, before: int | None, width: int, narrowest: int
) -> tuple[str, ...]:
    """Returns the names of the signatures that run a segment of a staged file, one after the other.

    From the second segment on, the first signature depends on the width before, and the second one
    runs the rest of the segment. Two narrowest widths have one signature for both, since a call
    costs most on the shortest path.

    Args:
        segments: Integer, number of segments of the file.
        segment: Integer, counted from 1.
        before: Integer, width of the segment before, or None for the first one.
        width: Integer, width of the segment.
        narrowest: Integer, narrowest width of the file.
    """
    if segments == 1:
        return (f"route_{width}",)
    if segment == 1:
        return (f"segment_1_to_{width}",)
    entry = f"segment_{segment}_{before}_to_{width}"
    return (entry,) if before == width == narrowest else (entry, f"segment_{segment}_to_{width}")


class StagedRuntime:
    """Runs the signatures of a staged file in turn, as the graph of a routed file would.

    Its runners have the names, the arguments and the results of a routed file's signatures:
    "serving_default", "bounded" and "tuned"; see `keras_dsnet.export.export_routed`.

    Args:
        metadata: Dict of the file's metadata.
        runner_of: Function that returns the runner of a signature of the file by its name: a
            function from the arrays of the inputs, by keyword, to a dict of the outputs.
    """

    def __init__(self, metadata: dict[str, Any], runner_of: Callable):
        staged = metadata["staged"]
        self._runner_of = runner_of
        self._runners: dict[str, Callable] = {}
        self._num_gates = len(metadata["routes"][0]["path"])
        self._widths = sorted({width for row in metadata["routes"] for width in row["path"]})
        self._gate_routes, self._ratios = staged["gate_routes"], staged["choice_ratios"]
        self._segments = self._num_gates if self._gate_routes else 1
        self._steps = metadata.get("steps", [])
        self._thresholds = np.array(metadata.get("thresholds", []), "float32")
        self._names = metadata.get("outputs", ["output"])
        self._confidence = _confidence
        if "confidence" in metadata:
            folder, kind = __package__, metadata["confidence"]
            name = ".detection_runtime" if folder else "detection_runtime"
            confidence_of = importlib.import_module(name, folder).confidence_of
            self._confidence = lambda results: confidence_of(results["scores"], kind)

    def get_signature_runner(self, signature: str) -> Callable:
        """Returns the function that does what a signature of a routed file does.

        Args:
            signature: "serving_default", "bounded" or, where the file routes by confidence,
                "tuned".
        """
        runners: dict[str, Callable] = {"serving_default": self.run, "bounded": self.run_bounded}
        if self._steps:
            runners["tuned"] = self.run_tuned
        return runners[signature]

    def run(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Runs an image along the path that the file chooses.

        Args:
            image: `[1, height, width, 3]`.

        Returns:
            Dict of `path`, int32 `[num_gates]`, and `output` `[1, classes]` or what else the file
            returns.
        """
        return self._without_confidence(self._run(image, self._stored_starts(), self._thresholds))

    def run_tuned(self, image: np.ndarray, thresholds: np.ndarray) -> dict[str, np.ndarray]:
        """Runs an image with other thresholds than those of the file.

        Args:
            image: `[1, height, width, 3]`.
            thresholds: float32 `[steps - 1]`.

        Returns:
            Dict as of `run`, and `confidence`, float32 `[1]`.
        """
        return self._run(image, self._stored_starts(), thresholds)

    def run_bounded(
        self, image: np.ndarray, min_width: np.ndarray, max_width: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Runs an image within bounds of the width.

        Args:
            image: `[1, height, width, 3]`.
            min_width: int32 `[num_gates]`.
            max_width: int32 `[num_gates]`.

        Returns:
            Dict as of `run`.
        """
        low, high = np.broadcast_arrays(min_width, max_width)
        last = min(high.tolist())
        if not self._gate_routes:
            low, high = low.max(keepdims=True), high.min(keepdims=True)
        starts = [self._starts_within(*bounds) for bounds in zip(low.tolist(), high.tolist())]
        result = self._run(image, starts, self._thresholds, last)
        return self._without_confidence(result)

    def _without_confidence(self, result):
        return {name: value for name, value in result.items() if name != "confidence"}

    def _stored_starts(self):
        """Returns the widths at which an image may start: a list for each gate of the file."""
        if self._gate_routes:
            return [self._gate_routes] * self._segments
        return [self._steps[:1]]

    def _starts_within(self, low, high):
        """Returns the widths within bounds at which an image may start."""
        preferred = self._gate_routes or self._steps
        inside = [width for width in self._widths if low <= width <= high]
        right = [width for width in inside if width in preferred]
        if right:
            return right if self._gate_routes else right[:1]
        above = [width for width in self._widths if width >= low]
        return (inside or above or self._widths[-1:])[:1]

    def _run(self, image, starts, thresholds, last=None):
        """Runs an image from its start on through the steps that its confidences demand.

        Args:
            image: `[1, height, width, 3]`.
            starts: List of the widths at which each gate may start.
            thresholds: float32 `[steps - 1]`.
            last: Integer, the widest step to go on to. Defaults to None, any step.
        """
        trunk = self._runner(TRUNK)(image=image)
        path, results = self._run_path(trunk, starts)
        if not self._steps:
            return {**self._outputs(results), "path": np.array(path, "int32")}
        limits = np.where(thresholds <= 0, _NEVER, thresholds)
        limits = np.where(thresholds >= 1, _ALWAYS, limits).astype("float32")
        confidence = self._confidence(results)
        for position, step in enumerate(self._steps):
            if step <= max(path):
                continue
            is_within = last is None or step <= last
            if not (is_within and confidence <= limits[max(0, position - 1)]):
                break
            path, results = self._run_path(trunk, [[step]] * self._segments)
            confidence = self._confidence(results)
        return {
            **self._outputs(results),
            "path": np.array(path, "int32"),
            "confidence": confidence.reshape(1),
        }

    def _outputs(self, results):
        return {name: results[name] for name in self._names}

    def _run_path(self, results, allowed):
        """Runs all segments; returns the path, and the results of the last segment.

        Args:
            results: Dict of the trunk's results.
            allowed: List of the widths that each gate of the file may choose.
        """
        path: list[int] = []
        for segment, widths in enumerate(allowed, start=1):
            width = widths[0] if len(widths) == 1 else self._choose(segment, results, widths)
            before = path[-1] if path else None
            names = segment_names(self._segments, segment, before, width, self._widths[0])
            for signature in names:
                features = {name: results[name] for name in results if name.startswith("features")}
                results = self._runner(signature)(**features)
            path.append(width)
        return tuple(path * (self._num_gates // len(path))), results

    def _choose(self, gate, results, widths):
        """Returns the best-scored one of some widths, the narrowest of equal ones."""
        scores = np.asarray(results["scores"][0], "float32")
        ratios = self._ratios[gate - 1]
        if ratios is None:
            return max(widths, key=lambda width: (scores[width], -width))
        ratio = 1 / (1 + np.exp(-scores[0]))
        return min(widths, key=lambda width: (abs(ratio - np.float32(ratios[width])), width))

    def _runner(self, signature):
        if signature not in self._runners:
            self._runners[signature] = self._runner_of(signature)
        return self._runners[signature]


def _confidence(results):
    """Returns the largest softmax probability, float32, or 0 where it is not a number."""
    logits = np.asarray(results.get("logits", results["output"])[0], "float32")
    exponents = np.exp(logits - logits.max())
    largest = exponents.max() / exponents.sum()
    return np.float32(largest if largest >= 0 else 0)


def open_staged(
    filename: str | os.PathLike, metadata: dict[str, Any], trunk: Any, open_file: Callable
) -> StagedRuntime:
    """Returns the runtime of a staged file.

    Args:
        filename: As for `StagedFiles`.
        metadata: As for `StagedFiles`.
        trunk: As for `StagedFiles`.
        open_file: As for `StagedFiles`.
    """
    return StagedRuntime(metadata, StagedFiles(filename, metadata, trunk, open_file).runner_of)


class StagedFiles:
    """The file of a staged network or, where it is split, its files.

    Args:
        filename: Path of the file with the trunk.
        metadata: Dict of its metadata.
        trunk: The opened file of the trunk.
        open_file: Bound method that opens a file by its path. Opened files have a method
            `get_signature_runner`. Its object must exist as long as files may be opened.

    Raises:
        OSError: If a file of a segment does not exist.
    """

    def __init__(
        self,
        filename: str | os.PathLike,
        metadata: dict[str, Any],
        trunk: Any,
        open_file: Callable,
    ):
        self._parts = metadata["staged"]["files"]
        # The parts are opened later, maybe from another working directory. They lie beside the name
        # of the trunk's file, which may be a link to a folder without them.
        self._folder = pathlib.Path(filename).absolute().parent
        self._trunk = trunk
        # A cycle of references would keep the memory of files that are no longer used.
        self._open_file: Callable = weakref.WeakMethod(open_file)
        for part in self._parts.values():
            if not (self._folder / part["name"]).is_file():
                code = errno.ENOENT
                raise FileNotFoundError(code, os.strerror(code), str(self._folder / part["name"]))

    def runner_of(self, signature: str) -> Callable:
        """Returns the runner of a signature. A segment's file is opened when it is first needed.

        Args:
            signature: Name of the signature.

        Raises:
            ValueError: If the file is not the one that was written together with the trunk's.
        """
        if signature not in self._parts:
            return self._trunk.get_signature_runner(signature)
        path = self._folder / self._parts[signature]["name"]
        if digest(path.read_bytes()) != self._parts[signature]["sha256"]:
            raise ValueError(
                f"{path} was not written by the export that wrote the trunk's file; export both "
                "again"
            )
        return self._open_file()(path).get_signature_runner(signature)


def digest(content: bytes) -> str:
    """Returns the SHA-256 of a file's content as hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
