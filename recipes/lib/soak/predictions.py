"""Routed predictions of many threads on one network, compared with those of one thread."""

import gc
import os
import pathlib
import threading
import time

import numpy as np

ROUTINGS = ("gate", "confidence", "gate+confidence")
LARGEST_BATCH = 33
_BATCHES = 200
_IMAGES = 256
# Outputs of the same batch are equal bit for bit on one thread of TensorFlow.
_TOLERANCE = 1e-6
_WARM_UP = 0.1
_COPIES = 3
# A leak keeps more than a page for each prediction, and more than allocators keep in all.
_LEAK_BYTES = 4096.0
_LEAK_MEBIBYTES = 32.0


def run_predictions(results, folder, network, count, num_threads, seed):
    """Runs the predictions by each routing of a network, and of its exported files.

    Args:
        results: `Results`, which keeps the rows.
        folder: Path of a folder for the exported files.
        network: `DynamicSlimmableNetwork` with trained gates.
        count: Int, predictions by each routing.
        num_threads: Int.
        seed: Int.
    """
    images = make_images(network, seed)
    run_of_network(results, network, images, count, num_threads, seed)
    run_first_calls(results, network, images, num_threads, seed)
    run_of_files(results, folder, network, images, count, num_threads, seed)


def run_of_network(results, network, images, count, num_threads, seed):
    """Runs the predictions of a network by each routing; see `run_predictions`."""
    for index, routing in enumerate(ROUTINGS):
        subject = f"network, {routing}"
        if results.find("predictions", subject, 0) is None:
            network.routing = routing
            batches = _random_batches(images, LARGEST_BATCH, count, [seed, index])
            row = _compare(_Network(network), batches, count, num_threads, seed)
            traces = {"new_traces": row.pop("counter")}
            results.add(_row(subject, row, traces))


def run_first_calls(results, network, images, num_threads, seed):
    """Lets all threads call new copies of a network at once, which trace while others predict.

    A function that several threads need at the same time must be traced once.
    """
    subject = "network, first calls"
    if results.find("predictions", subject, 0) is not None:
        return
    network.routing = "gate+confidence"
    batches = _random_batches(images, LARGEST_BATCH, num_threads, [seed, len(ROUTINGS)])
    # One thread makes the traces of this routing only, as the copies do.
    reference = _copy(network)
    copies = []
    for _ in range(_COPIES):
        call = _Network(_copy(network))
        row = _compare(call, batches, 4 * num_threads, num_threads, seed, reference)
        row["counter"] -= reference.trace_count
        copies.append(row)
    # Traces take memory, which is not kept per prediction.
    left_out = "failures", "memory_growth", "bytes_per_prediction"
    row = {name: max(copy[name] for copy in copies) for name in copies[0] if name not in left_out}
    row["failures"] = [failure for copy in copies for failure in copy["failures"]]
    extra = {"double_traces": max(0, row.pop("counter"))}
    results.add(_row(subject, row, extra))


def _copy(network):
    copy = type(network).from_config(network.get_config())
    copy.set_weights(network.get_weights())
    return copy


def run_of_files(results, folder, network, images, count, num_threads, seed):
    """Runs the predictions of a network's files; see `run_predictions`."""
    for routing in ROUTINGS[:2]:
        for shared in (True, False):
            subject = f"file, {routing}, " + ("one interpreter" if shared else "one per thread")
            if results.find("predictions", subject, 0) is None:
                path = pathlib.Path(folder) / f"{routing}.tflite"
                if not path.exists():
                    network.export(path, format="litert", routing=routing, verbose=False)
                batches = _random_batches(images, 1, count, [seed])
                call = _File(path, shared)
                row = _compare(call, batches, count, num_threads, seed)
                row.pop("counter")
                results.add(_row(subject, row, {}))


def make_images(network, seed):
    """Returns preprocessed pictures of squares, from coarse to fine, for many different choices."""
    generator = np.random.default_rng(seed)
    height, width = (side or 32 for side in network.input_shape[1:3])
    pictures = []
    for _ in range(_IMAGES):
        count = int(generator.integers(2, height + 1))
        squares = generator.integers(0, 256, (count, count, 3))
        rows, columns = np.arange(height) * count // height, np.arange(width) * count // width
        pictures.append(squares[rows][:, columns])
    return np.asarray(network.preprocess_input(np.stack(pictures).astype("uint8")), "float32")


def _random_batches(images, largest, count, seed):
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, largest + 1, min(_BATCHES, count))
    return [images[generator.integers(0, len(images), size)] for size in sizes]


