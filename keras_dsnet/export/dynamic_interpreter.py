"""Runs a routed TFLite file. Needs numpy and ai_edge_litert alone, so a device can have it too."""

import json
import math
import numbers
import operator
import os
import pathlib
import statistics
import struct
import threading
import time
import warnings

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

METADATA_NAME = b"keras_dsnet"
_FORMAT = 1
_FIELDS = ("input_shape", "input_type", "preprocessing", "num_widths", "routes")
# A processor has fewer cores; the runtime starts as many threads as it is told.
_MOST_THREADS = 1024
# Normalised pixels are at most so many times as large as the largest of them.
_MOST_RANGES = 4


class DynamicInterpreter:
    """A routed TFLite file, ready to run image by image.

    Several threads may use it; their images run one after the other.

    Args:
        filename: of a file that `model.export(..., format="litert")` wrote.
        num_threads: int, 1 to 1024.

    Attributes:
        metadata: dict: what the file says of itself: `input_shape`, `input_type`, `preprocessing`,
            `routes` (for each its path and MAdds), `num_widths`, `gates_trained`, `class_names` in
            the order of the outputs, or None, and more.
        latency_ms: dict from route to milliseconds, filled by `calibrate_latency`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no TFLite file, or none with routes; or `num_threads` is no such int.

    Example:

    >>> interpreter = DynamicInterpreter("m.tflite")
    >>> output, path = interpreter.run(pixels)
    >>> interpreter.calibrate_latency()
    >>> output, path = interpreter.run(pixels, budget_ms=5.0)
    """

    def __init__(self, filename, num_threads=1):
        _check_counts(num_threads=num_threads)
        if num_threads > _MOST_THREADS:
            raise ValueError(
                f"`num_threads` must be at most {_MOST_THREADS}. Received: "
                f"num_threads={num_threads!r}"
            )
        if not isinstance(filename, (str, os.PathLike)):
            raise ValueError(
                "`filename` must be the path of a TFLite file. Received: "
                f"filename={filename!r}, of type {type(filename).__name__}"
            )
        self.metadata = read_metadata(pathlib.Path(filename).read_bytes(), filename)
        self.num_threads = int(num_threads)
        self.latency_ms = {}
        try:
            # By its name, so that the interpreter maps the file into memory.
            self._interpreter = Interpreter(model_path=str(filename), num_threads=self.num_threads)
        except ValueError as error:
            raise ValueError(f"{filename} is damaged: {error}") from error
        self._runners = {}
        self._lock = threading.Lock()
        how = self.metadata["preprocessing"]
        ends = [(end - np.array(how["mean"])) / np.array(how["std"]) for end in (0, 1)]
        self._most = float(np.abs(ends).max())

    @property
    def routes(self):
        """The widths that a gate may choose, ascending."""
        return routes_of(self.metadata)

    @property
    def num_gates(self):
        """How many widths a path has."""
        return len(self.metadata["routes"][0]["path"])

    def run(self, image, min_width=None, max_width=None, budget_ms=None):
        """Runs one image along the path that the gates choose within the bounds.

        Args:
            image: `[height, width, 3]`, or that with a leading 1: raw uint8 pixels, RGB, which are
                normalised as the file says; or, if the file takes floats, a preprocessed float
                image.
            min_width: int, or one per gate; None: no bound.
            max_width: int, or one per gate; None: no bound. Equal bounds force a width; bounds that
                hold no route give the nearest route above, else the widest.
            budget_ms: float: bounds the width further, to the widest route whose measured latency
                fits, or to the fastest route, with a warning, where none does; needs
                `calibrate_latency`.

        Returns:
            `(output, path)`: float32 `[classes]`, and a tuple with a width per gate.

        Raises:
            ValueError: on an image or bounds that do not fit the file, or a budget that is no
                positive number or below the latency of the routes from `min_width` on.
        """
        inputs = {"image": self._as_input(image)}
        signature = "serving_default"
        if min_width is not None or max_width is not None or budget_ms is not None:
            signature = "bounded"
            low = self._bounds(min_width, "min_width", 0)
            high = self._bounds(max_width, "max_width", self.routes[-1])
            if budget_ms is not None:
                widest = self.widest_within(budget_ms)
                if max(low) > widest:
                    raise ValueError(
                        f"`min_width` must be at most {widest}, the widest route within "
                        f"{budget_ms!r} ms. Received: min_width={min_width!r}"
                    )
                high = np.minimum(high, widest)
            inputs.update(min_width=low, max_width=high)
        # An interpreter has the memory of one run.
        with self._lock:
            results = self._runner(signature)(**inputs)
        return results["output"][0], tuple(int(width) for width in results["path"])

    def calibrate_latency(self, rounds=5, runs=3):
        """Measures every route on this device, alternating, and keeps the medians.

        With several gates a route's path is its width at every gate.

        Args:
            rounds: int: how often each route has its turn.
            runs: int: how many runs make a turn, which counts by their mean.

        Returns:
            Dict from route to milliseconds, as `latency_ms`.

        Raises:
            ValueError: if `rounds` or `runs` is no int or below 1.
        """
        _check_counts(rounds=rounds, runs=runs)
        shape, kind = self.metadata["input_shape"], self.metadata["input_type"]
        image = np.zeros(shape, kind)
        times = {route: [] for route in self.routes}
        for turn in range(rounds + 1):
            for route, own in times.items():
                start = time.perf_counter()
                for _ in range(runs):
                    self.run(image, min_width=route, max_width=route)
                if turn:  # The first turn allocates.
                    own.append((time.perf_counter() - start) * 1e3 / runs)
        self.latency_ms = {route: statistics.median(own) for route, own in times.items()}
        return self.latency_ms

    def widest_within(self, budget_ms):
        """Returns the widest route whose measured latency is at most `budget_ms`.

        Where none fits it is the fastest route, with a warning.

        Raises:
            ValueError: without measured latencies, or if `budget_ms` is no positive number.
        """
        is_number = isinstance(budget_ms, numbers.Real) and not isinstance(budget_ms, bool)
        # NaN compares as False.
        if not (is_number and budget_ms > 0):
            raise ValueError(
                "`budget_ms` must be a positive number of milliseconds. "
                f"Received: budget_ms={budget_ms!r}"
            )
        if not self.latency_ms:
            raise ValueError("`budget_ms` needs latencies: call `calibrate_latency()` first.")
        fitting = [route for route, latency in self.latency_ms.items() if latency <= budget_ms]
        if not fitting:
            fastest = min(self.latency_ms, key=self.latency_ms.get)
            warnings.warn(
                f"No route fits `budget_ms`: the fastest, {fastest}, is taken, which takes "
                f"{self.latency_ms[fastest]:.2f} ms. Received: budget_ms={budget_ms!r}",
                stacklevel=3,
            )
            return fastest
        return max(fitting)

    def preprocess(self, pixels):
        """Normalises raw uint8 pixels `[..., height, width, 3]` as the network was trained."""
        how = self.metadata["preprocessing"]
        mean, std = np.float32(how["mean"]), np.float32(how["std"])
        return (pixels.astype("float32") * np.float32(how["scale"]) - mean) / std

    def _as_input(self, image):
        image = np.asarray(image)
        shape, wanted = tuple(self.metadata["input_shape"]), self.metadata["input_type"]
        if image.shape not in (shape, (1, *shape)):
            raise ValueError(
                f"`image` must have the shape {shape}. Received: image.shape={image.shape}"
            )
        if image.dtype == np.uint8 and wanted == "float32":
            image = self.preprocess(image)
        elif image.dtype != np.uint8 and wanted == "uint8":
            raise ValueError(
                f"The file takes raw uint8 pixels. Received: an image of {image.dtype}"
            )
        elif image.dtype.kind != "f" and wanted == "float32":
            raise ValueError(
                "`image` must be raw uint8 pixels or preprocessed floats. "
                f"Received: an image of {image.dtype}"
            )
        elif wanted == "float32":
            self._check_scale(image)
        return image.reshape(1, *shape).astype(wanted, copy=False)

    def _check_scale(self, image):
        """Raises a ValueError on floats that are no numbers, or pixels that are not normalised."""
        high = float(image.max())
        if not math.isfinite(high):
            raise ValueError(f"`image` must have finite values. Received: an image with {high}")
        if high > _MOST_RANGES * self._most and image.min() >= 0:
            raise ValueError(
                f"`image` must be raw uint8 pixels, or floats normalised to about "
                f"-{self._most:.1f} to {self._most:.1f}. Received: floats from {image.min():g} to "
                f"{high:g}"
            )

    def _bounds(self, bound, name, default):
        """Returns a bound as int32 `[num_gates]`."""
        if bound is None:
            bound = default
        try:
            widths = [operator.index(width) for width in np.ravel(bound).tolist()]
        except TypeError:
            widths = []
        widths = widths * self.num_gates if np.ndim(bound) == 0 else widths
        last = self.metadata["num_widths"] - 1
        if len(widths) != self.num_gates or min(widths) < 0 or max(widths) > last:
            raise ValueError(
                f"`{name}` must be a width, 0 to {last}, or one for "
                f"each of {self.num_gates} gates. Received: {name}={bound!r}"
            )
        return np.array(widths, "int32")

    def _runner(self, signature):
        # Made when first used: each signature has memory of its own.
        if signature not in self._runners:
            self._runners[signature] = self._interpreter.get_signature_runner(signature)
        return self._runners[signature]


