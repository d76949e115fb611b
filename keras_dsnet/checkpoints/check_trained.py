"""Tells the weights of a trained network from those of a new or a damaged one."""

import numpy as np

from keras_dsnet.utils import UserError

# Trained weights and statistics of normalised images stay far below.
_LARGEST_WEIGHT, _LARGEST_STATISTIC = 1e4, 1e12


def check_trained(path, tensors, classes=None):
    """Checks what a file whose checksum nobody knows must have: plausible values.

    Names, shapes and finite values are checked where the tensors are read and assigned.

    Args:
        path: what messages name.
        tensors: dictionary from a tensor's name in the authors' code to its array.
        classes: int: rows of the classifier; None: any number.

    Raises:
        UserError: a kernel is constant, a variance is negative, a value is far too large, the
            statistics are those of a network that has seen no image, or the classes are others.
    """
    rows = len(tensors.get("classifier.bias", ()))
    if classes is not None and rows != classes:
        raise UserError(
            f"the checkpoint {path} is of {rows} classes instead of {classes}: it is another file"
        )
    for name, tensor in tensors.items():
        fault = _fault(name, tensor)
        if fault:
            raise UserError(
                f"the checkpoint {path} does not hold a trained network: its tensor '{name}' "
                f"{fault}"
            )
    means = [tensor for name, tensor in tensors.items() if name.endswith("running_mean")]
    variances = [tensor for name, tensor in tensors.items() if name.endswith("running_var")]
    if means and not any(map(np.any, means)) and all(np.all(v == 1) for v in variances):
        raise UserError(
            f"the checkpoint {path} does not hold a trained network: its batch-norm statistics "
            "are those of a network that has seen no image"
        )


def _fault(name, tensor):
    if name.endswith("num_batches_tracked") or not tensor.size:
        return None
    values = tensor.astype("float32")
    largest = _LARGEST_STATISTIC if "running_" in name else _LARGEST_WEIGHT
    if np.abs(values).max() > largest:
        return f"has the value {values.flat[np.abs(values).argmax()]:.3g}"
    # Of a channel that is never active the average sinks to zero.
    if name.endswith("running_var") and values.min() < 0:
        return f"has the variance {values.min():.3g}"
    # Gates may start at zero and stay there where they are not trained.
    is_kernel = values.ndim >= 2 and values.size > 1 and ".gate." not in name
    if is_kernel and values.min() == values.max():
        return f"is {values.flat[0]:.3g} everywhere"
    return None
