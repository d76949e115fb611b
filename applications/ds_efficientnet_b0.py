"""DS-EfficientNet-B0: EfficientNet-B0 as a dynamic slimmable network."""

import os
from typing import Any

from keras_dsnet.applications.build_network import (
    Variant,
    build_network,
    decode_predictions,
    preprocess_input,
    with_shared_arguments,
)

from keras_dsnet.models import DynamicSlimmableNetwork, EfficientNetSpec, Normalization
from keras_dsnet.weights import Preset

__all__ = ["DSEfficientNetB0", "decode_predictions", "preprocess_input"]

# The authors released no weights of this family.
PRESETS: dict[str, Preset] = {}

# Table 8 of the paper has two targets: S ends at the width nearest to 270M MAdds, L at that nearest
# to 400M.
VARIANTS = {"S": Variant(routes=tuple(range(5))), "L": Variant(routes=tuple(range(10)))}


@with_shared_arguments
def DSEfficientNetB0(
    weights: str | os.PathLike | None = None,
    input_shape: tuple | None = None,
    classes: int | None = None,
    include_top: bool = True,
    classifier_activation: str | None = "softmax",
    alpha: float | None = None,
    output_stride: int | None = None,
    front_alpha: float | None = None,
    strides: tuple[int, ...] | None = None,
    routes: tuple[int, ...] | None = None,
    name: str = "ds_efficientnet_b0",
    dtype: Any = None,
    pooling: str | None = None,
    class_names: tuple | None = None,
    normalization: Normalization | None = None,
    routing: str | None = None,
    confidence_steps: tuple[int, ...] | None = None,
    **options: Any,
) -> DynamicSlimmableNetwork:
    """Returns a DS-EfficientNet-B0: one slimming gate, 20 widths (appendix B of the paper).

    Squeeze-and-excitation is the attention head of a gate in every inverted residual block. Only
    the gate of the ninth block chooses a width: that of the last 8 blocks, rho from 0.75 to 1.7.
    The blocks before have half of EfficientNet-B0's channels, in multiples of 8.

    Args:
        weights: Path of a `.weights.h5` file that `save_weights` wrote, or None for random weights.
            The authors released no weights of this family. Defaults to None.
        input_shape: {input_shape}
        classes: {classes}
        include_top: {include_top}
        classifier_activation: {classifier_activation}
        alpha: Float of at least 0.5, factor of all channels. A smaller factor would make two widths
            equal. Defaults to 1, or to that of the weights.
        output_stride: {output_stride}
        front_alpha: Float, factor of the channels before the slimming gate. Defaults to `alpha`.
        strides: Tuple of 8 ints, 1 or 2, the strides of the stem and of the seven stages, instead
            of `output_stride`.
        routes: Tuple of ints in ascending order, the candidate widths of the gate. Defaults to
            those of the weights, or to all 20 without weights.
        name: {name}
        dtype: {dtype}
        pooling: {pooling}
        class_names: {class_names}
        normalization: {normalization}
        routing: {routing}
        confidence_steps: {confidence_steps}
        **options: Other fields of `keras_dsnet.models.EfficientNetSpec`: `attention` (`"tanh"` or
            `"sigmoid"`), `attention_ratio`, `activation`, `slimming_head` (`"one_hot"` or
            `"scalar"`), `share_encoder`, `dropout`, `synchronized`, `top`.

    Returns:
        `keras_dsnet.models.DynamicSlimmableNetwork`.

    Raises:
        ValueError: If an argument is not one of a DS-EfficientNet-B0, contradicts the weights, or
            the weights cannot be read.
        OSError: If the file of the weights cannot be opened.

    Example:

    ```python
    import numpy as np
    from keras_dsnet.applications import DSEfficientNetB0
    from keras_dsnet.applications.ds_efficientnet_b0 import preprocess_input

    model = DSEfficientNetB0(input_shape=(32, 32, 3), classes=10, alpha=0.5, output_stride=8)
    images = np.zeros((1, 32, 32, 3), "uint8")
    probabilities = model(preprocess_input(images), path=7)
    ```
    """
    return build_network(
        "DSEfficientNetB0",
        EfficientNetSpec,
        PRESETS,
        weights=weights,
        input_shape=input_shape,
        classes=classes,
        include_top=include_top,
        classifier_activation=classifier_activation,
        scaling={
            "alpha": alpha,
            "output_stride": output_stride,
            "front_alpha": front_alpha,
            "strides": strides,
        },
        routes=routes,
        name=name,
        dtype=dtype,
        pooling=pooling,
        class_names=class_names,
        normalization=normalization,
        routing=routing,
        confidence_steps=confidence_steps,
        options=options,
    )
