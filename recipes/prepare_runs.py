"""The ways to run a stack, on TensorFlow and on LiteRT, ready to be timed and known to be equal."""

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from keras_dsnet.export.conversion import convert

TOLERANCE = 1e-4


def prepare_runs(engine, stack, image, methods, threads=1):
    """Returns a function without arguments for each way to run a stack.

    Args:
        engine: "TensorFlow" or "LiteRT"; the latter with XNNPACK.
        stack: a `ResNetStack`.
        image: float32 array `[1, height, width, 3]`.
        methods: names of ways to run it.
        threads: of LiteRT; TensorFlow's are a setting of the process.

    Raises:
        ValueError: the features of a way to run differ by more than 1e-4 of their largest value
            from the individual network's; "full" has features of its own.
    """
    expected = stack.individual(tf.constant(image)).numpy()
    runs = {}
    for method in methods:
        inputs = {"image": image, **stack.choices(method)}
        runs[method], features = _ENGINES[engine](getattr(stack, method), inputs, threads)
        if method != "full":
            _check_equal(f"{method} on {engine}", features, expected)
    return runs


def _check_equal(name, features, expected):
    """Raises an error unless features are the expected ones, and zero where there are more."""
    padding = features.shape[-1] - expected.shape[-1]
    difference = np.abs(features - np.pad(expected, ((0, 0), (0, padding)))).max()
    difference /= np.abs(expected).max()
    if not difference <= TOLERANCE:
        raise ValueError(
            f"The features of {name} differ by {difference:.1e} from those of the individual "
            f"network; {TOLERANCE:.0e} is allowed"
        )


def _on_tensorflow(function, inputs, _):
    traced = tf.function(function, autograph=False)
    tensors = {name: tf.constant(value) for name, value in inputs.items()}

    def run():
        return traced(**tensors).numpy()

    return run, run()


def _on_litert(function, inputs, threads):
    specs = {name: tf.TensorSpec(value.shape, value.dtype) for name, value in inputs.items()}
    # AutoGraph has nothing to rewrite in a stack, and takes long to find out.
    plain = tf.autograph.experimental.do_not_convert(function)
    content = convert(lambda **tensors: {"features": plain(**tensors)}, specs)
    interpreter = Interpreter(model_content=content, num_threads=threads)
    features = interpreter.get_signature_runner("serving_default")(**inputs)["features"]
    # The inputs stay where they are; a view of the outputs would forbid to invoke again.
    return interpreter.invoke, features.copy()


_ENGINES = {"TensorFlow": _on_tensorflow, "LiteRT": _on_litert}
