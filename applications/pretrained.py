"""Networks with weights: what the weights were made for, and what a user may change."""

import dataclasses
import logging

import numpy as np

from keras_dsnet.models import DynamicSlimmableNetwork

# Fields of a spec that change no variable.
_FREE = ("dropout", "synchronized")

_log = logging.getLogger(__name__)


def pretrained_network(file, options, input_shape, classes, include_top, **arguments):
    """Returns a network with the weights of a file.

    Args:
        file: `WeightsFile` that knows what network it is for.
        options: fields of the spec that the user asks for.
        input_shape: `(height, width, 3)`; None: that of the weights.
        classes: int; None: those of the weights. Another number loads all but the classifier, and
            the log says so.
        include_top: bool.
        **arguments: of `DynamicSlimmableNetwork`.

    Raises:
        ValueError: `options` contradict the weights.
    """
    config = file.config
    spec = file.spec
    _check_options(file.path, spec, options)
    spec = dataclasses.replace(spec, **{k: options[k] for k in _FREE if k in options})
    shape = tuple(input_shape or config["input_shape"])
    classes = config["classes"] if classes is None else classes
    whole = DynamicSlimmableNetwork(
        spec, shape, config["classes"], config["include_top"], **arguments
    )
    file.load(whole)
    if include_top == config["include_top"] and classes == config["classes"]:
        return whole
    if include_top:
        has = f"{config['classes']} classes" if config["include_top"] else "no classifier"
        _log.warning(
            "%s has %s: all but the classifier of %d classes was loaded", file.path, has, classes
        )
    part = DynamicSlimmableNetwork(spec, shape, classes, include_top, **arguments)
    _copy_all_but_classifier(whole, part)
    return part


def _check_options(path, spec, options):
    for name, value in options.items():
        if name not in _FREE and value != getattr(spec, name):
            raise ValueError(
                f"The weights {path} are of a network with {name}={getattr(spec, name)!r}. "
                f"Received: {name}={value!r}"
            )


def _copy_all_but_classifier(source, target):
    values = {variable.path: variable for variable in source.variables}
    for variable in target.variables:
        if not variable.path.startswith("classifier/"):
            variable.assign(np.array(values[variable.path]))
    target.routes = source.routes
    target.gates_trained = source.gates_trained
