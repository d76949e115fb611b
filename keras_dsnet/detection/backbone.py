"""A trained classifier as the backbone of a detector."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras

from keras_dsnet.models import DynamicSlimmableNetwork, with_dtype
from keras_dsnet.models.spec import spec_config
from keras_dsnet.training.network_trainer import check_network


def as_backbone(
    network: DynamicSlimmableNetwork,
    input_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    output_stride: int | None = None,
    synchronized: bool = False,
) -> DynamicSlimmableNetwork:
    """Returns a network without its classifier, for images of another size and with other strides.

    Strides and the size of images change no weight. A network that was trained on small images has
    small strides, which would make a detector of large images needlessly expensive.

    Args:
        network: `DynamicSlimmableNetwork`.
        input_shape: `(height, width, 3)` of the detector's images, in pixels.
        strides: Sequence of ints, of the stem and of each stage. Defaults to those of
            `output_stride`.
        output_stride: Int, the height of the image divided by that of the last features: 32, 16 or
            8. Defaults to 32.
        synchronized: Bool, whether batch statistics are computed over all replicas.

    Returns:
        `DynamicSlimmableNetwork` with `include_top=False` and a copy of the weights. It keeps the
        routes and the trained gates.

    Raises:
        ValueError: `network` is not such a network, or does not have as many strides.
    """
    check_network(network, with_classifier=False)
    spec = _with_strides(network.spec, strides, output_stride)
    spec = dataclasses.replace(spec, synchronized=synchronized)
    config = {
        **network.get_config(),
        "spec": spec_config(spec),
        "input_shape": tuple(input_shape),
        "include_top": False,
        "pooling": None,
        # Confidence needs a classifier.
        "routing": "gate",
        "confidence_steps": None,
        "thresholds": None,
    }
    backbone = DynamicSlimmableNetwork.from_config(config)
    values = {layer.name: layer.get_weights() for layer in network.supernet_layers}
    for layer in backbone.supernet_layers:
        # The pooling of a stem, which strides bring in, has none.
        if layer.weights:
            layer.set_weights(values[layer.name])
    return backbone


def _with_strides(spec, strides, output_stride):
    if strides is not None:
        return spec.scaled(strides=strides)
    try:
        # Those of the family, which the trained network may have changed for small images.
        default = type(spec)().strides
    except TypeError:
        default = spec.strides
    if len(default) == len(spec.strides):
        spec = spec.with_strides(default)
    return spec.scaled(output_stride=output_stride or 32)


def detector_with_dtype(detector: Any, dtype: Any) -> Any:
    """Returns a detector with another dtype policy, which it keeps when it is saved and loaded.

    Args:
        detector: `FSSD`.
        dtype: Dtype policy or its name, such as "float32" or "mixed_bfloat16".

    Returns:
        `detector` itself if it and its backbone have that policy. Otherwise a copy with the same
        weights, routing and class names.
    """
    policy = keras.dtype_policies.get(dtype)
    backbone = with_dtype(detector.backbone, policy)
    if backbone is detector.backbone and detector.dtype_policy.name == policy.name:
        return detector
    config = {
        **detector.get_config(),
        "backbone": keras.saving.serialize_keras_object(backbone),
        "dtype": policy,
    }
    copy = type(detector).from_config(config)
    copy.set_weights(detector.get_weights())
    return copy
