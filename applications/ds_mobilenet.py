"""DS-MobileNet: MobileNetV1 as a dynamic slimmable network (DS-MBNet in the paper).

The channels of its 14 or 18 widths are in `keras_dsnet.models.MobileNetSpec`.
"""

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

from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec, Normalization
from keras_dsnet.weights import Preset

__all__ = ["DSMobileNet", "decode_predictions", "preprocess_input"]

# Inside the package: trained supernets with a calibrated threshold, the first with a gate too.
_WEIGHTS = pathlib.Path(__file__).parent / "weights"
CIFAR10_WEIGHTS = _WEIGHTS / "ds_mobilenet_cifar10.weights.h5"
TINY_IMAGENET_WEIGHTS = _WEIGHTS / "ds_mobilenet_tiny_imagenet.weights.h5"
_IMAGENET_TOP1 = (
    0.701, 0.704, 0.708, 0.712, 0.716, 0.720, 0.724, 0.727, 0.730, 0.733, 0.736, 0.739, 0.741,
    0.746,
)  # fmt: skip
_CIFAR10_TOP1 = (
    0.9065, 0.9058, 0.9087, 0.9123, 0.9124, 0.9124, 0.9126, 0.9114, 0.9144, 0.9158, 0.9157, 0.9163,
    0.9189, 0.9185,
)  # fmt: skip
_CIFAR10_ACCURACY: dict[int | str, float] = {**dict(enumerate(_CIFAR10_TOP1)), "dynamic": 0.9178}
_TINY_IMAGENET_TOP1 = (
    0.4013, 0.4047, 0.4082, 0.4095, 0.4079, 0.4135, 0.4161, 0.4168, 0.4187, 0.4219, 0.4230, 0.4230,
    0.4282, 0.4315,
)  # fmt: skip
_TINY_IMAGENET_ACCURACY: dict[int | str, float] = {
    **dict(enumerate(_TINY_IMAGENET_TOP1)),
    "dynamic": 0.4092,
}
PRESETS = {
    # The SHA-256 of the authors' file is unknown, so a download cannot be compared with it.
    # The accuracy is what the authors report; it was not measured with this package.
    "imagenet": Preset(
        url="https://github.com/changlin31/DS-Net/releases/download/v0.0.1/DS_MBNet-70_1.pth.tar",
        sha256=None,
        classes=1000,
        accuracy=dict(enumerate(_IMAGENET_TOP1)),
    ),
    # docs/results/cifar10.md has the training and all figures.
    "cifar10": Preset(
        file=CIFAR10_WEIGHTS,
        sha256="e07bda886f5ad7583b170249f595a4b9768df685c230b1a5dbdc54382491c986",
        classes=10,
        class_names=CIFAR10_CLASSES,
        accuracy=_CIFAR10_ACCURACY,
        crop_fraction=1.0,
    ),
    # docs/results/tiny_imagenet.md has the training and all figures. The file holds the names.
    "tiny_imagenet": Preset(
        file=TINY_IMAGENET_WEIGHTS,
        sha256="24471278011cb82a3438df3d579a576b46438fb6dc3ea048171862436987817c",
        classes=200,
        accuracy=_TINY_IMAGENET_ACCURACY,
        crop_fraction=1.0,
    ),
}

# The paper's configurations of the gate. The routes of its S are the four narrowest widths. For M
# and L the paper gives no routes. It states only that the routing space sets the MAdds (appendix
# A). So M ends here at the width with the MAdds of the paper's M, 319M, and L has every width.
VARIANTS = {
    "S": Variant(routes=tuple(range(4))),
    "M": Variant(routes=tuple(range(8))),
    "L": Variant(),
}
# The same for `widths="paper"`: S is rho from 0.35 to 0.5 as in the paper, and M ends at the width
# whose MAdds, 314M, are nearest to 319M.
PAPER_VARIANTS = {
    "S": Variant(routes=tuple(range(4))),
    "M": Variant(routes=tuple(range(11))),
    "L": Variant(),
}


