"""Copies of a network that differ in one respect: precision, or the slimming head."""

import dataclasses

import keras

from keras_dsnet.models.arguments import check_flag
from keras_dsnet.models.spec import spec_config


def with_dtype(network, dtype):
    """Returns the network with another dtype policy, which it keeps when it is saved and loaded.

    Args:
        network: a `DynamicSlimmableNetwork`.
        dtype: dtype policy or its name, such as "float32" or "mixed_bfloat16".

    Returns:
        `network` itself where it has that policy; else a copy with its weights and everything that
        it says of itself: routes, trained gates, class names, normalization, frozen layers.

    Raises:
        ValueError: there is no such policy, or networks do not compute by it.
    """
    policy = keras.dtype_policies.get(dtype)
    if network.dtype_policy.name == policy.name:
        return network
    config = {**network.get_config(), "dtype": policy}
    copy = type(network).from_config(config)
    copy.set_weights(network.get_weights())
    return copy


def with_slimming_head(model, slimming_head=None, share_encoder=None):
    """Returns the network with slimming heads of another design (Table 7 of the paper).

    Stage I trains no slimming head, so that one supernet serves to compare their designs.

    Args:
        model: a `DynamicSlimmableNetwork`.
        slimming_head: "one_hot" or "scalar"; None: the model's.
        share_encoder: bool: whether the slimming head uses the attention head's first layer; None:
            as the model's.

    Returns:
        `model` itself where it has that design; else a network with its variables, whose slimming
        heads are new and untrained: its `gates_trained` is False.

    Raises:
        ValueError: there is no such design.
    """
    if share_encoder is not None:
        check_flag("share_encoder", share_encoder)
    wanted = {"slimming_head": slimming_head, "share_encoder": share_encoder}
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
    trained = {variable.path: variable for variable in model.variables}
    for variable in changed.variables:
        if id(variable) not in heads:
            variable.assign(trained[variable.path])
    return changed
