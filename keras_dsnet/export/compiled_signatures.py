"""Signatures of a TFLite file on LiteRT's CompiledModel.

This file needs numpy and ai_edge_litert only. Copy it beside `dynamic_interpreter.py` to a device
that has no TensorFlow and uses CompiledModel.
"""

import os
from collections.abc import Callable

import numpy as np
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.options import CpuOptions, Options
from ai_edge_litert.tensor_buffer import TensorBuffer


class CompiledSignatures:
    """Opens a TFLite file with CompiledModel on the CPU, with XNNPACK.

    Args:
        filename: Path of the file.
        num_threads: Integer, number of threads. Defaults to 1.

    Raises:
        ValueError: If the runtime cannot read the file.
    """

    def __init__(self, filename: str | os.PathLike, num_threads: int = 1):
        options = Options(cpu_options=CpuOptions(num_threads=num_threads))
        try:
            self._model = CompiledModel.from_file(str(filename), options=options)
        except RuntimeError as error:
            raise ValueError(str(error)) from error

    def get_signature_runner(self, signature: str) -> Callable:
        """Returns a function from a signature's inputs, by keyword, to a dict of its outputs.

        Outputs with names that start with "features" are `TensorBuffer`s, which are valid until the
        next call. All others are arrays. Inputs may be either.

        Args:
            signature: Name of the signature.
        """
        names = self._model.get_signature_list()[signature]
        inputs = {
            name: self._model.create_input_buffer_by_name(signature, name)
            for name in names["inputs"]
        }
        outputs = {
            name: self._model.create_output_buffer_by_name(signature, name)
            for name in names["outputs"]
        }
        details = self._model.get_output_tensor_details(signature)

        def run(**arrays):
            given = dict(inputs)
            for name, array in arrays.items():
                if isinstance(array, TensorBuffer):
                    given[name] = array
                else:
                    inputs[name].write(np.ascontiguousarray(array))
            self._model.run_by_name(signature, given, outputs)
            # Features only pass from one signature to the next, so they are not copied.
            return {
                name: buffer if name.startswith("features") else _read(buffer, details[name])
                for name, buffer in outputs.items()
            }

        return run


def _read(buffer, details):
    shape = tuple(map(int, details["shape"]))
    return buffer.read(int(np.prod(shape)), np.dtype(details["dtype"]).type).reshape(shape)
