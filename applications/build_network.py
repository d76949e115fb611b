"""The constructor behind the networks of all families: arguments, scaling and weights."""

import dataclasses
import os
import pathlib

import keras
from keras_dsnet.applications.pretrained import pretrained_network

from keras_dsnet.checkpoints import WeightsFile, released_weights
from keras_dsnet.models import DynamicSlimmableNetwork
from keras_dsnet.models.network_arguments import (
    activation_name,
    check_classes,
    check_flag,
    check_image_shape,
    check_policy,
    check_pooling,
)
from keras_dsnet.models.path import check_routes
from keras_dsnet.models.predictions import check_class_names
from keras_dsnet.models.preprocessing import as_normalization

_LEAST_SIDE = 32


@dataclasses.dataclass(frozen=True)
class Preset:
    """Weights that have a name.

    Args:
        file: path of the `.weights.h5` file, if it comes with the package.
        url: URL of a checkpoint of the authors' code, which is downloaded on first use.
        sha256: hexadecimal SHA-256 of the file. None: unknown, and a download is only checked to
            hold the tensors of a trained network.
        classes: int.
        class_names: tuple of str, the name of each class by its index, if the file does not hold
            them. None: unknown, or those of ImageNet, which Keras knows.
        accuracy: dictionary from a path (an int, or "dynamic" where the gates choose) to its top-1
            accuracy, a fraction, on the test or validation images.
    """

    file: pathlib.Path | None = None
    url: str | None = None
    sha256: str | None = None
    classes: int = 1000
    class_names: tuple | None = None
    accuracy: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A configuration of stage II that the paper names: S, M or L.

    Args:
        routes: tuple of ints, the widths that the gates may choose. None: all.
        loss_weights: tuple of three floats, the weights of the classification, complexity and SGS
            losses (Eq. 12 of the paper).
    """

    routes: tuple | None = None
    loss_weights: tuple = (1.0, 0.5, 1.0)


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
    pooling=None,
    class_names=None,
    normalization=None,
    presets=None,
    ema=None,
    **options,
):
    """Returns a network of a family, with weights or without.

    What is not said here is as of `DSMobileNet`.

    Args:
        family: str, the public name, for messages.
        spec_class: a subclass of `NetworkSpec` whose fields all have defaults.
        weights: None, the name of a preset, or the path of a file of weights.
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
        pooling: "avg", "max" or None.
        class_names: sequence of str, or None.
        normalization: `Normalization`, or None.
        presets: dictionary from a name to its `Preset`; None: the family has none, and no
            checkpoints of the authors either.
        ema: bool or None.
        **options: other fields of the spec.

    Returns:
        `keras_dsnet.models.DynamicSlimmableNetwork`.

    Raises:
        ValueError: an argument is wrong, or contradicts the weights.
        OSError: the weights cannot be opened.
    """
    _check_options(family, spec_class, options)
    scaling = {
        "alpha": alpha,
        "output_stride": output_stride,
        "front_alpha": front_alpha,
        "strides": strides,
    }
    scaling = {key: value for key, value in scaling.items() if value is not None}
    # Before a file is downloaded.
    spec = spec_class(**options)
    spec.check_options()
    is_known = weights is None or (isinstance(weights, str) and weights in (presets or ()))
    if is_known:
        spec.scaled(**scaling)
        if routes is not None:
            check_routes(routes, spec.num_widths)
    _check_arguments(input_shape, classes, include_top, pooling, dtype)
    arguments = {
        "classifier_activation": activation_name(classifier_activation),
        "name": name,
        "dtype": dtype,
        "pooling": pooling,
        "normalization": None if normalization is None else as_normalization(normalization),
    }
    if class_names is not None and (classes or weights is None):
        check_class_names(class_names, classes or 1000)
    file = _opened(family, weights, presets, ema)
    if file is None or file.config is None:
        model = DynamicSlimmableNetwork(
            spec.scaled(**scaling),
            input_shape=input_shape or (224, 224, 3),
            classes=int(classes or 1000),
            include_top=include_top,
            **arguments,
        )
        if file is not None:
            file.load(model)
    else:
        _check_family(family, spec_class, file)
        model = pretrained_network(
            file, options, scaling, input_shape, classes, include_top, **arguments
        )
    if class_names is not None:
        model.class_names = class_names
    if routes is not None:
        model.routes = routes
    return model


def _opened(family, weights, presets, ema):
    """Returns the `WeightsFile` of what the user passed as `weights`, or None."""
    if ema is not None:
        if not presets:
            raise ValueError(f"`{family}` has no argument 'ema'. Received: ema={ema!r}")
        check_flag("ema", ema)
    if weights is None:
        if ema is not None:
            raise ValueError(f"`ema` is for checkpoints, and there are no weights. Received: {ema}")
        return None
    names = presets or {}
    if isinstance(weights, str) and weights in names:
        preset = names[weights]
        path = preset.file or released_weights(preset.url, preset.sha256, preset.classes)
        return WeightsFile(path, ema, class_names=preset.class_names)
    if weights in ("imagenet", "cifar10"):
        raise ValueError(
            f"There are no {weights!r} weights of {family}: train them with recipes/, and pass "
            f"the path of the .weights.h5 file, or None. Received: weights={weights!r}"
        )
    is_path = isinstance(weights, (str, os.PathLike)) and pathlib.Path(weights).suffix
    if not is_path:
        endings = ".weights.h5 or .pth.tar" if names else ".weights.h5"
        known = "".join(f"{name!r}, " for name in names)
        raise ValueError(
            f"`weights` must be None, {known}or the path of a {endings} file. "
            f"Received: weights={weights!r}"
        )
    return WeightsFile(weights, ema)


def _check_family(family, spec_class, file):
    if not isinstance(file.spec, spec_class):
        raise ValueError(
            f"The weights {file.path} are of another family than {family}, by "
            f"{type(file.spec).__name__}. Received: weights='{file.path}'"
        )


def _check_options(family, spec_class, options):
    known = {field.name for field in dataclasses.fields(spec_class)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(
            f"`{family}` has no argument {unknown[0]!r}; its options are {sorted(known)}. "
            f"Received: {unknown[0]}={options[unknown[0]]!r}"
        )


def _check_arguments(input_shape, classes, include_top, pooling, dtype):
    if input_shape is not None:
        shape = check_image_shape(input_shape)
        sides = [side for side in shape[:2] if side is not None]
        if shape[2] != 3 or any(side < _LEAST_SIDE for side in sides):
            raise ValueError(
                f"`input_shape` must be (height, width, 3) with sides of at least {_LEAST_SIDE}, "
                f"or None. Received: input_shape={shape}"
            )
    if classes is not None:
        check_classes(classes)
    check_pooling(pooling, check_flag("include_top", include_top))
    try:
        policy = keras.dtype_policies.get(dtype)
    except Exception as error:
        line = " ".join(str(error).split())
        raise ValueError(f"`dtype` must be a dtype policy: {line} Received: {dtype!r}") from error
    check_policy(policy)
