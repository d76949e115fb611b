"""Runtime of a routed TFLite file.

This file needs numpy and ai_edge_litert only. Copy it to a device that has no TensorFlow.
"""

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
from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

METADATA_NAME = b"keras_dsnet"
# The version of the metadata, which an export writes.
FORMAT = 1
_FIELDS = ("input_shape", "input_type", "preprocessing", "num_widths", "routes")
# No device has more cores, and LiteRT would start any number of threads.
_MOST_THREADS = 1024
# Floats above this multiple of the largest normalised pixel cannot be normalised pixels.
_MOST_RANGES = 4


class DynamicInterpreter:
    """Runs a routed TFLite file on one image at a time.

    Several threads may share an interpreter; their images then run one after the other.

    Args:
        filename: Path of a file that `model.export(..., format="litert")` wrote.
        num_threads: Number of threads of the runtime, 1 to 1024. Defaults to 1.

    Attributes:
        metadata: Dict of the file's metadata: `input_shape`, `input_type`, `preprocessing`,
            `routes` (path and MAdds of each), `num_widths`, `gates_trained`, `class_names` in the
            order of the outputs or `None`, and more.
        latency_ms: Dict from route to milliseconds, which `calibrate_latency` fills.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file is not a TFLite file or has no routes, or `num_threads` is not such
            a number.

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

    def __init__(self, filename: str | os.PathLike, num_threads: int = 1):
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
        self.latency_ms: dict[int, float] = {}
        try:
            # An interpreter that is made from a path maps the file into memory.
            self._interpreter = Interpreter(model_path=str(filename), num_threads=self.num_threads)
        except ValueError as error:
            raise ValueError(f"{filename} is damaged: {error}") from error
        self._runners: dict[str, Any] = {}
        self._lock = threading.Lock()
        preprocessing = self.metadata["preprocessing"]
        mean, std = np.array(preprocessing["mean"]), np.array(preprocessing["std"])
        self._largest_pixel = float(np.abs([(end - mean) / std for end in (0, 1)]).max())

    @property
    def routes(self) -> tuple[int, ...]:
        """The candidate widths of every gate, ascending."""
        return routes_of(self.metadata)

    @property
    def num_gates(self) -> int:
        """The number of gates, and so of widths in a path."""
        return len(self.metadata["routes"][0]["path"])

    def run(
        self,
        image: np.ndarray,
        min_width: int | Sequence[int] | None = None,
        max_width: int | Sequence[int] | None = None,
        budget_ms: float | None = None,
    ) -> tuple[np.ndarray, tuple[int, ...]]:
        """Runs one image along the path that the gates choose within the bounds.

        Equal bounds force a width. Bounds that hold no route give the nearest route above them, or
        the widest route if there is none above.

        Args:
            image: Array `[height, width, 3]` or `[1, height, width, 3]`: raw uint8 RGB pixels,
                which are normalised as the metadata define. A file that takes floats also takes a
                preprocessed float image.
            min_width: Width, or one width per gate. Defaults to `None`, which sets no bound.
            max_width: Width, or one width per gate. Defaults to `None`, which sets no bound.
            budget_ms: Milliseconds. Bounds the width further, to the widest route whose measured
                latency fits. If none fits, it is the fastest route, with a warning. Needs
                `calibrate_latency`. Defaults to `None`, which sets no bound.

        Returns:
            Tuple of the output, float32 `[classes]`, and the path, a tuple with a width per gate.

        Raises:
            ValueError: If the image or a bound does not fit the file, the budget is not a positive
                number, or no route from `min_width` on fits the budget.
        """
        inputs = {"image": self._as_input(image)}
        signature = "serving_default"
        if min_width is not None or max_width is not None or budget_ms is not None:
            signature = "bounded"
            low = self._as_bound(min_width, "min_width", 0)
            high = self._as_bound(max_width, "max_width", self.routes[-1])
            if budget_ms is not None:
                widest = self.widest_within(budget_ms)
                if max(low) > widest:
                    raise ValueError(
                        f"`min_width` must be at most {widest}, the widest route within "
                        f"{budget_ms!r} ms. Received: min_width={min_width!r}"
                    )
                high = np.minimum(high, widest)
            inputs.update(min_width=low, max_width=high)
        # An interpreter has the memory for one run.
        with self._lock:
            results = self._runner(signature)(**inputs)
        return results["output"][0], tuple(int(width) for width in results["path"])

    def calibrate_latency(self, rounds: int = 5, runs: int = 3) -> dict[int, float]:
        """Measures the median latency of every route on this device.

        The routes alternate. With several gates a route is measured on the path that takes its
        width at every gate.

        Args:
            rounds: Number of turns of each route. Defaults to 5.
            runs: Number of runs in a turn. Their mean is one measurement. Defaults to 3.

        Returns:
            `latency_ms`: dict from route to milliseconds.

        Raises:
            ValueError: If `rounds` or `runs` is not an int of at least 1.
        """
        _check_counts(rounds=rounds, runs=runs)
        image = np.zeros(self.metadata["input_shape"], self.metadata["input_type"])
        latencies: dict[int, list[float]] = {route: [] for route in self.routes}
        for turn in range(rounds + 1):
            for route, of_route in latencies.items():
                start = time.perf_counter()
                for _ in range(runs):
                    self.run(image, min_width=route, max_width=route)
                if turn:  # The first turn allocates memory.
                    of_route.append((time.perf_counter() - start) * 1e3 / runs)
        self.latency_ms = {route: statistics.median(each) for route, each in latencies.items()}
        return self.latency_ms

    def widest_within(self, budget_ms: float) -> int:
        """Returns the widest route whose measured latency is at most `budget_ms`.

        If none fits, it is the fastest route, with a warning.

        Args:
            budget_ms: Milliseconds.

        Raises:
            ValueError: If no latency was measured, or `budget_ms` is not a positive number.
        """
        is_number = isinstance(budget_ms, numbers.Real) and not isinstance(budget_ms, bool)
        # A comparison with NaN is false.
        if not (is_number and budget_ms > 0):
            raise ValueError(
                "`budget_ms` must be a positive number of milliseconds. "
                f"Received: budget_ms={budget_ms!r}"
            )
        if not self.latency_ms:
            raise ValueError("`budget_ms` needs latencies: call `calibrate_latency()` first.")
        fitting = [route for route, latency in self.latency_ms.items() if latency <= budget_ms]
        if fitting:
            return max(fitting)
        fastest = min(self.latency_ms, key=lambda route: self.latency_ms[route])
        warnings.warn(
            f"No route fits `budget_ms`. The fastest, {fastest}, runs instead and takes "
            f"{self.latency_ms[fastest]:.2f} ms. Received: budget_ms={budget_ms!r}",
            stacklevel=3,
        )
        return fastest

    def preprocess(self, pixels: np.ndarray) -> np.ndarray:
        """Normalises raw pixels as in the training of the network.

        Args:
            pixels: uint8 array `[..., height, width, 3]`.

        Returns:
            float32 array of the same shape.
        """
        preprocessing = self.metadata["preprocessing"]
        mean, std = np.float32(preprocessing["mean"]), np.float32(preprocessing["std"])
        return (pixels.astype("float32") * np.float32(preprocessing["scale"]) - mean) / std

    def _as_input(self, image):
        """Returns an image as the file takes it, with a batch axis."""
        image = np.asarray(image)
        shape, input_type = tuple(self.metadata["input_shape"]), self.metadata["input_type"]
        if image.shape not in (shape, (1, *shape)):
            raise ValueError(
                f"`image` must have the shape {shape}. Received: image.shape={image.shape}"
            )
        is_pixels = image.dtype == np.uint8
        if input_type == "uint8":
            if not is_pixels:
                raise ValueError(
                    f"The file takes raw uint8 pixels. Received: an image of {image.dtype}"
                )
        elif is_pixels:
            image = self.preprocess(image)
        elif image.dtype.kind != "f":
            raise ValueError(
                "`image` must be raw uint8 pixels or preprocessed floats. "
                f"Received: an image of {image.dtype}"
            )
        else:
            self._check_scale(image)
        return image.reshape(1, *shape).astype(input_type, copy=False)

    def _check_scale(self, image):
        """Raises a ValueError for floats that are not finite or not normalised."""
        high, limit = float(image.max()), self._largest_pixel
        if not math.isfinite(high):
            raise ValueError(f"`image` must have finite values. Received: an image with {high}")
        if high > _MOST_RANGES * limit and image.min() >= 0:
            raise ValueError(
                f"`image` must be raw uint8 pixels, or floats normalised to about -{limit:.1f} to "
                f"{limit:.1f}. Received: floats from {image.min():g} to {high:g}"
            )

    def _as_bound(self, bound, name, default):
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
        # Each signature allocates memory, so its runner is made at its first run.
        if signature not in self._runners:
            self._runners[signature] = self._interpreter.get_signature_runner(signature)
        return self._runners[signature]


def _check_counts(**counts):
    for name, count in counts.items():
        is_int = isinstance(count, numbers.Integral) and not isinstance(count, bool)
        if not is_int or count < 1:
            raise ValueError(f"`{name}` must be an int of at least 1. Received: {name}={count!r}")


def routes_of(metadata: dict[str, Any]) -> tuple[int, ...]:
    """Returns the candidate widths of a file's gates, ascending.

    Args:
        metadata: Dict as `read_metadata` returns it.
    """
    return tuple(sorted({width for row in metadata["routes"] for width in row["path"]}))


def read_metadata(content: bytes, filename: str | os.PathLike = "the file") -> dict[str, Any]:
    """Returns the metadata of a routed TFLite file.

    Args:
        content: Bytes of the file.
        filename: Name of the file, for messages. Defaults to "the file".

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
    if not fields.issuperset(_FIELDS) or metadata.get("format") != FORMAT:
        raise ValueError(f"{filename} is of another version of keras_dsnet; export it again")
    return metadata
