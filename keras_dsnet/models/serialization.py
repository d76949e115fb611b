"""Serialization of a network.

A weights file holds the facts that belong to its weights: routes, whether the gates are trained,
class names, normalization and crop. A copy of a network is made from a changed config. Keras writes
the export formats other than TFLite.
"""

import dataclasses
import io
import json
import warnings
import zipfile
from typing import Any

import h5py
import keras
import numpy as np

from keras_dsnet.models.spec import spec_config, spec_from_config
from keras_dsnet.utils.argument_checks import check_bool

_IMAGE_FACTS = ("class_names", "crop_fraction", "normalization")
# Settings of a spec that another network with the same weights may have.
_NOT_IN_WEIGHTS = ("dropout", "synchronized", "strides")
_EXPORT_FORMATS = ("tf_saved_model", "onnx", "openvino", "torch")


def save_facts(network: Any, store: Any) -> None:
    """Writes the facts that belong to the weights of a network into a weights file.

    Args:
        network: A `DynamicSlimmableNetwork`.
        store: The store that Keras passes to `save_own_variables`.
    """
    store["routes"] = np.array(network.routes, "int32")
    store["gates_trained"] = np.array(network.gates_trained)
    # The config shows which network the weights are for. Frozen layers do not belong to weights.
    config = {**network.get_config(), "trainable": True, "frozen_layers": ()}
    store["config"] = np.frombuffer(json.dumps(config).encode(), "uint8")


def load_facts(network: Any, store: Any) -> None:
    """Gives a network the facts that `save_facts` wrote.

    Args:
        network: A `DynamicSlimmableNetwork`.
        store: The store that Keras passes to `load_own_variables`.

    Raises:
        ValueError: If the routes have a width that the network does not have.
    """
    config = json.loads(bytes(np.array(store["config"]))) if "config" in store else {}
    routes = [int(width) for width in store["routes"]]
    trained = bool(np.array(store["gates_trained"]))
    _restore(network, {**config, "routes": routes, "gates_trained": trained})


def check_weights_fit(network: Any, filepath: Any, skip_mismatch: bool) -> None:
    """Refuses a file of weights that describes another network, before anything is loaded.

    Weights with another activation or attention would fit by their shapes and mean nothing.

    Args:
        network: A `DynamicSlimmableNetwork`.
        filepath: Path of the file. Files without a description, such as those of Keras's older
            formats, are not checked.
        skip_mismatch: Bool, whether layers of another shape may be left out. A difference is then
            only warned of.

    Raises:
        ValueError: If the file is of another network.
    """
    difference = find_difference(read_stored(filepath, "vars/config"), network)
    report_difference(difference, "network", skip_mismatch)


def report_difference(
    difference: tuple[str, Any, Any] | None, kind: str, skip_mismatch: bool
) -> None:
    """Raises an error for a setting that differs, or warns of it.

    Args:
        difference: `(name, theirs, ours)`, or None if there is none.
        kind: Str, what has the setting: "network" or "detector".
        skip_mismatch: Bool, whether it is only warned of.

    Raises:
        ValueError: If there is a difference and `skip_mismatch` is False.
    """
    if difference is None:
        return
    name, theirs, ours = difference
    line = f"The weights are of a {kind} with {name}={theirs!r}. Received: a {kind} with "
    if not skip_mismatch:
        raise ValueError(f"{line}{name}={ours!r}")
    if name != "classes":
        warnings.warn(f"{line}{name}={ours!r}", stacklevel=4)


def read_stored(filepath: Any, path: str) -> dict | None:
    """Returns a description in a file of weights, or None if it has none that can be read.

    Args:
        filepath: Path of the file.
        path: Str, where it is in the HDF5 file.
    """
    name = str(filepath)
    try:
        if name.endswith(".keras"):
            with zipfile.ZipFile(filepath) as archive:
                filepath = io.BytesIO(archive.read("model.weights.h5"))
        elif not name.endswith(".weights.h5"):
            return None
        with h5py.File(filepath) as file:
            return json.loads(bytes(np.array(file[path])))
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile):
        # Keras says what is wrong with the file.
        return None


