"""Runs every .tflite file under a folder once; fails if there is none or an output is not finite.

python .ci/check_tflite.py runs/demo
"""

import pathlib
import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def check(path):
    """Runs a file on one random image.

    Args:
        path: a TFLite file with one image as its input.

    Returns:
        The shapes of its outputs.

    Raises:
        ValueError: if an output holds a value that is not finite.
    """
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    for details in interpreter.get_input_details():
        values = np.random.default_rng(0).uniform(-1, 1, details["shape"])
        interpreter.set_tensor(details["index"], values.astype(details["dtype"]))
    interpreter.invoke()
    outputs = [interpreter.get_tensor(it["index"]) for it in interpreter.get_output_details()]
    if not all(np.isfinite(output).all() for output in outputs):
        raise ValueError(f"{path} gives values that are not finite")
    return [output.shape for output in outputs]


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
