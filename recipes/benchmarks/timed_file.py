"""The program of the process in which `timing.py` runs a TFLite file.

    python timed_file.py serve|load FILE OPTIONS

OPTIONS are the JSON of `RunOptions`. "serve" reads counts of runs from standard input and prints
the mean time of a run; "load" prints what it costs to load the file. It does not import TensorFlow.
"""

import dataclasses
import functools
import importlib.util
import itertools
import json
import pathlib
import re
import resource
import sys
import time

import numpy as np
from ai_edge_litert.interpreter import Interpreter

# Number of runs at the beginning of every turn that are not timed.
UNTIMED = 2
_MEMORY = pathlib.Path("/proc/self/smaps_rollup")
_KINDS = "Anonymous", "AnonHugePages"
_MEBIBYTE = 2.0**20


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How to run a file.

    Attributes:
        threads: Int, number of threads.
        runtime: "interpreter" or "compiled", as of `DynamicInterpreter`, to call the file by its
            signatures: every run copies the image in and the outputs out. None to run the subgraph
            without a signature name on inputs that stay where they are.
        path: Sequence of a width per gate for a staged file, which needs a runtime, else empty.
        widths: Widths of a routed file, of which every pair runs beforehand.
        signatures: Names of the signatures that "load" runs. Empty for the one that "serve" runs.
    """

    threads: int = 1
    runtime: str | None = None
    path: tuple = ()
    widths: tuple = ()
    signatures: tuple = ()


def open_run(filename, options, inputs):
    """Returns a function without arguments that runs a file once.

    Args:
        filename: Path of the file.
        options: `RunOptions`.
        inputs: Dict of arrays, from `random_inputs`. Without a runtime it can be empty.
    """
    opener = _Opener(options)
    opened = opener(filename)
    if options.path:
        return _staged_run(filename, opened, opener, options.path, inputs["image"])
    if options.widths:
        details = _input_details(filename, "bounded")
        _run_pairs(opened.get_signature_runner("bounded"), details, options.widths)
    if options.runtime:
        return functools.partial(opened.get_signature_runner("serving_default"), **inputs)
    opened.allocate_tensors()
    for index, values in inputs.items():
        opened.set_tensor(index, values)
    return opened.invoke


class _Opener:
    """Opens files with the runtime of some options."""

    def __init__(self, options):
        self._options = options

    def __call__(self, filename):
        if self._options.runtime == "compiled":
            compiled = _device_file("compiled_signatures").CompiledSignatures
            return compiled(filename, self._options.threads)
        return Interpreter(model_path=str(filename), num_threads=self._options.threads)

    def open(self, filename):
        """The same as a method, since `StagedFiles` takes a bound method."""
        return self(filename)


def _staged_run(filename, trunk, opener, path, image):
    """Returns a function that runs the trunk and one path of a staged file, as an app would."""
    content = pathlib.Path(filename).read_bytes()
    metadata = _device_file("dynamic_interpreter").read_metadata(content, filename)
    runtime = _device_file("staged_runtime").open_staged(filename, metadata, trunk, opener.open)
    run, bounds = runtime.get_signature_runner("bounded"), np.array(path, "int32")
    # A reference to the opener has to remain, since the runtime has only a weak one.
    return lambda opener=opener: run(image=image, min_width=bounds, max_width=bounds)


def _device_file(name):
    """Imports a file of `keras_dsnet.export` as on a device, without the package."""
    package = importlib.util.find_spec("keras_dsnet").submodule_search_locations[0]
    folder = str(pathlib.Path(package) / "export")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


def random_inputs(filename, options):
    """Returns a dict of the arrays that a file takes.

    Keys are the names of a signature's inputs or, without a runtime, the indices of tensors.
    """
    if options.runtime:
        details = _input_details(filename, "trunk" if options.path else "serving_default")
    else:
        details = {each["index"]: each for each in Interpreter(str(filename)).get_input_details()}
    generator, arrays = np.random.default_rng(0), {}
    for key, tensor in details.items():
        values = generator.normal(size=tensor["shape"])
        if tensor["dtype"] == np.uint8:
            values = generator.integers(0, 256, tensor["shape"])
        arrays[key] = values.astype(tensor["dtype"])
    return arrays


def _input_details(filename, signature):
    return Interpreter(str(filename)).get_signature_runner(signature).get_input_details()


def _run_pairs(runner, details, widths):
    """Runs every width after every width at every gate, also where earlier gates were narrow.

    Args:
        runner: Runner of the signature "bounded".
        details: Details of its inputs.
        widths: Widths of the file.
    """
    image = np.zeros(details["image"]["shape"], details["image"]["dtype"])
    (gates,) = details["min_width"]["shape"]
    for first, then in itertools.product(widths, widths):
        # Paths that alternate between two widths, and paths that change the width at one gate.
        paths = [np.resize([first, then], gates)]
        paths += [np.repeat([first, then], [gate, gates - gate]) for gate in range(1, gates)]
        for path in np.array(paths, "int32"):
            runner(image=image, min_width=path, max_width=path)


def _memory():
    """Returns the kilobytes of this process outside files, and those of them in huge pages."""
    if not _MEMORY.is_file():
        return 0, 0
    text = _MEMORY.read_text(encoding="utf-8")
    return tuple(int(re.search(rf"^{name}: +(\d+)", text, re.M)[1]) for name in _KINDS)


def serve(filename, options):
    """Prints the share of huge pages, then the mean milliseconds of as many runs as it reads."""
    # The memory of imported modules and of the image does not count for the file.
    _import_runtime(options)
    inputs = random_inputs(filename, options)
    before = _memory()
    run = open_run(filename, options, inputs)
    run()
    loaded, huge = (now - then for now, then in zip(_memory(), before))
    print(min(1.0, huge / loaded) if loaded > 0 else 0.0, flush=True)
    for line in sys.stdin:
        # The process of the turn before has left its data in the caches.
        _milliseconds(run, UNTIMED)
        print(_milliseconds(run, int(line)), flush=True)


def _milliseconds(run, count):
    start = time.perf_counter()
    for _ in range(count):
        run()
    return 1e3 * (time.perf_counter() - start) / count


def load(filename, options):
    """Prints the time and the memory that loading and one run take, as JSON."""
    _import_runtime(options)
    inputs = random_inputs(filename, options) if options.runtime else {}
    signatures = {name: _zero_inputs(filename, name) for name in options.signatures}
    before, start = _resident(), time.perf_counter()
    if signatures:
        opened = _Opener(options)(filename)
        _run_signatures(opened, signatures)
        rss = _resident() - before
        took = time.perf_counter() - start
    else:
        run = open_run(filename, options, inputs)
        took = time.perf_counter() - start
        first = _milliseconds(run, 1) / 1e3
        rss = _resident() - before
        if options.runtime:  # The first call of a signature allocates.
            took += first - _milliseconds(run, 1) / 1e3
    print(json.dumps({"init_ms": took * 1e3, "rss_mib": rss / _MEBIBYTE}))


def _run_signatures(opened, inputs):
    """Runs signatures, which share one image, so that a second image is not counted."""
    shared = {name: array for each in inputs.values() for name, array in each.items()}
    for signature, own in inputs.items():
        opened.get_signature_runner(signature)(**{name: shared[name] for name in own})


def _zero_inputs(filename, signature):
    details = _input_details(filename, signature)
    return {name: np.zeros(each["shape"], each["dtype"]) for name, each in details.items()}


def _import_runtime(options):
    if options.runtime == "compiled":
        _device_file("compiled_signatures")


def _resident():
    pages = pathlib.Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
    return int(pages) * resource.getpagesize()


if __name__ == "__main__":
    program = {"serve": serve, "load": load}[sys.argv[1]]
    program(sys.argv[2], RunOptions(**json.loads(sys.argv[3])))
