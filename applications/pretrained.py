"""Networks with weights: what the weights were made for, and what a user may change."""

import dataclasses
import logging

import numpy as np

from keras_dsnet.models import DynamicSlimmableNetwork, Normalization
from keras_dsnet.models.preprocessing import as_normalization

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
    asked = _scaled_options(file.spec, options, scaling)
    spec = _scaled(file.path, file.spec, options, asked, scaling)
    spec = _free_options(file.path, spec, asked)
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


def _scaled_options(spec, options, scaling):
    """Returns the options with scaled channels, where these are the channels of the weights."""
    channels = {key: scaling[key] for key in ("alpha", "front_alpha") if key in scaling}
    if not channels or not {"stem", "stages"} & set(options):
        return options
    scaled = type(spec)(**_made(options)).scaled(**channels)
    if _channels(scaled) != _channels(spec):
        return options
    return {n: getattr(scaled, n) if n in ("stem", "stages") else v for n, v in options.items()}


def _scaled(path, spec, options, asked, scaling):
    """Returns the weights' spec, with the strides that the user asks for.

    Args:
        path: of the weights, for messages.
        spec: of the weights.
        options: fields of the spec that the user asks for, before scaling.
        asked: the same after scaling.
        scaling: arguments of `NetworkSpec.scaled`.

    Raises:
        ValueError: `scaling` gives other channels than the weights'.
    """
    if "stages" in asked:
        other = dataclasses.replace(spec, stages=asked["stages"])
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
    return spec.stem, _without_strides(spec.stages)


def _without_strides(stages):
    return [dataclasses.replace(stage, strides=1) for stage in stages]


def _free_options(path, spec, options):
    """Returns the spec with the options that change no variable.

    Raises:
        ValueError: another option contradicts the weights.
    """
    for name, value in options.items():
        own = getattr(spec, name)
        if name == "stages" and isinstance(value, tuple):
            # `_scaled` has taken the strides.
            value, own = _without_strides(value), _without_strides(own)
        if name not in _FREE and value != own:
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