def _check_counts(**counts):
    for name, count in counts.items():
        whole = isinstance(count, numbers.Integral) and not isinstance(count, bool)
        if not whole or count < 1:
            raise ValueError(f"`{name}` must be an int of at least 1. Received: {name}={count!r}")


def routes_of(metadata):
    """Returns the widths that a gate may choose, ascending; of what `read_metadata` returns."""
    return tuple(sorted({width for row in metadata["routes"] for width in row["path"]}))


def read_metadata(content, filename="the file"):
    """Returns what a routed TFLite file says of itself.

    Args:
        content: its bytes.
        filename: for the error.

    Raises:
        ValueError: it is no TFLite file, or none with routes.
    """
    if content[4:8] != b"TFL3":
        raise ValueError(f"{filename} is no TFLite file")
    try:
        model = schema.Model.GetRootAsModel(content, 0)
        entries = [model.Metadata(index) for index in range(model.MetadataLength())]
        buffers = [entry.Buffer() for entry in entries if entry.Name() == METADATA_NAME]
        texts = [model.Buffers(index).DataAsNumpy().tobytes() for index in buffers]
    except (struct.error, ValueError) as error:
        raise ValueError(f"{filename} is damaged: {error}") from error
    if not texts:
        raise ValueError(
            f"{filename} is a TFLite file without routes; "
            'make one by `model.export(..., format="litert")`'
        )
    try:
        metadata = json.loads(texts[0])
    except ValueError as error:
        raise ValueError(f"{filename} is damaged: {error}") from error
    fields = set(metadata) if isinstance(metadata, dict) else set()
    if not fields.issuperset(_FIELDS) or metadata.get("format") != _FORMAT:
        raise ValueError(f"{filename} is of another version of keras_dsnet; export it again")
    return metadata
