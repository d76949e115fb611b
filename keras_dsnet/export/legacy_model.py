"""A plain sub-network in the Keras that quantisation-aware training knows."""

import numpy as np

TOLERANCE = 1e-5
# What a layer of each kind takes over of its config. Anything else that were set would show in the
# outputs, which are compared.
_FIELDS = {
    "Conv2D": ("filters", "kernel_size", "strides", "padding", "use_bias"),
    "DepthwiseConv2D": ("kernel_size", "strides", "padding", "use_bias"),
    "Dense": ("units", "use_bias"),
    "GroupNormalization": ("groups", "epsilon"),
    "ZeroPadding2D": ("padding",),
    "GlobalAveragePooling2D": ("keepdims",),
    "Rescaling": ("scale", "offset"),
    "Multiply": (),
    "Add": (),
}
_ACTIVATIONS = ("relu", "sigmoid", "tanh")


def legacy_model(model, shape):
    """Rebuilds a plain model in tf_keras, where each layer is what TFLite has one operator for.

    Activations become layers of their own, and swish a sigmoid and a product. Dropout is left out.

    Args:
        model: functional Keras 3 model as `DynamicSlimmableNetwork.subnetwork` makes it with batch
            norm folded, without its softmax.
        shape: `(height, width, 3)` of the images.

    Returns:
        `tf_keras.Model` with copies of the weights.

    Raises:
        ValueError: a layer or an activation is not known, or the outputs differ by more than 1e-5,
            where 1 is their largest value.
    """
    import tf_keras

    tensors = {}
    for layer in model.layers:
        kind = type(layer).__name__
        if kind == "InputLayer":
            inputs = tf_keras.Input(shape, name=layer.name)
            # An input is no layer that a quantiser can be attached to.
            outputs = tf_keras.layers.Activation("linear", name=f"{layer.name}_rounded")(inputs)
        else:
            many = isinstance(layer.input, list)
            x = [tensors[id(x)] for x in layer.input] if many else tensors[id(layer.input)]
            outputs = _rebuild(layer, kind, x)
        tensors[id(layer.output)] = outputs
    rebuilt = tf_keras.Model(inputs, tensors[id(model.outputs[0])], name=model.name)
    _compare(rebuilt, model, shape)
    return rebuilt


def _rebuild(layer, kind, x):
    """Calls the counterpart of a layer and of its activation."""
    import tf_keras

    config = layer.get_config()
    if kind == "Dropout":
        return x
    if kind != "Activation":
        if kind not in _FIELDS:
            known = ", ".join([*_FIELDS, "Activation", "Dropout"])
            raise ValueError(
                "Quantisation-aware training knows these layers: "
                f"{known}. Received: layer {layer.name!r}, a {kind}"
            )
        fields = {field: config[field] for field in _FIELDS[kind]}
        made = getattr(tf_keras.layers, kind)(name=layer.name, **fields)
        x = made(x)
        made.set_weights(layer.get_weights())
    # The layer that only activates gives its name to the activation.
    name = layer.name if kind == "Activation" else f"{layer.name}_activation"
    return _activate(config.get("activation", "linear"), x, name)


def _activate(activation, x, name):
    from tf_keras.layers import Activation, Multiply

    if activation == "linear":
        return x
    if activation in ("silu", "swish"):
        return Multiply(name=name)([x, Activation("sigmoid", name=f"{name}_sigmoid")(x)])
    if activation not in _ACTIVATIONS:
        known = ", ".join([*_ACTIVATIONS, "silu", "linear"])
        raise ValueError(
            f"Quantisation-aware training knows these activations: {known}. "
            f"Received: {activation!r} in layer {name!r}"
        )
    return Activation(activation, name=name)(x)


def _compare(rebuilt, model, shape):
    images = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    expected = np.asarray(model(images))
    difference = np.abs(np.asarray(rebuilt(images)) - expected).max()
    if not difference <= TOLERANCE * max(1.0, np.abs(expected).max()):
        raise ValueError(
            f"The network that was rebuilt for quantisation-aware training differs by "
            f"{difference:.1e} from the sub-network; {TOLERANCE:.0e} of its largest output is "
            "allowed."
        )
