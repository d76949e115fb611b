"""Runs a routed file against the network that it was made of."""

import keras
import numpy as np

from keras_dsnet.models.precision import with_dtype

TOLERANCE = 1e-4


def check_routed(content, network, routes, shape, input_type="float32", quantize=None, images=2):
    """Returns how far each route's outputs are from the network's; 1 is their largest value.

    Args:
        content: bytes of the file.
        network: a `DynamicSlimmableNetwork`.
        routes: tuple of widths. With several gates every uniform path is run, and one on which each
            gate takes another width than the one before it.
        shape: `(height, width, 3)`.
        input_type: "float32" or "uint8".
        quantize: as the file was made; only a float32 file must agree.
        images: int: how many random images to run.

    Returns:
        Dict from path, one width per gate, to the difference.

    Raises:
        ValueError: where a forced route is not taken, or a float32 file differs by more than 1e-4.
    """
    from ai_edge_litert.interpreter import Interpreter

    # Lower precision differs by its own rounding.
    network = with_dtype(network, "float32")
    runner = Interpreter(model_content=content).get_signature_runner("bounded")
    pixels = np.random.default_rng(0).integers(0, 256, (images, *shape), "uint8")
    normalised = network.normalization(pixels)
    inputs = pixels if input_type == "uint8" else normalised
    differences = {}
    for path in checked_paths(routes, network.num_gates):
        bound = np.array(path, "int32")
        results = [runner(image=image[None], min_width=bound, max_width=bound) for image in inputs]
        taken = {tuple(map(int, result["path"])) for result in results}
        if taken != {path}:
            raise ValueError(f"The TFLite file takes the paths {sorted(taken)} instead of {path}")
        expected = keras.ops.convert_to_numpy(network(normalised, path=path))
        outputs = np.concatenate([result["output"] for result in results])
        # Without a classifier the file's features are padded to the widest route's channels.
        outputs = outputs[..., : expected.shape[-1]]
        differences[path] = largest_difference(outputs, expected)
        if quantize is None and not differences[path] <= TOLERANCE:
            raise ValueError(
                f"The TFLite file differs by {differences[path]:.1e} from the network on the path "
                f"{path}; {TOLERANCE:.0e} is allowed. It was not written"
            )
    return differences


def checked_paths(routes, num_gates):
    """Returns the paths that are run: the uniform ones first."""
    uniform = [(route,) * num_gates for route in routes]
    mixed = tuple(routes[gate % len(routes)] for gate in range(num_gates))
    return list(dict.fromkeys([*uniform, mixed]))


def largest_difference(outputs, expected):
    """Returns the largest difference, where 1 is the largest expected value."""
    return float(np.abs(outputs - expected).max() / max(np.abs(expected).max(), 1e-12))
