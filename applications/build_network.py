"""The constructor that all applications share."""

import dataclasses
import inspect
import itertools
import logging
import os
import pathlib
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keras_dsnet.models import DynamicSlimmableNetwork
from keras_dsnet.models.arguments import (
    activation_name,
    check_classes,
    check_image_shape,
    check_policy,
    check_pooling,
)
from keras_dsnet.models.path import check_routes
from keras_dsnet.models.predictions import check_class_names, decode_predictions
from keras_dsnet.models.preprocessing import Normalization, as_normalization
from keras_dsnet.models.routing_settings import check_routing
from keras_dsnet.utils.argument_checks import check_bool
from keras_dsnet.weights import Preset, WeightsFile

__all__ = [
    "CIFAR10_CLASSES",
    "Variant",
    "build_network",
    "decode_predictions",
    "preprocess_input",
    "with_shared_arguments",
]

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
# All named weights, so that a family without them can say so.
_PRESET_NAMES = ("imagenet", "cifar10", "tiny_imagenet")
_DEFAULT_SHAPE, _DEFAULT_CLASSES = (224, 224, 3), 1000
_MIN_SIDE = 32
# Fields of a spec that change no variable.
_FREE_FIELDS = ("dropout", "synchronized")
# The part of a constructor's docstring that is the same for all networks.
_SHARED_ARGUMENTS = {
    "input_shape": "Tuple `(height, width, 3)` in pixels, with sides of at least 32. Height and "
    "width may be None. Defaults to the shape that the weights were trained with, or to "
    "`(224, 224, 3)` without weights.",
    "classes": "Int, number of classes. With another number than that of the weights, all weights "
    "but the classifier are loaded, all widths become routes, and the gates count as untrained; a "
    "log line reports it. Defaults to that of the weights, or to 1000 without weights.",
    "include_top": "Bool, whether the network ends with the classifier. Defaults to True.",
    "classifier_activation": "Name of a Keras activation, or None for logits. Defaults to "
    '`"softmax"`.',
    "output_stride": "Int, the height of the image divided by that of the last features: 32, 16 or "
    "8. Small images need 16 or 8. Defaults to 32, or to that of the weights.",
    "name": "Str, name of the network.",
    "dtype": 'Dtype or dtype policy, such as `"mixed_bfloat16"`. Defaults to the global policy of '
    "Keras.",
    "pooling": '`"avg"` or `"max"` to average the last features over height and width, or to take '
    "their maximum. Requires `include_top=False`. Defaults to None, which returns the features.",
    "class_names": "Sequence of str, one name per class in index order. Defaults to the "
    "names stored with the weights.",
    "normalization": "`keras_dsnet.models.Normalization` that `network.preprocess_input` applies. "
    "Defaults to that of the weights, or to ImageNet's mean and standard deviation.",
    "routing": 'How an image gets its path: `"gate"`, `"confidence"` or `"gate+confidence"`. '
    'Confidence needs no trained gate. Defaults to that of the weights, or to `"gate"`.',
    "confidence_steps": "Tuple of ints in ascending order, the widths that confidence tries in "
    "turn. Defaults to those of the weights, or to the narrowest and the widest of the routes.",
}

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A configuration of stage II that the paper names: S, M or L.

    Args:
        routes: Tuple of ints, the widths that the gates may choose. None for all.
        loss_weights: Tuple of three floats, the weights of the classification, complexity and SGS
            losses (Eq. 12 of the paper).
    """

    routes: tuple | None = None
    loss_weights: tuple = (1.0, 0.5, 1.0)


def build_network(  # noqa: D417
    family: str,
    spec_class: type,
    presets: Mapping[str, Preset],
    *,
    weights: str | os.PathLike | None,
    input_shape: tuple | None,
    classes: int | None,
    include_top: bool,
    classifier_activation: str | None,
    scaling: Mapping[str, Any],
    routes: tuple[int, ...] | None,
    name: str,
    dtype: Any,
    pooling: str | None,
    class_names: tuple | None,
    normalization: Normalization | None,
    routing: str | None,
    confidence_steps: tuple[int, ...] | None,
    options: Mapping[str, Any],
    ema: bool | None = None,
) -> DynamicSlimmableNetwork:
    """Returns a network of a family, with weights or without.

    The arguments that are not described here are those of `DSMobileNet`.

    Args:
        family: Str, the name of the constructor, for messages.
        spec_class: Subclass of `NetworkSpec` whose fields all have defaults.
        presets: Dict that maps the names of weights to `Preset` objects. A family that the authors
            released, which has a preset with an address, also loads checkpoints of their code.
        scaling: Dict of the arguments of `NetworkSpec.scaled`. None stands for the default.
        options: Dict of other fields of the spec.

    Returns:
        `keras_dsnet.models.DynamicSlimmableNetwork`.

    Raises:
        ValueError: If an argument is wrong, or contradicts the weights.
        OSError: If the weights cannot be opened.
    """
    # Everything that can be checked without the weights comes before a download.
    spec = _requested_spec(family, spec_class, options)
    scaling = {key: value for key, value in scaling.items() if value is not None}
    is_preset = isinstance(weights, str) and weights in presets
    if weights is None or is_preset:
        scaled = spec.scaled(**scaling)
        if routes is not None:
            check_routes(routes, scaled.num_widths)
        if confidence_steps is not None:
            check_routes(confidence_steps, scaled.num_widths, "confidence_steps")
    _check_arguments(input_shape, classes, include_top, pooling, dtype)
    if routing is not None:
        check_routing(routing, include_top)
    if class_names is not None and (classes or weights is None):
        check_class_names(class_names, classes or _DEFAULT_CLASSES)
    arguments = {
        "classifier_activation": activation_name(classifier_activation),
        "name": name,
        "dtype": dtype,
        "pooling": pooling,
        "normalization": None if normalization is None else as_normalization(normalization),
    }
    file = _open_weights(family, weights, presets, ema)
    if file is None or file.config is None:
        network = DynamicSlimmableNetwork(
            spec.scaled(**scaling),
            input_shape=input_shape or _DEFAULT_SHAPE,
            classes=int(classes or _DEFAULT_CLASSES),
            include_top=include_top,
            **arguments,
        )
        if file is not None:
            file.load(network)
    else:
        _check_family(family, spec_class, file)
        spec = _agreed_spec(file.path, file.spec, options, scaling)
        network = _load_network(file, spec, input_shape, classes, include_top, **arguments)
    if class_names is not None:
        network.class_names = class_names
    if routes is not None:
        network.routes = routes
    if confidence_steps is not None:
        network.confidence_steps = confidence_steps
    if routing is not None:
        network.routing = routing
    return network


def _requested_spec(family, spec_class, options):
    known = {field.name for field in dataclasses.fields(spec_class)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(
            f"`{family}` has no argument {unknown[0]!r}; its options are {sorted(known)}. "
            f"Received: {unknown[0]}={options[unknown[0]]!r}"
        )
    spec = spec_class(**options)
    spec.check_options()
    return spec


def _check_arguments(input_shape, classes, include_top, pooling, dtype):
    if input_shape is not None:
        shape = check_image_shape(input_shape)
        sides = [side for side in shape[:2] if side is not None]
        if shape[2] != 3 or any(side < _MIN_SIDE for side in sides):
            raise ValueError(
                f"`input_shape` must be (height, width, 3) with sides of at least {_MIN_SIDE}, "
                f"or None. Received: input_shape={shape}"
            )
    if classes is not None:
        check_classes(classes)
    check_pooling(pooling, check_bool("include_top", include_top))
    try:
        policy = keras.dtype_policies.get(dtype)
    except Exception as error:
        line = " ".join(str(error).split())
        raise ValueError(f"`dtype` must be a dtype policy: {line} Received: {dtype!r}") from error
    check_policy(policy)


def _open_weights(family, weights, presets, ema):
    """Returns the `WeightsFile` of the argument `weights`, or None without weights."""
    is_released = any(preset.url for preset in presets.values())
    if ema is not None:
        if not is_released:
            raise ValueError(f"`{family}` has no argument 'ema'. Received: ema={ema!r}")
        check_bool("ema", ema)
    if weights is None:
        if ema is not None:
            raise ValueError(f"`ema` is for checkpoints, and there are no weights. Received: {ema}")
        return None
    if isinstance(weights, str) and weights in presets:
        preset = presets[weights]
        facts = {"class_names": preset.class_names, "crop_fraction": preset.crop_fraction}
        return WeightsFile(preset.filepath(), ema, **facts)
    if weights in _PRESET_NAMES:
        raise ValueError(
            f"There are no {weights!r} weights of {family}: train the network and pass the path of "
            f"its .weights.h5 or .keras file, or pass None. Received: weights={weights!r}"
        )
    is_path = isinstance(weights, (str, os.PathLike)) and pathlib.Path(weights).suffix
    if not is_path:
        endings = ".weights.h5, .keras or .pth.tar" if is_released else ".weights.h5 or .keras"
        known = "".join(f"{name!r}, " for name in presets)
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


def _agreed_spec(path, stored, options, scaling):
    """Returns the spec of the weights with the requested fields that change no variable.

    These are the strides and `_FREE_FIELDS`.

    Args:
        path: Path of the weights, for messages.
        stored: Spec of the weights.
        options: Dict of the requested fields of the spec.
        scaling: Dict of the requested arguments of `NetworkSpec.scaled`.

    Raises:
        ValueError: If another requested field, or the scaled channels, contradict the weights.
    """
    factors = {key: scaling[key] for key in ("alpha", "front_alpha") if key in scaling}
    if factors:
        unscaled = {name: options[name] for name in ("stem", "stages", "top") if name in options}
        scaled = type(stored)(**unscaled).scaled(**factors)
        other_top = "top" in unscaled and scaled.top != stored.top
        # Without `alpha` the weights determine the channels behind the gate.
        compared = _channels if "alpha" in factors else _front_channels
        if compared(scaled) != compared(stored) or other_top:
            given = ", ".join(f"{name}={value!r}" for name, value in factors.items())
            raise ValueError(
                f"The weights {path} are of a network of other channels; leave these arguments "
                f"out, because the weights determine the channels. Received: {given}"
            )
        options = {**options, **{name: getattr(scaled, name) for name in unscaled}}
    spec = stored
    if "stages" in options and _same_stages(options["stages"], stored.stages):
        spec = dataclasses.replace(spec, stages=options["stages"])
    strides = {name: options[name] for name in spec.stride_fields if name in options}
    spec = dataclasses.replace(spec, **strides)
    strides = {key: scaling[key] for key in ("output_stride", "strides") if key in scaling}
    if strides:
        # They apply to the strides of the family, as without weights, if the stages correspond.
        default = type(stored)()
        base = default if len(default.strides) == len(spec.strides) else spec
        spec = spec.with_strides(base.scaled(**strides).strides)
    for name, value in options.items():
        agreed = getattr(spec, name)
        is_same = _same_stages(value, agreed) if name == "stages" else value == agreed
        if name not in _FREE_FIELDS and not is_same:
            raise ValueError(
                f"The weights {path} are of a network with {name}={agreed!r}. "
                f"Received: {name}={value!r}"
            )
    free = {name: options[name] for name in _FREE_FIELDS if name in options}
    return dataclasses.replace(spec, **free)


def _channels(spec):
    """Returns the part of a spec that `scaled` changes, without strides."""
    return spec.stem, _without_strides(spec.stages)


def _front_channels(spec):
    """Returns the part of `_channels` before the first gate."""
    stem, stages = _channels(spec)
    return stem, list(itertools.takewhile(lambda stage: not stage.gated, stages))


def _same_stages(stages, others):
    return _without_strides(stages) == _without_strides(others)


def _without_strides(stages):
    return [dataclasses.replace(stage, strides=1) for stage in stages]


def _load_network(
    file, spec, input_shape, classes, include_top, normalization, pooling, **arguments
):
    """Returns a network with the weights of a file.

    Args:
        file: `WeightsFile` with a config.
        spec: Spec of the network, which agrees with the weights.
        input_shape: Tuple `(height, width, 3)`. None for that of the weights.
        classes: Int, or None for those of the weights. With another number all weights but the
            classifier are loaded, all widths become routes, and the gates count as untrained.
        include_top: Bool.
        normalization: `Normalization`. None for that of the weights.
        pooling: "avg", "max" or None.
        **arguments: Other arguments of `DynamicSlimmableNetwork`.

    Raises:
        ValueError: If the normalization contradicts the weights.
    """
    config = file.config
    stored_classes, stored_top = config["classes"], config["include_top"]
    shape = tuple(input_shape or config["input_shape"])
    classes = stored_classes if classes is None else classes
    facts = {name: config.get(name) for name in ("class_names", "crop_fraction", "normalization")}
    _check_normalization(file.path, normalization, facts["normalization"])
    stored = DynamicSlimmableNetwork(
        spec,
        shape,
        stored_classes,
        stored_top,
        pooling=None if stored_top else pooling,
        **facts,
        **arguments,
    )
    file.load(stored)
    if include_top == stored_top and classes == stored_classes:
        return stored
    if classes != stored_classes:
        # They are of the images of the old classes.
        facts["class_names"] = facts["crop_fraction"] = None
    network = DynamicSlimmableNetwork(
        spec, shape, classes, include_top, pooling=pooling, **facts, **arguments
    )
    _copy_all_but_classifier(stored, network)
    if include_top:
        has = f"{stored_classes} classes" if stored_top else "no classifier"
        _log.warning(
            "%s has %s: all but the classifier of %d classes was loaded; all %d widths are routes, "
            "and the gates are not trained for these classes",
            file.path,
            has,
            classes,
            network.num_widths,
        )
    else:
        network.replace_routes(stored.routes)
        network.gates_trained = stored.gates_trained
    return network


def _check_normalization(path, requested, stored):
    # Older files do not hold a normalization. All of them were trained with ImageNet's.
    stored = Normalization() if stored is None else as_normalization(stored)
    if requested is not None and requested != stored:
        raise ValueError(
            f"The weights {path} were trained with another normalization: {stored}. Leave it out, "
            "or set `model.normalization` afterwards to train them with the new one. "
            f"Received: normalization={requested!r}"
        )


def _copy_all_but_classifier(source, target):
    # By layers: a path of a variable has the scope that the network was made in, and the seeds of
    # dropout belong to no weights. A network without a classifier has no dropout.
    layers = {layer.name: layer for layer in source.supernet_layers}
    for layer in target.supernet_layers:
        if layer.name != "classifier" and layer.weights:
            for new, old in zip(layer.weights, layers[layer.name].weights, strict=True):
                new.assign(np.array(old))


def with_shared_arguments(constructor: Callable) -> Callable:
    """Completes a constructor's docstring with the arguments that all networks share.

    A line `name: {name}` under `Args:` gets the text of that argument in `_SHARED_ARGUMENTS`.

    Args:
        constructor: Function with a docstring.

    Returns:
        The same function.
    """
    if constructor.__doc__:
        lines = []
        for line in inspect.cleandoc(constructor.__doc__).splitlines():
            argument = line.strip().split(":")[0]
            if line.strip() == f"{argument}: {{{argument}}}":
                text = f"    {argument}: {_SHARED_ARGUMENTS[argument]}"
                lines += textwrap.wrap(text, 96, subsequent_indent=" " * 8, break_on_hyphens=False)
            else:
                lines.append(line)
        constructor.__doc__ = "\n".join(lines)
    return constructor


def preprocess_input(images: Any) -> Any:
    """Normalizes RGB images by ImageNet's mean and standard deviation.

    A network with another normalization has its own `network.preprocess_input`.

    Args:
        images: Array, tensor, `keras.KerasTensor`, PIL image, or a list of arrays or PIL images of
            one size: `[..., height, width, 3]`, integers or floats from 0 to 255.

    Returns:
        float32 of the same shape: a `keras.KerasTensor` or a tensor if `images` is one, otherwise
        an array.

    Raises:
        ValueError: If the images are not RGB, not numbers, integers outside of 0 to 255, not
            finite, or of different sizes.

    Example:

    ```python
    import numpy as np
    from keras_dsnet.applications.ds_mobilenet import preprocess_input

    images = preprocess_input(np.zeros((1, 224, 224, 3), "uint8"))
    ```
    """
    return Normalization()(images)
