"""The constructor shared by all applications: arguments, scaling, weights."""

import dataclasses
import logging
import os
import pathlib

import keras
import numpy as np

from keras_dsnet.models import DynamicSlimmableNetwork
from keras_dsnet.models.arguments import (
    activation_name,
    check_classes,
    check_flag,
    check_image_shape,
    check_policy,
    check_pooling,
)
from keras_dsnet.models.path import check_routes
from keras_dsnet.models.predictions import check_class_names, decode_predictions
from keras_dsnet.models.preprocessing import Normalization, as_normalization
from keras_dsnet.weights import WeightsFile, released_weights

_LEAST_SIDE = 32


@dataclasses.dataclass(frozen=True)
class Preset:
    """Weights that have a name.

    Args:
        file: path of the `.weights.h5` file, where it comes with the package.
        url: of a checkpoint of the authors' code, which is downloaded on first use.
        sha256: hexadecimal SHA-256 of the download; None: not known, and its tensors are checked
            to be those of a trained network.
        classes: int.
        class_names: the name of each class, by its index, which the file does not say; None: not
            known, or ImageNet's, which Keras knows.
    """

    file: pathlib.Path | None = None
    url: str | None = None
    sha256: str | None = None
    classes: int = 1000
    class_names: tuple | None = None


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


# Fields of a spec that change no variable.
_FREE = ("dropout", "synchronized")

_log = logging.getLogger(__name__)


def pretrained_network(
    file, options, scaling, input_shape, classes, include_top, normalization, pooling, **arguments
):
    """Returns a network with the weights of a file.

    Args:
        file: `WeightsFile` that knows what network it is for.
        options: fields of the spec that the user asks for.
        scaling: arguments of `NetworkSpec.scaled` that the user asks for. Strides may differ from
            those of the weights, channels may not.
        input_shape: `(height, width, 3)`; None: that of the weights.
        classes: int; None: those of the weights. Another number loads all but the classifier, makes
            the gates new ones, and the log says so.
        include_top: bool.
        normalization: a `Normalization`; None: that of the weights.
        pooling: "avg", "max" or None.
        **arguments: of `DynamicSlimmableNetwork`.

    Raises:
        ValueError: an argument contradicts the weights.
    """
    config = file.config
    spec = _free_options(file.path, _scaled(file.path, file.spec, options, scaling), options)
    shape = tuple(input_shape or config["input_shape"])
    has_top = config["include_top"]
    classes = config["classes"] if classes is None else classes
    known = {"class_names": config.get("class_names"), "normalization": config.get("normalization")}
    _check_normalization(file.path, normalization, known["normalization"])
    whole = DynamicSlimmableNetwork(
        spec,
        shape,
        config["classes"],
        has_top,
        pooling=None if has_top else pooling,
        **known,
        **arguments,
    )
    file.load(whole)
    if include_top == has_top and classes == config["classes"]:
        return whole
    if classes != config["classes"]:
        known["class_names"] = None
    part = DynamicSlimmableNetwork(
        spec, shape, classes, include_top, pooling=pooling, **known, **arguments
    )
    _copy_all_but_classifier(whole, part)
    if include_top:
        has = f"{config['classes']} classes" if has_top else "no classifier"
        _log.warning(
            "%s has %s: all but the classifier of %d classes was loaded; all %d widths are routes, "
            "and the gates are not trained for these classes",
            file.path,
            has,
            classes,
            part.num_widths,
        )
    else:
        part.replace_routes(whole.routes)
        part.gates_trained = whole.gates_trained
    return part


def _scaled(path, spec, options, scaling):
    """Returns the weights' spec, with the strides that the user asks for.

    Raises:
        ValueError: `scaling` gives other channels than the weights'.
    """
    if "stages" in options:
        other = dataclasses.replace(spec, stages=options["stages"])
        spec = other if _channels(other) == _channels(spec) else spec
    own = {name: options[name] for name in spec.stride_fields if name in options}
    spec = dataclasses.replace(spec, **own)
    if not scaling:
        return spec
    channels = {key: scaling[key] for key in ("alpha", "front_alpha") if key in scaling}
    if channels and _channels(type(spec)(**_made(options)).scaled(**channels)) != _channels(spec):
        given = ", ".join(f"{name}={value!r}" for name, value in channels.items())
        raise ValueError(
            f"The weights {path} are of a network of other channels; leave these arguments out, "
            f"since the weights bring their own. Received: {given}"
        )
    strides = {key: scaling[key] for key in ("output_stride", "strides") if key in scaling}
    if not strides:
        return spec
    # Of the family's own strides, as without weights, where its stages are the family's.
    whole = type(spec)()
    whole = whole if len(whole.strides) == len(spec.strides) else spec
    return spec.with_strides(whole.scaled(**strides).strides)


def _made(options):
    """Returns those of the options that scaling starts from."""
    return {name: options[name] for name in ("stem", "stages", "top") if name in options}


def _channels(spec):
    """Returns what decides the shapes of a network's variables, but for its options."""
    return spec.stem, [dataclasses.replace(stage, strides=1) for stage in spec.stages]


def _free_options(path, spec, options):
    """Returns the spec with the options that change no variable.

    Raises:
        ValueError: another option contradicts the weights.
    """
    for name, value in options.items():
        if name not in _FREE and value != getattr(spec, name):
            raise ValueError(
                f"The weights {path} are of a network with {name}={getattr(spec, name)!r}. "
                f"Received: {name}={value!r}"
            )
    return dataclasses.replace(spec, **{k: options[k] for k in _FREE if k in options})


def _check_normalization(path, asked, known):
    # Files that do not say it are older: all were trained with ImageNet's.
    own = Normalization() if known is None else as_normalization(known)
    if asked is not None and as_normalization(asked) != own:
        raise ValueError(
            f"The weights {path} were trained with another normalization: {own}. Leave it out, or "
            "set `model.normalization` afterwards to train them with the new one. "
            f"Received: normalization={asked!r}"
        )


def _copy_all_but_classifier(source, target):
    values = {variable.path: variable for variable in source.variables}
    for variable in target.variables:
        if not variable.path.startswith("classifier/"):
            variable.assign(np.array(values[variable.path]))


__all__ = ["CIFAR10_CLASSES", "decode_predictions", "preprocess_input"]

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def preprocess_input(images):
    """Normalises RGB images by ImageNet's mean and standard deviation.

    A network that was trained otherwise has its own `network.preprocess_input`.

    Args:
        images: array, tensor, `keras.KerasTensor`, PIL image, or a list of arrays or of PIL images
            of one size: `[..., height, width, 3]`, integers or floats, 0 to 255.

    Returns:
        float32 of the same shape: a `keras.KerasTensor` or a tensor where `images` is one, else an
        array.

    Raises:
        ValueError: the images are not RGB, not numbers, integers outside of 0 to 255, not finite,
            or of different sizes.
    """
    return Normalization()(images)
