"""Predictions in the names of their classes."""

import operator
from collections.abc import Mapping, Sequence, Set
from typing import Any

import keras
import numpy as np

_IMAGENET_CLASSES = 1000
# Float16 softmax may round to just above 1.
_ROUNDING = 1e-3


def check_class_names(names: Sequence[Any] | None, classes: int) -> tuple[str, ...] | None:
    """Returns `names` as a tuple of str.

    Args:
        names: Sequence of str or numbers, one per class in the order of the class indices, or None.
        classes: Int.

    Raises:
        ValueError: If the number of names is not `classes`, `names` has no order, or a name is
            empty or contains a line break, which a file of labels cannot hold.
    """
    if names is None:
        return None
    if isinstance(names, (str, bytes, Mapping, Set)):
        raise ValueError(
            "`class_names` must be a sequence of names in the order of the class indices. "
            f"Received: class_names={names!r}"
        )
    try:
        checked = tuple(_as_name(name) for name in names)
    except TypeError:
        raise ValueError(
            "`class_names` must be a sequence of str, in the order of the class indices. "
            f"Received: class_names={names!r}"
        ) from None
    if len(checked) != classes:
        raise ValueError(
            f"`class_names` must name each of the {classes} classes. Received: {len(checked)} names"
        )
    for index, name in enumerate(checked):
        if not name.strip() or name.splitlines() != [name]:
            raise ValueError(
                "Every name in `class_names` must be one line of text. "
                f"Received: {name!r} for class {index}"
            )
    return checked


def _as_name(name):
    if isinstance(name, bytes):
        return name.decode()
    if isinstance(name, (str, int, float, np.generic)) and not isinstance(name, bool):
        return str(name)
    raise TypeError(name)


def decode_predictions(
    probabilities: Any, top: int = 5, class_names: Sequence[str] | None = None
) -> list[list[tuple]]:
    """Names the most probable classes of each image.

    The names of ImageNet are those of Keras, which downloads them on first use.

    Args:
        probabilities: Array or tensor `[batch, classes]`, the output of a network with softmax.
        top: Int, number of classes to name per image. All classes if there are fewer.
        class_names: Sequence of str, the name of each class by its index, such as
            `network.class_names`. Defaults to the names of ImageNet's 1000 classes.

    Returns:
        For each image a list of `(id, name, probability)`, most probable first. The id is the class
        index as a str, or the WordNet id for the names of ImageNet.

    Raises:
        ValueError: If `class_names` are missing or have another number of classes, or if
            `probabilities` are not `[batch, classes]` in 0..1, as logits are not.

    Example:

    ```python
    import numpy as np
    from keras_dsnet.models.predictions import decode_predictions

    probabilities = np.array([[0.2, 0.8]], "float32")
    ((best,),) = decode_predictions(probabilities, top=1, class_names=("cat", "dog"))
    assert best[:2] == ("1", "dog")
    ```
    """
    probabilities = _checked(probabilities)
    classes = probabilities.shape[1]
    top = _checked_top(top)
    if class_names is not None:
        names: Any = check_class_names(class_names, classes)
    elif classes == _IMAGENET_CLASSES:
        return keras.applications.mobilenet.decode_predictions(probabilities, top=min(top, classes))
    else:
        raise ValueError(
            f"`class_names` are needed for classes other than ImageNet's {_IMAGENET_CLASSES}: pass "
            "the names in the order of the class indices, such as `network.class_names`. "
            f"Received: class_names=None for {classes} classes"
        )
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    return [
        [(str(index), names[index], float(row[index])) for index in indices]
        for row, indices in zip(probabilities, best)
    ]


def check_number_of_classes(probabilities: Any, classes: int) -> None:
    """Raises a ValueError if predictions are of another number of classes than the network's.

    Args:
        probabilities: `[batch, classes]`.
        classes: Int, the classes of the network.
    """
    shape = np.shape(probabilities)
    if len(shape) == 2 and shape[1] != classes:
        raise ValueError(
            f"`probabilities` must be of the network's {classes} classes. "
            f"Received: probabilities of shape {tuple(shape)}"
        )


def _checked(probabilities):
    try:
        array = np.asarray(probabilities)
    except ValueError:
        raise ValueError(
            "`probabilities` must be one array [batch, classes]. "
            f"Received: a {type(probabilities).__name__} that does not make one"
        ) from None
    if array.ndim != 2 or not array.shape[1]:
        raise ValueError(
            "`probabilities` must be [batch, classes]. "
            f"Received: probabilities of shape {array.shape}"
        )
    # NumPy does not count bfloat16 among its float kinds.
    if array.dtype.kind not in "f" and array.dtype.name != "bfloat16":
        raise ValueError(
            "`probabilities` must be floats; dequantise int8 outputs first. "
            f"Received: probabilities of dtype {array.dtype}"
        )
    array = array if array.dtype.kind == "f" else array.astype("float32")
    if not np.all(np.isfinite(array)):
        raise ValueError("`probabilities` must be finite. Received: NaN or infinity")
    if array.size and (array.min() < -_ROUNDING or array.max() > 1 + _ROUNDING):
        raise ValueError(
            "`probabilities` must be from 0 to 1: apply the softmax to logits first. "
            f"Received: values from {array.min():.4g} to {array.max():.4g}"
        )
    return array


def _checked_top(top):
    try:
        checked = 0 if isinstance(top, bool) else operator.index(top)
    except TypeError:
        checked = 0
    if checked < 1:
        raise ValueError(f"`top` must be a positive int. Received: top={top!r}")
    return checked