def find_difference(config: dict | None, network: Any) -> tuple[str, Any, Any] | None:
    """Returns `(name, theirs, ours)` of the first setting that the weights depend on, or None.

    Args:
        config: Dict, the configuration of another network, or None.
        network: A `DynamicSlimmableNetwork`.
    """
    if not config or not {"spec", "classes", "include_top"} <= set(config):
        return None
    ours = network.spec
    theirs = spec_from_config(config["spec"])
    if type(theirs) is not type(ours):
        return "family", type(theirs).__name__, type(ours).__name__
    if len(theirs.stages) != len(ours.stages):
        return "stages", len(theirs.stages), len(ours.stages)
    pairs = [("", theirs, ours)]
    pairs += [(f"stages[{i}].", *pair) for i, pair in enumerate(zip(theirs.stages, ours.stages))]
    left_out = {"stages", *ours.stride_fields, *_NOT_IN_WEIGHTS}
    for prefix, old, new in pairs:
        for name in [field.name for field in dataclasses.fields(new) if field.name not in left_out]:
            if getattr(old, name) != getattr(new, name):
                return prefix + name, getattr(old, name), getattr(new, name)
    both = config["include_top"] and network.include_top
    if both and config["classes"] != network.classes:
        return "classes", config["classes"], network.classes
    return None


def restore_facts(network: Any, config: dict) -> None:
    """Gives a network back the facts that it had before a file of weights failed to load.

    Args:
        network: A `DynamicSlimmableNetwork`.
        config: Dict, its configuration of before.
    """
    network.replace_routes(config["routes"])
    for name in ("gates_trained", "confidence_steps", "thresholds", "routing", *_IMAGE_FACTS):
        setattr(network, name, config[name])


def load_facts_of_h5_model(network: Any, filepath: Any) -> None:
    """Gives a network the facts of a whole model in Keras's older `.h5` format.

    Such a file holds them only in its config. A file of weights without a config changes nothing.

    Args:
        network: A `DynamicSlimmableNetwork`.
        filepath: Path of the file.

    Raises:
        ValueError: If the routes have a width that the network does not have.
    """
    with h5py.File(filepath) as file:
        _restore(network, json.loads(file.attrs.get("model_config", "{}")).get("config", {}))


def _restore(network, config):
    other_classes = config.get("classes", network.classes) != network.classes
    if other_classes and network.include_top:
        # Gates that were trained for other classes count as new.
        network.reset_gates()
    elif "routes" in config:
        try:
            network.replace_routes(config["routes"])
        except ValueError as error:
            raise ValueError(
                "The weights are of a network with more widths than the "
                f"{network.num_widths} of this one: {error}"
            ) from error
        network.gates_trained = config["gates_trained"]
        network.confidence_steps = config.get("confidence_steps")
        network.thresholds = config.get("thresholds")
        # Features have no confidence. Older files have only routing by the gate.
        network.routing = config.get("routing", "gate") if network.include_top else "gate"
    for name in _IMAGE_FACTS:
        # The names and the crop are those of the images of other classes.
        if config.get(name) is not None and (name == "normalization" or not other_classes):
            setattr(network, name, config[name])


def with_dtype(network: Any, dtype: Any) -> Any:
    """Returns the network with another dtype policy, which it keeps when it is saved and loaded.

    Args:
        network: A `DynamicSlimmableNetwork`.
        dtype: Dtype policy or its name, such as "float32" or "mixed_bfloat16".

    Returns:
        `network` itself if it has that policy. Otherwise a copy with the same weights, routes,
        trained gates, class names, normalization, crop and frozen layers.

    Raises:
        ValueError: If there is no such policy, or networks do not support it.
    """
    policy = keras.dtype_policies.get(dtype)
    if network.dtype_policy.name == policy.name:
        return network
    copy = type(network).from_config({**network.get_config(), "dtype": policy})
    copy.set_weights(network.get_weights())
    return copy


def with_slimming_head(
    model: Any,
    slimming_head: str | None = None,
    share_encoder: bool | None = None,
    gate_encoder: str | None = None,
) -> Any:
    """Returns the network with slimming heads of another design (Table 7 of the paper).

    Stage I does not train the slimming heads, so one supernet serves to compare their designs.

    Args:
        model: A `DynamicSlimmableNetwork`.
        slimming_head: "one_hot" or "scalar". Defaults to the model's.
        share_encoder: Bool, whether the slimming head uses the first layer of the attention head.
            Defaults to the model's.
        gate_encoder: "global" or "regions", what the slimming head sees of the features. Defaults
            to the model's.

    Returns:
        `model` itself if it has that design. Otherwise a network with the same variables, whose
        slimming heads are new and untrained: its `gates_trained` is False.

    Raises:
        ValueError: If there is no such design.
    """
    if share_encoder is not None:
        check_bool("share_encoder", share_encoder)
    wanted = {
        "slimming_head": slimming_head,
        "share_encoder": share_encoder,
        "gate_encoder": gate_encoder,
    }
    changes = {
        name: value
        for name, value in wanted.items()
        if value is not None and value != getattr(model.spec, name)
    }
    if not changes:
        return model
    config = {**model.get_config(), "gates_trained": False}
    config["spec"] = spec_config(dataclasses.replace(model.spec, **changes))
    changed = type(model).from_config(config)
    heads = {id(v) for gate in changed.slimming_gates for v in gate.slimming_variables}
    layers = {layer.name: layer for layer in model.supernet_layers}
    for layer in changed.supernet_layers:
        trained = {_name_in(layer, variable): variable for variable in layers[layer.name].weights}
        for variable in layer.weights:
            if id(variable) not in heads:
                variable.assign(trained[_name_in(layer, variable)])
    return changed