@with_shared_arguments
def DSMobileNet(
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
    ema: bool | None = None,
    name: str = "ds_mobilenet",
    dtype: Any = None,
    pooling: str | None = None,
    class_names: tuple | None = None,
    normalization: Normalization | None = None,
    routing: str | None = None,
    confidence_steps: tuple[int, ...] | None = None,
    widths: str | None = None,
    **options: Any,
) -> DynamicSlimmableNetwork:
    """Returns a DS-MobileNet: one slimming gate, 14 or 18 widths (Sec. 4 of the paper).

    Args:
        weights: One of None for random weights; `"imagenet"`, the supernet that the authors
            released, which is downloaded on first use and whose gate is not trained; `"cifar10"` or
            `"tiny_imagenet"`, which come with the package and route by confidence: networks for the
            32x32 images of CIFAR-10, with a trained gate too, and for 64x64 photographs of 200
            classes; or the path of a `.weights.h5` file, of a `.keras` file, or of a checkpoint of
            the authors' code (`.pth.tar`), whose gate counts as trained. Defaults to None.
        input_shape: {input_shape}
        classes: {classes}
        include_top: {include_top}
        classifier_activation: {classifier_activation}
        alpha: Float, factor of all channels, which are rounded to multiples of 8. Defaults to 1, or
            to that of the weights.
        output_stride: {output_stride}
        front_alpha: Float, factor of the channels before the gate, from which it chooses a width.
            Defaults to `alpha`.
        strides: Tuple of 6 ints, 1 or 2, the strides of the stem and of the five stages, instead of
            `output_stride`.
        routes: Tuple of ints in ascending order, the candidate widths of the gate. Defaults to
            those of the weights, or to all widths without weights.
        ema: Bool, whether to load the moving average of a checkpoint's weights instead of the
            weights. Defaults to the average if the checkpoint has one.
        name: {name}
        dtype: {dtype}
        pooling: {pooling}
        class_names: {class_names}
        normalization: {normalization}
        routing: {routing}
        confidence_steps: {confidence_steps}
        widths: `"paper"` for the 18 widths that the paper describes, see
            `keras_dsnet.models.MobileNetSpec.paper`. Defaults to those of the weights, or without
            weights to the 14 widths of the network that the authors released.
        **options: Other fields of `keras_dsnet.models.MobileNetSpec`: `attention` (`"tanh"`,
            `"sigmoid"` or None), `attention_ratio`, `activation`, `slimming_head` (`"one_hot"` or
            `"scalar"`), `share_encoder`, `gate_encoder` (`"global"` or `"regions"`),
            `dropout`, `synchronized`.

    Returns:
        `keras_dsnet.models.DynamicSlimmableNetwork`.

    Raises:
        ValueError: If an argument is not one of a DS-MobileNet, contradicts the weights, or the
            weights cannot be read.
        OSError: If the file of the weights cannot be opened.

    Example:

    ```python
    import numpy as np
    from keras_dsnet.applications import DSMobileNet
    from keras_dsnet.applications.ds_mobilenet import preprocess_input

    model = DSMobileNet(weights="cifar10")
    images = np.zeros((1, 32, 32, 3), "uint8")
    probabilities = model(preprocess_input(images))  # its confidence chooses a path
    probabilities = model(preprocess_input(images), path="slimmest")
    print(model.decode_predictions(probabilities, top=3))
    ```
    """
    if widths is not None:
        options = {**_named_widths(widths, weights, options), **options}
    return build_network(
        "DSMobileNet",
        MobileNetSpec,
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
        ema=ema,
    )


def _named_widths(widths, weights, options):
    """Returns the fields of the spec for a value of the argument `widths`.

    Raises:
        ValueError: If there are no such widths, or another argument contradicts them.
    """
    if widths != "paper":
        raise ValueError(f"`widths` must be 'paper' or None. Received: widths={widths!r}")
    if isinstance(weights, str) and weights in PRESETS:
        raise ValueError(
            f"The weights {weights!r} are of a network with the 14 released widths. "
            f"Received: widths={widths!r}"
        )
    spec = MobileNetSpec.paper()
    fields = {name: getattr(spec, name) for name in ("stem", "stages", "widest_ratio")}
    twice = sorted(set(fields) & set(options))
    if twice:
        raise ValueError(
            f"`widths` sets {', '.join(f'`{name}`' for name in twice)}: pass one of the two. "
            f"Received: widths={widths!r}"
        )
    return fields
