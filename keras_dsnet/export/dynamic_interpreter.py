"""Runtime of a routed TFLite file.

This file needs numpy and ai_edge_litert only. Copy it to a device that has no TensorFlow, with
`staged_runtime.py` for staged files, `compiled_signatures.py` for CompiledModel, and
`detection_runtime.py` for detectors.
"""

import importlib
import json
import numbers
import operator
import os
import pathlib
import statistics
import struct
import threading
import time
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

METADATA_NAME = b"keras_dsnet"
# The version of the metadata, which an export writes.
FORMAT = 1
_FIELDS = ("input_shape", "input_type", "preprocessing", "num_widths", "routes")
# LiteRT would start any number of threads.
_MOST_THREADS = 1024
# Floats above this multiple of the largest normalised pixel cannot be normalised pixels.
_MOST_RANGES = 4


class DynamicInterpreter:
    """Runs a routed TFLite file on one image at a time.

    Several threads may share an interpreter; their images then run one after the other.

    Args:
        filename: Path of a file that `model.export(..., format="litert")` wrote.
        num_threads: Number of threads of the runtime, 1 to 1024. Defaults to 1.
        runtime: "interpreter" for LiteRT's `Interpreter`, or "compiled" for its `CompiledModel` on
            the CPU. Defaults to "interpreter".

    Attributes:
        metadata: Dict of the file's metadata: `input_shape`, `input_type`, `preprocessing`,
            `routes` (path and MAdds of each), `num_widths`, `gates_trained`, `class_names` in the
            order of the outputs or `None`, and more.
        is_detector: Boolean, whether the file is a detector's.
        num_gates: Number of gates, and so of widths in a path.
        steps: Widths that a file which routes by confidence tries in turn, or an empty tuple.
        latency_ms: Dict from route to milliseconds, which `calibrate_latency` fills.
        trunk_ms: Milliseconds of the layers that all steps share. `calibrate_latency` measures it.
        thresholds: Tuple of floats, one for each step except the last; at first those of the file.
            `None` in a file that routes only by its gates.

    Raises:
        OSError: If the file, or a file of a split export beside it, cannot be read.
        ValueError: If it is not a TFLite file with routes, or another argument is wrong.

    Example:

    ```python
    import numpy as np
    from keras_dsnet.export import DynamicInterpreter
    from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, MobileNetStage

    spec = MobileNetSpec(stem=(4, 6), stages=(MobileNetStage(1, 2, (8, 16), gated=True),))
    model = DynamicSlimmableNetwork(spec, (16, 16, 3), classes=5)
    model.gates_trained = True
    model.export("m.tflite", format="litert", verbose=False)
    interpreter = DynamicInterpreter("m.tflite")
    pixels = np.zeros((16, 16, 3), "uint8")
    output, path = interpreter.run(pixels)
    output, path = interpreter.run(pixels, min_width=1, max_width=1)
    interpreter.calibrate_latency()
    output, path = interpreter.run(pixels, budget_ms=100.0)
    ```
    """

    def __init__(
        self, filename: str | os.PathLike, num_threads: int = 1, runtime: str = "interpreter"
    ):
        _check_counts(num_threads=num_threads)
        if num_threads > _MOST_THREADS:
            text = f"`num_threads` must be at most {_MOST_THREADS}. Received: "
            raise ValueError(f"{text}num_threads={num_threads!r}")
        if not isinstance(runtime, str) or runtime not in ("interpreter", "compiled"):
            text = "`runtime` must be 'interpreter' or 'compiled'. Received: "
            raise ValueError(f"{text}runtime={runtime!r}")
        if not isinstance(filename, (str, os.PathLike)):
            text = f"filename={filename!r}, of type {type(filename).__name__}"
            raise ValueError(f"`filename` must be the path of a TFLite file. Received: {text}")
        self.metadata = read_metadata(pathlib.Path(filename).read_bytes(), filename)
        self.is_detector = "boxes" in self.metadata.get("outputs", ())
        self.num_gates = len(self.metadata["routes"][0]["path"])
        self.steps = tuple(self.metadata.get("steps", ()))
        self.num_threads = int(num_threads)
        self.runtime = runtime
        self.latency_ms: dict[int, float] = {}
        self.trunk_ms = 0.0
        self.thresholds = tuple(self.metadata["thresholds"]) if self.steps else None
        self._signatures = self._open(filename)
        if self.metadata.get("layout") == "staged":
            open_staged = _sibling("staged_runtime").open_staged
            self._signatures = open_staged(filename, self.metadata, self._signatures, self._open)
        self._runners: dict[str, Any] = {}
        self._lock = threading.Lock()
        mean, std = (np.array(self.metadata["preprocessing"][key]) for key in ("mean", "std"))
        self._largest_pixel = float(np.abs([(end - mean) / std for end in (0, 1)]).max())

    @property
    def routes(self) -> tuple[int, ...]:
        """The candidate widths of every gate, ascending."""
        return routes_of(self.metadata)

    def _open(self, filename):
        """Opens a TFLite file with the runtime."""
        try:
            if self.runtime == "compiled":
                compiled = _sibling("compiled_signatures")
                return compiled.CompiledSignatures(filename, self.num_threads)
            # Made from a path, it maps the file into memory.
            return Interpreter(model_path=str(filename), num_threads=self.num_threads)
        except ValueError as error:
            raise ValueError(f"{filename} is damaged: {error}") from error

    def run(
        self,
        image: np.ndarray,
        min_width: int | Sequence[int] | None = None,
        max_width: int | Sequence[int] | None = None,
        budget_ms: float | None = None,
        thresholds: float | Sequence[float] | None = None,
    ) -> tuple[np.ndarray, tuple[int, ...]]:
        """Runs one image along the path that the file chooses within the bounds.

        Equal bounds force a width. Bounds that hold no route give the nearest route above them,
        else the widest. In a file that routes by confidence, an image starts at the first step
        within the bounds and ends at the last one at most.

        Args:
            image: Array `[height, width, 3]` or `[1, height, width, 3]`: raw uint8 RGB pixels or,
                for a file that takes floats, a preprocessed float image.
            min_width: Width, or one width per gate. Defaults to `None`, which sets no bound.
            max_width: Width, or one width per gate. Defaults to `None`, which sets no bound.
            budget_ms: Milliseconds. Bounds the width further, to the widest route whose latency
                fits, or to the fastest route with a warning. In a file that routes by confidence,
                all steps up to the width must fit together, since an image may run them all. Needs
                `calibrate_latency`. Defaults to `None`, which sets no bound.
            thresholds: For files that route by confidence, a number from 0 to 1 or one for each
                step except the last. An image goes on where its confidence is at most the
                threshold. Defaults to `None`, the attribute `thresholds`.

        Returns:
            The output, float32 `[classes]`, and the path, a tuple with a width per gate.

        Raises:
            ValueError: If an argument does not fit the file, no route from `min_width` on fits the
                budget, or the file cannot combine the bounds with the thresholds.
        """
        self._check_task(detector=False)
        results, path = self._run_image(image, min_width, max_width, budget_ms, thresholds)
        return results["output"][0], path

    def detect(
        self,
        image: np.ndarray,
        score_threshold: float = 0.05,
        iou_threshold: float = 0.45,
        max_detections: int = 200,
        **options: Any,
    ) -> dict[str, Any]:
        """Runs a detector's file on one image, then non-maximum suppression of each class.

        Args:
            image: As for `run`.
            score_threshold: Number from 0 to 1. Boxes with a higher probability are kept.
            iou_threshold: Number from 0 to 1. Of two boxes of a class that overlap more, the less
                probable one is dropped.
            max_detections: Largest number of boxes.
            **options: `min_width`, `max_width`, `budget_ms` and `thresholds` as for `run`.

        Returns:
            Dict as of `keras_dsnet.detection.FSSD.detect`: `"boxes"`, `"scores"`, `"classes"` and
            `"path"`.

        Raises:
            ValueError: If the file is not a detector's, or an argument does not fit.
        """
        self._check_task(detector=True)
        runtime = _sibling("detection_runtime")
        limits = runtime.check_limits(score_threshold, iou_threshold, max_detections)
        results, path = self._run_image(image, **options)
        found = runtime.select_boxes(results["boxes"][0], results["scores"][0], *limits)
        return {**found, "path": path}

    def _run_image(self, image, min_width=None, max_width=None, budget_ms=None, thresholds=None):
        """Returns the results of an image as a dict of arrays, and its path."""
        inputs = {"image": self._as_input(image)}
        signature = "serving_default"
        limits = self._as_thresholds(self.thresholds if thresholds is None else thresholds)
        if min_width is not None or max_width is not None or budget_ms is not None:
            signature = "bounded"
            low = self._as_bound(min_width, "min_width", 0)
            high = self._as_bound(max_width, "max_width", self.routes[-1])
            if budget_ms is not None:
                bounds = (None if min_width is None else max(low)), max(high)
                widest = self.widest_within(budget_ms, *bounds)
                if max(low) > widest:
                    text = f"at most {widest}, the widest route within {budget_ms!r} ms. Received: "
                    raise ValueError(f"`min_width` must be {text}min_width={min_width!r}")
                high = np.minimum(high, widest)
                if self._worst_latency(widest, max(low)) > budget_ms:
                    low = np.maximum(low, np.minimum(high, widest))  # no narrower, slower route
            inputs.update(min_width=low, max_width=high)
        stored = self.metadata.get("thresholds")
        if limits is not None and limits.tolist() != np.float32(stored).tolist():
            if signature == "bounded":
                limits = self._bounded_thresholds(limits, low, high)
            if limits is not None:
                signature, inputs = "tuned", {"image": inputs["image"], "thresholds": limits}
        results = self._run(signature, inputs)
        return results, tuple(int(width) for width in results["path"])

    def calibrate_latency(self, rounds: int = 5, runs: int = 3) -> dict[int, float]:
        """Measures the median latency of every route on this device.

        The routes alternate. With several gates a route is the path with its width at every gate.
        In a file that routes by confidence, how much less an image that goes through all steps
        takes than these in separate runs gives `trunk_ms`.

        Args:
            rounds: Number of turns of each route. Defaults to 5.
            runs: Number of runs in a turn, whose mean is a measurement. Defaults to 3.

        Returns:
            `latency_ms`: dict from route to milliseconds.

        Raises:
            ValueError: If `rounds` or `runs` is not an int of at least 1.
        """
        _check_counts(rounds=rounds, runs=runs)
        image = np.zeros(self.metadata["input_shape"], self.metadata["input_type"])
        ways: dict[Any, dict] = {k: {"min_width": k, "max_width": k} for k in self.routes}
        ways |= {"all": {"thresholds": 1}} if self.steps else {}
        latencies: dict[Any, list[float]] = {way: [] for way in ways}
        for turn in range(rounds + 1):
            for way, options in ways.items():
                start = time.perf_counter()
                for _ in range(runs):
                    self._run_image(image, **options)
                if turn:  # The first turn allocates memory.
                    latencies[way].append((time.perf_counter() - start) * 1e3 / runs)
        medians = {way: statistics.median(each) for way, each in latencies.items()}
        self.trunk_ms = self._trunk_of(medians, image) if self.steps else 0.0
        self.latency_ms = {route: medians[route] for route in self.routes}
        return self.latency_ms

    def _trunk_of(self, medians, image):
        """Returns the milliseconds that all steps share."""
        start = max(self._run_image(image, thresholds=0)[1])
        ran = [start, *(step for step in self.steps if step > start)]
        if len(ran) == 1:
            return 0.0
        shared = (sum(medians[route] for route in ran) - medians["all"]) / (len(ran) - 1)
        return max(0.0, min(shared, *(medians[route] for route in ran)))

    def widest_within(
        self, budget_ms: float, min_width: int | None = None, max_width: int | None = None
    ) -> int:
        """Returns the widest route up to which every route takes at most `budget_ms`.

        In a file that routes by confidence, an image may run all steps up to it in `budget_ms`. If
        none fits, it is the fastest route, with a warning if that takes longer too.

        Args:
            budget_ms: Milliseconds.
            min_width: Width from which on images start. Defaults to `None`, any.
            max_width: Widest route that may run. Defaults to `None`, any.

        Raises:
            ValueError: If no latency was measured, or `budget_ms` is not a positive number.
        """
        is_number = isinstance(budget_ms, numbers.Real) and not isinstance(budget_ms, bool)
        if not (is_number and budget_ms > 0):  # A comparison with NaN is false.
            text = f"positive number of milliseconds. Received: budget_ms={budget_ms!r}"
            raise ValueError(f"`budget_ms` must be a {text}")
        if not self.latency_ms:
            raise ValueError("`budget_ms` needs latencies: call `calibrate_latency()` first.")
        widest = max(self.latency_ms) if max_width is None else max(max_width, min(self.latency_ms))
        allowed = [route for route in self.latency_ms if route <= widest]
        worst = {route: self._worst_latency(route, min_width) for route in allowed}
        if fitting := [route for route, latency in worst.items() if latency <= budget_ms]:
            return max(fitting)
        fastest = min(allowed, key=lambda route: self.latency_ms[route])
        if min_width is not None and min_width > fastest:
            text = f"No route from min_width={min_width} on takes {budget_ms!r} ms or less"
            raise ValueError(text)
        if self.latency_ms[fastest] > budget_ms:
            warnings.warn(
                f"No route fits `budget_ms`. The fastest, {fastest}, runs instead and takes "
                f"{self.latency_ms[fastest]:.2f} ms. Received: budget_ms={budget_ms!r}",
                stacklevel=3,
            )
        return fastest

    def _worst_latency(self, route, min_width):
        """Returns the milliseconds of the longest run from a bound to a route."""
        low = 0 if min_width is None else min_width
        if not self.steps:
            # Routes that are nearly equal can measure in another order than that of their widths.
            between = {route, *(each for each in self.latency_ms if low <= each <= route)}
            return max(self.latency_ms[each] for each in between)
        gated = self.metadata["routing"] == "gate+confidence"
        starts = [s for s in (self.routes if gated else self.steps) if low <= s <= route] or [route]
        rests = {step: self.latency_ms[step] - self.trunk_ms for step in self.steps}
        return max(
            self.latency_ms[start]
            + sum(rests[step] for step in self.steps if start < step <= route)
            for start in (starts if gated else starts[:1])
        )

    def calibrate_confidence(
        self,
        images: Iterable[np.ndarray],
        labels: Iterable[int],
        max_madds: float | None = None,
        max_latency_ms: float | None = None,
        max_drop: float | None = None,
    ) -> list[dict[str, Any]]:
        """Sets `thresholds` to those that suit this file best under a limit.

        Every image runs all steps once. Take images that the network was not trained on. An int8
        file needs other thresholds than its network. Export the network again to store them.

        Args:
            images: Images as for `run`.
            labels: Int class of each image.
            max_madds: Most multiply-adds of an image on average, for the best top-1 accuracy.
            max_latency_ms: The same in milliseconds, by the times of `calibrate_latency`.
            max_drop: Most loss of top-1 accuracy against running all steps, for the fewest
                multiply-adds. It is a fraction: 0.002 is 0.2 percentage points.

        Returns:
            List of dicts, the best thresholds at each cost in ascending order: "thresholds",
            "madds" and "top1" of an image on average, "latency_ms" if it was measured, and
            "shares", a dict from each width at which images end, the largest of their path, to the
            share of the images.

        Raises:
            ValueError: If the file does not classify by confidence, not exactly one limit is given,
                no thresholds meet it, or images and labels do not fit.
            ImportError: If this file is used without the package.
        """
        from keras_dsnet.export.threshold_calibration import calibrate

        limits = {"max_madds": max_madds, "max_latency_ms": max_latency_ms, "max_drop": max_drop}
        rows, self.thresholds = calibrate(self, images, labels, **limits)
        return rows

    def run_steps(
        self, image: np.ndarray, thresholds: Sequence[float]
    ) -> tuple[np.ndarray, tuple[int, ...], float]:
        """Runs one image in a file that routes by confidence.

        Args:
            image: As for `run`.
            thresholds: As for `run`.

        Returns:
            The output and the path, as of `run`, and the confidence of the output.
        """
        self._check_task(detector=False)
        inputs = {"image": self._as_input(image), "thresholds": self._as_thresholds(thresholds)}
        results = self._run("tuned", inputs)
        path = tuple(int(width) for width in results["path"])
        return results["output"][0], path, float(results["confidence"][0])

    def _check_task(self, detector):
        if detector != self.is_detector:
            text = "`detect` is for files of detectors, and `run` for others. Received: that of a"
            raise ValueError(f"{text} {'detector' if self.is_detector else 'classifier'}")

    def _run(self, signature, inputs):
        # An interpreter has the memory for one run. Each signature allocates more.
        with self._lock:
            if signature not in self._runners:
                self._runners[signature] = self._signatures.get_signature_runner(signature)
            return self._runners[signature](**inputs)

    def preprocess(self, pixels: np.ndarray) -> np.ndarray:
        """Normalises raw pixels, uint8 `[..., height, width, 3]`, as in training, to float32."""
        preprocessing = self.metadata["preprocessing"]
        mean, std = np.float32(preprocessing["mean"]), np.float32(preprocessing["std"])
        return (pixels.astype("float32") * np.float32(preprocessing["scale"]) - mean) / std

    def _as_input(self, image):
        """Returns an image as the file takes it, with a batch axis."""
        image = np.asarray(image)
        shape, input_type = tuple(self.metadata["input_shape"]), self.metadata["input_type"]
        if image.shape not in (shape, (1, *shape)):
            text = f"{shape}. Received: image.shape={image.shape}"
            raise ValueError(f"`image` must have the shape {text}")
        if input_type == "uint8":
            if image.dtype != np.uint8:
                raise ValueError(f"The file takes raw uint8 pixels. Received: {image.dtype}")
        elif image.dtype == np.uint8:
            image = self.preprocess(image)
        elif image.dtype.kind != "f":
            text = f"Received: an image of {image.dtype}"
            raise ValueError(f"`image` must be raw uint8 pixels or preprocessed floats. {text}")
        else:
            self._check_scale(image)
        return image.reshape(1, *shape).astype(input_type, copy=False)

    def _check_scale(self, image):
        """Raises a ValueError for floats that are not finite or not normalised."""
        high, limit = float(image.max()), self._largest_pixel
        if not np.isfinite(image).all():
            found = float(image[~np.isfinite(image)][0])
            raise ValueError(f"`image` must have finite values. Received: an image with {found}")
        if high > _MOST_RANGES * limit and image.min() >= 0:
            text = f"-{limit:.1f} to {limit:.1f}. Received: floats from {image.min():g} to {high:g}"
            raise ValueError(f"`image` must be uint8 pixels or floats normalised to about {text}")

    def _as_bound(self, bound, name, default):
        """Returns a bound as int32 `[num_gates]`."""
        bound = default if bound is None else bound
        try:
            widths = [operator.index(width) for width in np.ravel(bound).tolist()]
        except TypeError:
            widths = []
        widths = widths * self.num_gates if np.ndim(bound) == 0 else widths
        last = self.metadata["num_widths"] - 1
        if len(widths) != self.num_gates or min(widths) < 0 or max(widths) > last:
            text = f"a width, 0 to {last}, or one for each of {self.num_gates} gates"
            raise ValueError(f"`{name}` must be {text}. Received: {name}={bound!r}")
        return np.array(widths, "int32")

    def _as_thresholds(self, thresholds):
        """Returns thresholds as float32 `[steps - 1]`, or None without routing by confidence."""
        if not self.steps and thresholds is None:
            return None
        if not self.steps:
            text = "files that route by confidence, and this one routes only by its gates"
            raise ValueError(f"`thresholds` are for {text}. Received: thresholds={thresholds!r}")
        count = len(self.steps) - 1
        try:
            values = np.array(np.nan if isinstance(thresholds, str) else thresholds, "float32")
            values = np.full(count, values) if values.ndim == 0 else values
        except (TypeError, ValueError):
            values = np.array([np.nan])
        # A comparison with NaN is false.
        if values.shape != (count,) or not (np.all(values >= 0) and np.all(values <= 1)):
            raise ValueError(
                f"`thresholds` must be {count} numbers from 0 to 1, one for each of the steps "
                f"{self.steps} except the last. Received: thresholds={thresholds!r}"
            )
        return values

    def _bounded_thresholds(self, thresholds, low, high):
        """Returns thresholds with which "tuned" keeps to bounds, or None if no image can go on."""
        within = [step for step in self.steps if max(low) <= step <= min(high)]
        by_confidence = self.metadata["routing"] == "confidence"
        after_start = within[1:] if by_confidence else [step for step in within if step > max(low)]
        if not after_start:
            return None
        if not by_confidence or within[0] != self.steps[0]:
            stored, bounds = self.metadata["thresholds"], f"{low.tolist()} to {high.tolist()}"
            raise ValueError(
                f"Bounds of the start need the thresholds of the file, {stored}: export the "
                "network with others to combine them. Received: thresholds "
                f"{thresholds.tolist()} with widths from {bounds}"
            )
        may_go_on = np.arange(len(thresholds)) < len(within) - 1
        return np.where(may_go_on, thresholds, np.float32(0))