def _name_in(layer, variable):
    """Returns the path of a variable below its layer, whatever scope the network was made in."""
    return variable.path.rpartition(f"{layer.name}/")[2]


def copy_slimming_heads(source: Any, target: Any) -> None:
    """Gives a network the slimming heads of another one, as a start (Table 3 of the paper).

    The networks can have other classes and another image size. The supernet of `target`, its routes
    and its `gates_trained` stay as they are. A head that shares its encoder with the attention head
    uses the encoder of `target`.

    Args:
        source: A `DynamicSlimmableNetwork` with trained gates.
        target: A `DynamicSlimmableNetwork` of the same gates.

    Raises:
        ValueError: If the gates are of another design or size, or those of `source` are not
            trained.

    Example:

    ```python
    from keras_dsnet.applications import DSMobileNet
    from keras_dsnet.models import copy_slimming_heads

    options = {"input_shape": (32, 32, 3), "alpha": 0.25, "output_stride": 8}
    source = DSMobileNet(classes=10, **options)
    source.gates_trained = True  # As after stage II.
    target = DSMobileNet(classes=5, **options)
    copy_slimming_heads(source, target)
    ```
    """
    if not source.gates_trained:
        raise ValueError(
            "The gates of `source` must be trained, by stage II. Received: a network with "
            "gates_trained=False"
        )
    pairs = [
        [(v.name, tuple(v.shape)) for gate in network.slimming_gates for v in _head_of(gate)]
        for network in (source, target)
    ]
    if pairs[0] != pairs[1] or source.spec.slimming_head != target.spec.slimming_head:
        designs = [
            f"{network.num_gates} gates of {network.num_widths} widths and "
            f"{network.slimming_gates[0].channels[-1]} channels, "
            f"slimming_head={network.spec.slimming_head!r}, "
            f"share_encoder={network.spec.share_encoder}, "
            f"gate_encoder={network.spec.gate_encoder!r}"
            for network in (source, target)
        ]
        raise ValueError(
            f"The slimming heads of `source` must be those of `target`, {designs[1]}. "
            f"Received: {designs[0]}"
        )
    for old, new in zip(source.slimming_gates, target.slimming_gates):
        for value, variable in zip(old.slimming_variables, new.slimming_variables):
            variable.assign(value)


def _head_of(gate):
    # The first layer of a shared encoder has to fit too, though it is not copied.
    return [*gate.slimming_variables, *([gate.w1] if gate.share_encoder else [])]


def keras_export(
    network: Any, filepath: Any, format: str, verbose: bool | None = None, **options: Any
) -> None:
    """Exports a network with its gates by `keras.Model.export`.

    Args:
        network: A `DynamicSlimmableNetwork`.
        filepath: Path of the file or folder.
        format: "tf_saved_model", "onnx", "openvino" or "torch".
        verbose: Bool. Defaults to Keras's default.
        **options: Further options of the format.

    Raises:
        ValueError: If the format is unknown or cannot hold a network that chooses its path.
        ImportError: If a package that the format needs is not installed.
        OSError: If the file cannot be written.
    """
    if format not in _EXPORT_FORMATS:
        raise ValueError(
            f"`format` must be 'litert' or one of {', '.join(map(repr, _EXPORT_FORMATS))}. "
            f"Received: format={format!r}"
        )
    # Keras would find the signature only if the model had been called before.
    images = keras.InputSpec(dtype="float32", shape=network.input_shape)
    options.setdefault("input_signature", [images])
    try:
        keras.Model.export(network, str(filepath), format=format, verbose=verbose, **options)
    except OSError:
        raise
    except ImportError as error:
        raise ImportError(
            f"format={format!r} needs a package that is not installed: {error}"
        ) from error
    except Exception as error:
        line = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(
            f"Keras cannot export this network to format={format!r}: {line.rstrip('.')}. If the "
            "format cannot hold a network that chooses its path, export one path: "
            "`model.subnetwork(path).export(...)`"
        ) from error
