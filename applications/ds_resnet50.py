"""DS-ResNet-50: ResNet-50 as a dynamic slimmable network."""

import os
import pathlib
from typing import Any

from keras_dsnet.applications.build_network import (
    CIFAR10_CLASSES,
    Variant,
    build_network,
    decode_predictions,
    preprocess_input,
    with_shared_arguments,
)

from keras_dsnet.models import DynamicSlimmableNetwork, Normalization, ResNetSpec
from keras_dsnet.weights import Preset

__all__ = ["DSResNet50", "decode_predictions", "preprocess_input"]

# Inside the package: a trained supernet with a calibrated threshold. Its gates are not trained.
CIFAR10_WEIGHTS = pathlib.Path(__file__).parent / "weights" / "ds_resnet50_cifar10.weights.h5"
# The authors released no weights of this family. docs/results/cifar10_resnet.md has the training
# and all figures.
PRESETS = {
    "cifar10": Preset(
        file=CIFAR10_WEIGHTS,
        sha256="f2d7c2209fb954ea269e45891ba15731fc4e6f27ee6a7f3efd72076af80dd9d2",
        classes=10,
        class_names=CIFAR10_CLASSES,
        accuracy={0: 0.7653, 1: 0.7829, 2: 0.7987, 3: 0.8134, "dynamic": 0.8076},
        crop_fraction=1.0,
    ),
}

# Table 6 of the paper: S, M and L have all routes, and differ in their loss weights.
VARIANTS = {
    "S": Variant(loss_weights=(0.0, 0.5, 1.0)),
    "M": Variant(loss_weights=(1.0, 0.5, 1.0)),
    "L": Variant(loss_weights=(0.0, 0.0, 1.0)),
}


@with_shared_arguments
def DSResNet50(
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
    name: str = "ds_resnet50",
    dtype: Any = None,
    pooling: str | None = None,
    class_names: tuple | None = None,
    normalization: Normalization | None = None,
    routing: str | None = None,
    confidence_steps: tuple[int, ...] | None = None,
    **options: Any,
) -> DynamicSlimmableNetwork:
    """Returns a DS-ResNet-50: four slimming gates, 4 widths each, 256 paths (Sec. 4 of the paper).

    Every bottleneck block begins with a gate. The first gate of each of the four stages chooses the
    width of the stage, rho in {0.25, 0.5, 0.75, 1}, for the branch and the projection shortcut. The
    norms are group norms, and the stride of a stage is that of its first 3x3 convolution.

    Args:
        weights: One of None for random weights; `"cifar10"`, which come with the package: a network
            for the 32x32 images of CIFAR-10 that routes by confidence, and whose gates are not
            trained; or the path of a `.weights.h5` file that `save_weights` wrote, or of a `.keras`
            file that `save` wrote. The authors released no weights of this family. Defaults to
            None.
        input_shape: {input_shape}
        classes: {classes}
        include_top: {include_top}
        classifier_activation: {classifier_activation}
        alpha: Float, factor of all channels. It must be a multiple of 0.25, so that the widths of a
            stage stay equispaced. Defaults to 1, or to that of the weights.
        output_stride: {output_stride}
        front_alpha: Float, factor of the channels of the stem. Defaults to `alpha`.
        strides: Tuple of 6 ints, 1 or 2, the strides of the stem, the max pool and the four stages,
            instead of `output_stride`. A max pool of stride 1 is left out.
        routes: Tuple of ints in ascending order, the candidate widths of every gate. Defaults to
            those of the weights, or to all 4 without weights.
        name: {name}
        dtype: {dtype}
        pooling: {pooling}
        class_names: {class_names}
        normalization: {normalization}
        routing: {routing}
        confidence_steps: {confidence_steps}
        **options: Other fields of `keras_dsnet.models.ResNetSpec`: `attention` (`"tanh"`,
            `"sigmoid"` or None), `attention_ratio`, `activation`, `slimming_head` (`"one_hot"` or
            `"scalar"`), `share_encoder`, `gate_encoder` (`"global"` or `"regions"`),
            `dropout`.

    Returns:
        `keras_dsnet.models.DynamicSlimmableNetwork`.

    Raises:
        ValueError: If an argument is not one of a DS-ResNet-50, contradicts the weights, or the
            weights cannot be read.
        OSError: If the file of the weights cannot be opened.

    Example:

    ```python
    import numpy as np
    from keras_dsnet.applications import DSResNet50
    from keras_dsnet.applications.ds_resnet50 import preprocess_input

    model = DSResNet50(weights="cifar10")
    images = np.zeros((1, 32, 32, 3), "uint8")
    probabilities = model(preprocess_input(images))  # its confidence chooses a path
    probabilities = model(preprocess_input(images), path=(0, 2, 3, 1))
    print(model.decode_predictions(probabilities, top=3))
    ```
    """
    return build_network(
        "DSResNet50",
        ResNetSpec,
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
