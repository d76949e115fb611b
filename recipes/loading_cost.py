"""Measures what it takes to load TFLite files. Needs no TensorFlow."""

import json
import pathlib
import subprocess
import sys
import time

import numpy as np

_MEBIBYTE = 2.0**20


def loading_cost(path, threads, signatures=()):
    """Measures in a process of its own what a file takes to load and run once.

    Args:
        path: of the file.
        threads: int.
        signatures: names of the signatures to run; none: what runs without naming one.

    Returns:
        Dict of "init_ms", to the end of the allocation, and "rss_mib": how much resident memory
        the process has gained after the first run.
    """
    command = [sys.executable, __file__, str(path), str(threads), *signatures]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def _measure_loading(path, threads, *signatures):
    from ai_edge_litert.interpreter import Interpreter

    before, start = _resident(), time.perf_counter()
    interpreter = Interpreter(model_path=path, num_threads=int(threads))
    if not signatures:
        interpreter.allocate_tensors()
        took = time.perf_counter() - start
        interpreter.invoke()
    arrays = {}
    for signature in signatures:
        runner = interpreter.get_signature_runner(signature)
        took = time.perf_counter() - start
        details = runner.get_input_details()
        for name, own in details.items():
            # The caller's image is no cost of another signature.
            arrays.setdefault(name, np.zeros(own["shape"], own["dtype"]))
        runner(**{name: arrays[name] for name in details})
    print(json.dumps({"init_ms": took * 1e3, "rss_mib": (_resident() - before) / _MEBIBYTE}))


def _resident():
    pages = pathlib.Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
    import resource

    return int(pages) * resource.getpagesize()


if __name__ == "__main__":
    _measure_loading(*sys.argv[1:])
