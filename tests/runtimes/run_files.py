"""Runs routed files on the runtime of one environment.

    python run_files.py API FOLDER NAME...

This program needs numpy and a runtime only. For each file it prints a line of JSON: how many runs
took another path than expected, and the largest difference of an output, where 1 is the largest
expected value. A file that ends the process has no line.
"""

import functools
import json
import pathlib
import sys
import tempfile

import numpy as np

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
# At the end, so that no file there hides a package.
sys.path.append(str(REPOSITORY / "keras_dsnet" / "export"))


class _Interpreter:
    """Signatures of a file on an interpreter, which arrays go in and come out of."""

    def __init__(self, interpreter, filename):
        self._interpreter = interpreter(model_path=str(filename), num_threads=1)

    def get_signature_runner(self, signature):
        runner = self._interpreter.get_signature_runner(signature)
        # Arrays of some runtimes are views that the next run overwrites.
        return lambda **inputs: {name: np.array(a) for name, a in runner(**inputs).items()}


def openers(api, folder):
    """Returns the functions that open a file in turn; all of them must give the same results.

    Args:
        api: "interpreter" and "compiled" of `ai_edge_litert`, "cached" for "compiled" with
            XNNPACK's weight cache, or "tensorflow".
        folder: of the cache.
    """
    if api == "interpreter":
        from ai_edge_litert.interpreter import Interpreter

        return [functools.partial(_Interpreter, Interpreter)]
    if api == "tensorflow":
        import tensorflow as tf

        return [functools.partial(_Interpreter, tf.lite.Interpreter)]
    import compiled_signatures

    if api == "compiled":
        return [compiled_signatures.CompiledSignatures]
    options = compiled_signatures.CpuOptions

    def open_cached(filename):
        cache = pathlib.Path(folder) / f"{filename.name}.cache"
        compiled_signatures.CpuOptions = functools.partial(
            options, xnnpack_weight_cache_path=str(cache)
        )
        return compiled_signatures.CompiledSignatures(filename)

    # The first writes the cache, the second reads it.
    return [open_cached, open_cached]


def run_calls(signatures, calls, images):
    """Returns the `(outputs, paths)` of each call: arrays with a row for each image.

    Args:
        signatures: of the file, with a method `get_signature_runner`.
        calls: list of dicts with a signature and its inputs other than the image.
        images: `[count, height, width, 3]`.
    """
    results = []
    for call in calls:
        runner = signatures.get_signature_runner(call["signature"])
        inputs = {
            name: np.array(values, "float32" if name == "thresholds" else "int32")
            for name, values in call["inputs"].items()
        }
        rows = [runner(image=image[None], **inputs) for image in images]
        results.append(tuple(np.stack([row[name] for row in rows]) for name in ("output", "path")))
    return results


def signatures_of(opened, metadata):
    """Returns the signatures of an opened file, as those of a routed file in every layout."""
    if metadata["layout"] != "staged":
        return opened
    from staged_runtime import StagedRuntime

    return StagedRuntime(metadata, opened.get_signature_runner)


def compare(results, expected):
    """Returns the number of runs on another path, and the largest difference of an output.

    An output is compared where the path is the expected one. Not a number is a difference of
    infinity.
    """
    paths, difference = 0, 0.0
    for (outputs, taken), (wanted, path) in zip(results, expected, strict=True):
        same = (taken == path).all(-1)
        paths += int((~same).sum())
        scale = np.abs(wanted).max()
        differences = np.abs(outputs - wanted)[same] / scale
        differences = np.where(np.isfinite(differences), differences, np.inf)
        difference = max(difference, float(differences.max(initial=0.0)))
    return paths, difference


def main(api, folder, *names):
    folder = pathlib.Path(folder)
    with tempfile.TemporaryDirectory() as caches:
        ways = openers(api, caches)
        print(json.dumps({"started": api}), flush=True)
        for name in names:
            description = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            with np.load(folder / f"{name}.npz") as data:
                images = data["images"]
                expected = [
                    (data[f"output_{i}"], data[f"path_{i}"])
                    for i in range(len(description["calls"]))
                ]
            row = {"file": name, "paths": 0, "difference": 0.0}
            try:
                for open_file in ways:
                    opened = open_file(folder / f"{name}.tflite")
                    signatures = signatures_of(opened, description["metadata"])
                    results = run_calls(signatures, description["calls"], images)
                    paths, difference = compare(results, expected)
                    row["paths"] = max(row["paths"], paths)
                    row["difference"] = max(row["difference"], difference)
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
