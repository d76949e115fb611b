"""Another precision for a network."""

import keras


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