def _sibling(name):
    """Imports another file of this file's folder."""
    return importlib.import_module(f".{name}" if __package__ else name, __package__)


def _check_counts(**counts):
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, numbers.Integral) or count < 1:
            raise ValueError(f"`{name}` must be an int of at least 1. Received: {name}={count!r}")


def routes_of(metadata: dict[str, Any]) -> tuple[int, ...]:
    """Returns the candidate widths of a file's gates, ascending, from its metadata."""
    return tuple(sorted({width for row in metadata["routes"] for width in row["path"]}))


def read_metadata(content: bytes, filename: str | os.PathLike = "the file") -> dict[str, Any]:
    """Returns the metadata of a routed TFLite file, whose name is for messages.

    Raises:
        ValueError: If the content is not a TFLite file, or the file has no routes.
    """
    if content[4:8] != b"TFL3":
        raise ValueError(f"{filename} is not a TFLite file")
    try:
        model = schema.Model.GetRootAsModel(content, 0)
        entries = [model.Metadata(index) for index in range(model.MetadataLength())]
        buffers = [entry.Buffer() for entry in entries if entry.Name() == METADATA_NAME]
        texts = [model.Buffers(index).DataAsNumpy().tobytes() for index in buffers]
        metadata: Any = json.loads(texts[0]) if texts else None
    except (struct.error, ValueError, TypeError, AttributeError, LookupError) as error:
        raise ValueError(f"{filename} is damaged: {error}") from error
    if not texts:
        advice = 'make one by `model.export(..., format="litert")`'
        raise ValueError(f"{filename} is a TFLite file without routes; {advice}")
    fields = set(metadata) if isinstance(metadata, dict) else set()
    if not fields.issuperset(_FIELDS) or metadata.get("format") != FORMAT:
        raise ValueError(f"{filename} is of another version of keras_dsnet; export it again")
    return metadata
