"""Runs every .tflite file under a folder once; fails if there is none or an output is not finite.

python .ci/check_tflite.py runs/demo
"""

import pathlib
import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def random_input(details):
    """Returns a random image for an input, or the bound 0 of a gate."""
    generator, shape, dtype = np.random.default_rng(0), details["shape"], details["dtype"]
    if dtype == np.int32:
        return np.zeros(shape, dtype)
    if dtype == np.uint8:
        return generator.integers(0, 256, shape, dtype)
    return generator.normal(size=shape).astype(dtype)


def check(path):
    """Runs each signature of a file on one random image.

    Args:
        path: a TFLite file that an export of this package wrote.

    Returns:
        Dict from signature to the shapes of its outputs, by name.

    Raises:
        ValueError: if an output holds a value that is not finite.
    """
    interpreter = Interpreter(model_path=str(path))
    shapes = {}
    for signature in interpreter.get_signature_list():
        runner = interpreter.get_signature_runner(signature)
        inputs = {name: random_input(it) for name, it in runner.get_input_details().items()}
        outputs = runner(**inputs)
        if not all(np.isfinite(output).all() for output in outputs.values()):
            raise ValueError(f"{path} gives values that are not finite by {signature}")
        shapes[signature] = {name: output.shape for name, output in outputs.items()}
    if not shapes:
        raise ValueError(f"{path} has no signature")
    return shapes


def main():
    """Checks the files under the folder named on the command line."""
    folder = pathlib.Path(sys.argv[1])
    paths = sorted(folder.rglob("*.tflite"))
    if not paths:
        sys.exit(f"error: no .tflite file under {folder}")
    for path in paths:
        print(f"{path.relative_to(folder)} runs: outputs {check(path)}")


if __name__ == "__main__":
    main()
