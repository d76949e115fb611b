"""DS-MobileNet: MobileNetV1 as a dynamic slimmable network (DS-MBNet in the paper)."""

import pathlib

from keras_dsnet.applications.build_network import (
    CIFAR10_CLASSES,
    Preset,
    build_network,
    decode_predictions,
    preprocess_input,
)

from keras_dsnet.models import MobileNetSpec

__all__ = ["DSMobileNet", "decode_predictions", "preprocess_input"]

# Inside the package: a trained supernet with its gate; docs/results/cifar10.md has its accuracy.
CIFAR10_WEIGHTS = pathlib.Path(__file__).parent / "weights" / "ds_mobilenet_cifar10.weights.h5"
PRESETS = {
    # Nobody has computed the SHA-256 of the authors' file here yet.
    "imagenet": Preset(
        url="https://github.com/changlin31/DS-Net/releases/download/v0.0.1/DS_MBNet-70_1.pth.tar",
        sha256=None,
        classes=1000,
    ),
    "cifar10": Preset(file=CIFAR10_WEIGHTS, classes=10, class_names=CIFAR10_CLASSES),
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
    **options,
):
    """Returns a DS-MobileNet: one slimming gate, 14 widths (Sec. 4 of the paper).

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
            all 14.
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
