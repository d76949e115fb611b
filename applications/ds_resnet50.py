"""DS-ResNet-50: ResNet-50 as a dynamic slimmable network."""

from keras_dsnet.applications.build_network import (
    Variant,
    build_network,
    decode_predictions,
    preprocess_input,
)

from keras_dsnet.models import ResNetSpec

__all__ = ["DSResNet50", "decode_predictions", "preprocess_input"]

# The authors released no weights of this family.
PRESETS = {}

# Table 6 of the paper: all routes, and the loss weights make the difference.
VARIANTS = {
    "S": Variant(loss_weights=(0.0, 0.5, 1.0)),
    "M": Variant(loss_weights=(1.0, 0.5, 1.0)),
    "L": Variant(loss_weights=(0.0, 0.0, 1.0)),
}


def DSResNet50(
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
    name="ds_resnet50",
    dtype=None,
    pooling=None,
    class_names=None,
    normalization=None,
    **options,
):
    """Returns a DS-ResNet-50: four slimming gates, 4 widths each, 256 paths (Sec. 4 of the paper).

    A gate stands before every bottleneck block. The first gate of each of the four stages chooses
    the stage's width, rho in {0.25, 0.5, 0.75, 1}, for branch and projection shortcut alike. Norms
    are group norms, and the stride of a stage is in its first 3x3 convolution.

    Args:
        weights: None, or the path of a `.weights.h5` file that `save_weights` wrote. The authors
            released none of this family.
        input_shape: `(height, width, 3)`, height and width may be None; None: what the weights were
            made for, without weights `(224, 224, 3)`.
        classes: int; None: those of the weights, without weights 1000.
        include_top: bool: end with the classifier.
        classifier_activation: name of a Keras activation; None: logits.
        alpha: float, a multiple of 0.25, which keeps the widths of a stage equispaced: scales all
            channels; None: 1.
        output_stride: 32, 16 or 8: height of the image over height of the last features; 8 or 16
            keep small images large enough; None: 32.
        front_alpha: float: scales the channels of the stem; None: `alpha`.
        strides: tuple of 6 numbers, 1 or 2: those of the stem, the max pool and the four stages, in
            place of `output_stride`. A max pool of stride 1 is left out.
        routes: candidate widths of every gate, ascending; None: those of the weights, without
            weights all 4.
        name: str.
        dtype: dtype or policy, such as "mixed_bfloat16"; None: Keras's global policy.
        pooling: "avg" or "max", with `include_top=False`: the outputs are the features' mean or
            maximum over height and width; None: the features themselves.
        class_names: the name of each class, by its index; None: those of the weights, if they say.
        normalization: `keras_dsnet.models.Normalization`, how images are normalised before the
            network, which `network.preprocess_input` does; None: that of the weights, without
            weights ImageNet's.
        **options: other fields of `keras_dsnet.models.ResNetSpec`: `attention` ("tanh" or
            "sigmoid"), `attention_ratio`, `activation`, `slimming_head` ("one_hot" or "scalar"),
            `share_encoder`, `dropout`.

    Returns:
        `keras_dsnet.models.DynamicSlimmableNetwork`.

    Raises:
        ValueError: on an argument that no DS-ResNet-50 has, that contradicts the weights, or on
            weights that cannot be read.
        OSError: the weights cannot be opened.

    Example:

    >>> model = DSResNet50(input_shape=(32, 32, 3), classes=10, alpha=0.25, output_stride=8)
    >>> model(preprocess_input(images), path=(0, 2, 3, 1))
    """
    return build_network(
        "DSResNet50",
        ResNetSpec,
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
        **options,
    )