class _Network:
    """Calls a network. Its counter is the number of traces."""

    def __init__(self, network):
        self._network = network

    def __call__(self, batch):
        logits, paths = self._network.run_dynamic(batch)
        return logits.numpy(), paths.numpy()

    def counter(self):
        return self._network.trace_count


class _File:
    """Runs a file, by one interpreter or by one for each thread."""

    def __init__(self, path, shared):
        self._path, self._local = path, threading.local()
        self._shared = self._open() if shared else None

    def _open(self):
        from keras_dsnet.export import DynamicInterpreter

        return DynamicInterpreter(self._path)

    def __call__(self, batch):
        interpreter = self._shared or getattr(self._local, "interpreter", None)
        if interpreter is None:
            interpreter = self._local.interpreter = self._open()
        output, path = interpreter.run(batch[0])
        return output, np.array(path)

    def counter(self):
        return 0


def _compare(call, batches, count, num_threads, seed, reference=None):
    """Returns how the results of many threads differ from those of one, and what they cost.

    The one thread calls the network `reference` where it is given.
    """
    alone = call if reference is None else _Network(reference)
    expected = [alone(batch) for batch in batches]
    widths = np.unique(np.concatenate([np.ravel(paths) for _, paths in expected]))
    before = call.counter()
    memory = _Memory(count)
    threads = [
        _Caller(call, batches, expected, memory, [seed, number], number)
        for number in range(num_threads)
    ]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - began
    failures = [str(thread.failure) for thread in threads if thread.failure]
    row = {
        "predictions": memory.done,
        "widths": len(widths),
        "difference": max(thread.difference for thread in threads),
        "other_paths": sum(thread.other_paths for thread in threads),
        "counter": call.counter() - before,
        "seconds": seconds,
        **memory.growth(),
    }
    return {**row, "failures": failures}


class _Caller(threading.Thread):
    """A thread that predicts batches in random order until all predictions are done."""

    def __init__(self, call, batches, expected, memory, seed, number):
        super().__init__(name=f"caller {number}")
        self._call, self._batches, self._expected = call, batches, expected
        self._memory, self._generator = memory, np.random.default_rng(seed)
        self.difference, self.other_paths, self.failure = 0.0, 0, None

    def run(self):
        try:
            while self._memory.take():
                index = int(self._generator.integers(len(self._batches)))
                outputs, paths = self._call(self._batches[index])
                own, own_paths = self._expected[index]
                self.other_paths += int(np.sum(paths != own_paths))
                self.difference = max(self.difference, float(np.abs(outputs - own).max()))
        except Exception as error:
            self.failure = error


class _Memory:
    """Counts the predictions of all threads, and the resident memory after some of them."""

    _POINTS = 20

    def __init__(self, count):
        self._count, self._lock, self.done = count, threading.Lock(), 0
        self._started, self._samples = 0, []

    def take(self):
        """Returns whether there is one more prediction to do; the one before it is done."""
        with self._lock:
            if self._started >= self._count:
                return False
            self._started += 1
            self.done = self._started
            if self._started % max(1, self._count // self._POINTS) == 0:
                gc.collect()
                self._samples.append((self._started, resident_bytes()))
            return True

    def growth(self):
        """Returns the growth of the memory after a tenth of the predictions, and its slope."""
        late = [sample for sample in self._samples if sample[0] >= _WARM_UP * self._count]
        if len(late) < 2:
            return {"memory_growth": 0.0, "bytes_per_prediction": 0.0}
        steps, sizes = np.array(late, "float64").T
        # The second half shows a leak; a cache that fills up ends there.
        half = len(late) // 2
        slope = np.polyfit(steps[half:], sizes[half:], 1)[0] if len(late) - half > 1 else 0.0
        grown = (sizes[-1] - sizes[0]) / 2**20
        return {"memory_growth": float(grown), "bytes_per_prediction": float(slope)}


def resident_bytes():
    """Returns the resident memory of this process."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _row(subject, row, counts):
    problems = [f"a thread ended with {failure}" for failure in row.pop("failures")]
    if row["other_paths"]:
        problems.append(f"{row['other_paths']} widths differ from those of one thread")
    if row["difference"] > _TOLERANCE:
        problems.append(f"outputs differ by {row['difference']:.2g} from those of one thread")
    for name, text in (("new_traces", "new traces"), ("double_traces", "traces made twice")):
        if counts.get(name):
            problems.append(f"{counts[name]} {text}")
    kept, grown = row.get("bytes_per_prediction", 0.0), row.get("memory_growth", 0.0)
    if kept > _LEAK_BYTES and grown > _LEAK_MEBIBYTES:
        problems.append(f"each prediction keeps {kept:.0f} bytes")
    base = {"part": "predictions", "subject": subject, "round": 0}
    return {**base, **row, **counts, "problems": problems}
