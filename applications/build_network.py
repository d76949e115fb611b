"""The constructor behind the networks of all families: arguments, scaling and weights."""

import dataclasses
import os
import pathlib

import numpy as np
from keras_dsnet.applications.pretrained import pretrained_network

from keras_dsnet.checkpoints import WeightsFile
from keras_dsnet.models import DynamicSlimmableNetwork


def build_network(
    family,
    spec_class,
    weights=None,
    input_shape=None,
    classes=None,
    include_top=True,
    classifier_activation="softmax",
    alpha=None,
    output_stride=None,
    front_alpha=None,
    strides=None,
    routes=None,
    name=None,
    dtype=None,
    **options,
):
    """Returns a network of a family, with weights or without.

    What is not said here is as of `DSMobileNet`.

    Args:
        family: str, the public name, for messages.
        spec_class: a subclass of `NetworkSpec` whose fields all have defaults.
        weights: None; the path of a `.weights.h5` file; or a `WeightsFile`.
        input_shape: `(height, width, 3)` or None.
        classes: int or None.
        include_top: bool.
        classifier_activation: str or None.
        alpha: float or None.
        output_stride: 32, 16, 8 or None.
        front_alpha: float or None: scales the channels before the first gate.
        strides: tuple of 1 and 2, or None: one for each of the spec's `strides`.
        routes: tuple of ints, or None.
        name: str.
        dtype: dtype, policy or None.
        **options: other fields of the spec.

    Returns:
        `keras_dsnet.models.DynamicSlimmableNetwork`.

    Raises:
        ValueError: an argument is wrong, or contradicts the weights.
        OSError: the weights cannot be opened.
    """
    _check_arguments(family, spec_class, input_shape, classes, options)
    file = _opened(family, weights)
    scaling = {
        "alpha": alpha,
        "output_stride": output_stride,
        "front_alpha": front_alpha,
        "strides": strides,
    }
    scaling = {key: value for key, value in scaling.items() if value is not None}
    arguments = {"classifier_activation": classifier_activation, "name": name, "dtype": dtype}
    if file is None or file.config is None:
        model = DynamicSlimmableNetwork(
            spec_class(**options).scaled(**scaling),
            input_shape=input_shape or (224, 224, 3),
            classes=int(classes or 1000),
            include_top=include_top,
            **arguments,
        )
        if file is not None:
            file.load(model)
    else:
        _check_family(family, spec_class, file)
        _check_scaling(spec_class, file, scaling)
        model = pretrained_network(file, options, input_shape, classes, include_top, **arguments)
    if routes is not None:
        model.routes = routes
    return model


def _opened(family, weights):
    if weights is None or isinstance(weights, WeightsFile):
        return weights
    if weights in ("imagenet", "cifar10"):
        raise ValueError(
            f"There are no {weights!r} weights of {family}: train them with recipes/, and pass "
            f"the path of the .weights.h5 file, or None. Received: weights={weights!r}"
        )
    check_weights(weights, "None or the path of a .weights.h5 file")
    return WeightsFile(weights)


def check_weights(weights, right):
    """Raises a ValueError unless `weights` may be a path.

    Args:
        weights: what the user passed.
        right: str: what would be right, for the message.
    """
    if not isinstance(weights, (str, os.PathLike)) or not pathlib.Path(weights).suffix:
        raise ValueError(f"`weights` must be {right}. Received: weights={weights!r}")


def _check_family(family, spec_class, file):
    if not isinstance(file.spec, spec_class):
        raise ValueError(
            f"The weights {file.path} are of another family than {family}, by "
            f"{type(file.spec).__name__}. Received: weights='{file.path}'"
        )


def _check_scaling(spec_class, file, scaling):
    """Raises a ValueError if `scaling` gives other channels or strides than the weights'."""
    if not scaling:
        return
    spec, scaled = file.spec, spec_class().scaled(**scaling)
    if any(getattr(spec, name) != getattr(scaled, name) for name in ("stem", "strides", "stages")):
        given = ", ".join(f"{name}={value!r}" for name, value in scaling.items())
        raise ValueError(
            f"The weights {file.path} are of a network of other channels or strides; leave these "
            f"arguments out, since the weights bring their own. Received: {given}"
        )


def _check_arguments(family, spec_class, input_shape, classes, options):
    if input_shape is not None:
        _check_input_shape(input_shape)
    if classes is not None and (not isinstance(classes, (int, np.integer)) or classes < 1):
        raise ValueError(f"`classes` must be a positive int. Received: classes={classes!r}")
    known = {field.name for field in dataclasses.fields(spec_class)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(
            f"`{family}` has no argument {unknown[0]!r}; its options are {sorted(known)}. "
            f"Received: {unknown[0]}={options[unknown[0]]!r}"
        )


def _check_input_shape(shape):
    shape = tuple(shape)
    sides = [side for side in shape[:2] if side is not None]
    if len(shape) != 3 or shape[2] != 3 or any(side < 32 for side in sides):
        raise ValueError(
            "`input_shape` must be (height, width, 3) with sides of at least 32, or None. "
            f"Received: input_shape={shape}"
        )
