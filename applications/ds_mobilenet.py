"""DS-MobileNet: MobileNetV1 as a dynamic slimmable network (DS-MBNet in the paper)."""

import pathlib

from keras_dsnet.applications.build_network import (
    CIFAR10_CLASSES,
    Preset,
    Variant,
    build_network,
    decode_predictions,
    preprocess_input,
)

from keras_dsnet.models import MobileNetSpec

__all__ = ["DSMobileNet", "decode_predictions", "preprocess_input"]

# Inside the package: a trained supernet with its gate.
CIFAR10_WEIGHTS = pathlib.Path(__file__).parent / "weights" / "ds_mobilenet_cifar10.weights.h5"
_IMAGENET_TOP1 = (
    0.701, 0.704, 0.708, 0.712, 0.716, 0.720, 0.724, 0.727, 0.730, 0.733, 0.736, 0.739, 0.741,
    0.746,
)  # fmt: skip
_CIFAR10_TOP1 = (
    0.8900, 0.8924, 0.8942, 0.8967, 0.8952, 0.8994, 0.8997, 0.8966, 0.9017, 0.9034, 0.9044, 0.9065,
    0.9054, 0.9058,
)  # fmt: skip
PRESETS = {
    # The SHA-256 of the authors' file has not been computed, so that a download cannot be compared
    # with it. The accuracy is what the authors report; it was not measured with this package.
    "imagenet": Preset(
        url="https://github.com/changlin31/DS-Net/releases/download/v0.0.1/DS_MBNet-70_1.pth.tar",
        sha256=None,
        classes=1000,
        accuracy=dict(enumerate(_IMAGENET_TOP1)),
    ),
    # docs/results/cifar10.md has the training and all figures.
    "cifar10": Preset(
        file=CIFAR10_WEIGHTS,
        sha256="d292e6943b38d769aa3babf3925560e1e0c0446e2c75d7dcacf72b329a4c2fb8",
        classes=10,
        class_names=CIFAR10_CLASSES,
        accuracy={**dict(enumerate(_CIFAR10_TOP1)), "dynamic": 0.8960},
    ),
}

# The paper's configurations of the gate. For S it routes over the four narrowest widths. For M and
# L it names no routes and only says that the routing space sets the MAdds (appendix A): M ends at
# the width with the MAdds of the paper's M, 319M, and L has every width.
VARIANTS = {
    "S": Variant(routes=tuple(range(4))),
    "M": Variant(routes=tuple(range(8))),
    "L": Variant(),
}
# The same for `widths="paper"`: S is rho from 0.35 to 0.5 as the paper says, and M ends at the
# width whose MAdds, 314M, are nearest to 319M.
PAPER_VARIANTS = {
    "S": Variant(routes=tuple(range(4))),
    "M": Variant(routes=tuple(range(11))),
    "L": Variant(),
}


def DSMobileNet(
    weights=None,
    input_shape=None,
    classes=None,
    include_top=True,
    classifier_activation="softmax",
    alpha=None,
    output_stride=None,
    front_alpha=None,
    strides=None,
    routes=None,
    ema=None,
    name="ds_mobilenet",
    dtype=None,
    pooling=None,
    class_names=None,
    normalization=None,
    widths=None,
    **options,
):
    """Returns a DS-MobileNet: one slimming gate, 14 or 18 widths (Sec. 4 of the paper).

    Args:
        weights: None; "imagenet": the authors' released supernet, whose gate is not trained,
            downloaded on first use; "cifar10": a network for 32x32 images of CIFAR-10 with a
            trained gate, which comes with the package; or a path: `.weights.h5`, or a checkpoint of
            the authors' code (`.pth.tar`), whose gate counts as trained.
        input_shape: `(height, width, 3)`, height and width may be None; None: what the weights were
            made for, without weights `(224, 224, 3)`.
        classes: int; None: those of the weights, without weights 1000. Another number than the
            weights' loads all but the classifier, makes all widths routes and the gate untrained,
            and the log says so.
        include_top: bool: end with the classifier.
        classifier_activation: name of a Keras activation; None: logits.
        alpha: float: scales all channels, in multiples of 8 and at least 8; None: 1.
        output_stride: 32, 16 or 8: height of the image over height of the last features; 8 or 16
            keep small images large enough; None: 32.
        front_alpha: float: scales the channels before the gate, which are those it judges an image
            by; None: `alpha`.
        strides: tuple of 6 numbers, 1 or 2: those of the stem and of the five stages one by one,
            in place of `output_stride`.
        routes: candidate widths of the gate, ascending; None: those of the weights, without weights
            all.
        ema: bool: of a checkpoint the moving average of the weights, or the weights themselves;
            None: the average where there is one.
        name: str.
        dtype: dtype or policy, such as "mixed_bfloat16"; None: Keras's global policy.
        pooling: "avg" or "max", with `include_top=False`: the outputs are the features' mean or
            maximum over height and width; None: the features themselves.
        class_names: the name of each class, by its index; None: those of the weights, if they say.
        normalization: `keras_dsnet.models.Normalization`, how images are normalised before the
            network, which `network.preprocess_input` does; None: that of the weights, without
            weights ImageNet's.
        widths: "paper": the 18 widths that the paper describes, which
            `keras_dsnet.models.MobileNetSpec.paper` explains; None: those of the weights, without
            weights the 14 of the network that the authors released.
        **options: other fields of `keras_dsnet.models.MobileNetSpec`: `attention` ("tanh" or
            "sigmoid"), `activation`, `slimming_head` ("one_hot" or "scalar"), `share_encoder`,
            `dropout`, `synchronized`, `attention_ratio`.

    Returns:
        `keras_dsnet.models.DynamicSlimmableNetwork`.

    Raises:
        ValueError: on an argument that no DS-MobileNet has, that contradicts the weights, or on
            weights that cannot be read.
        OSError: the weights cannot be opened.

    Example:

    >>> model = DSMobileNet(input_shape=(32, 32, 3), classes=10, alpha=0.25, output_stride=8)
    >>> model(preprocess_input(images), path="slimmest")
    """
    if widths is not None:
        options = {**_named_widths(widths, weights, options), **options}
    return build_network(
        "DSMobileNet",
        MobileNetSpec,
        weights,
        input_shape,
        classes,
        include_top,
        classifier_activation,
        alpha=alpha,
        output_stride=output_stride,
        front_alpha=front_alpha,
        strides=strides,
        routes=routes,
        name=name,
        dtype=dtype,
        pooling=pooling,
        class_names=class_names,
        normalization=normalization,
        presets=PRESETS,
        ema=ema,
        **options,
    )


def _named_widths(widths, weights, options):
    """Returns the fields of the spec that `widths` stands for.

    Raises:
        ValueError: there are no such widths, or another argument contradicts them.
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
