"""DS-EfficientNet-B0: EfficientNet-B0 as a dynamic slimmable network."""

from keras_dsnet.applications.build_network import (
    Variant,
    build_network,
    decode_predictions,
    preprocess_input,
)

from keras_dsnet.models import EfficientNetSpec

__all__ = ["DSEfficientNetB0", "decode_predictions", "preprocess_input"]

# The authors released no weights of this family.
PRESETS = {}

# Table 8 of the paper has two targets: S ends at the width nearest to 270M MAdds, L at that nearest
# to 400M.
VARIANTS = {"S": Variant(routes=tuple(range(5))), "L": Variant(routes=tuple(range(10)))}


def DSEfficientNetB0(
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
    name="ds_efficientnet_b0",
    dtype=None,
    pooling=None,
    class_names=None,
    normalization=None,
    **options,
):
    """Returns a DS-EfficientNet-B0: one slimming gate, 20 widths (appendix B of the paper).

    Squeeze-and-excitation is the attention head of a gate in every inverted residual block. The one
    slimming gate is that of the ninth block: it chooses the width of the last 8 blocks, rho from
    0.75 to 1.7; those before have the half of EfficientNet-B0's channels, in multiples of 8.

    Args:
        weights: None, or the path of a `.weights.h5` file that `save_weights` wrote. The authors
            released none of this family.
        input_shape: `(height, width, 3)`, height and width may be None; None: what the weights were
            made for, without weights `(224, 224, 3)`.
        classes: int; None: those of the weights, without weights 1000.
        include_top: bool: end with the classifier.
        classifier_activation: name of a Keras activation; None: logits.
        alpha: float, at least 0.5, which keeps all widths apart: scales all channels; None: 1.
        output_stride: 32, 16 or 8: height of the image over height of the last features; 8 or 16
            keep small images large enough; None: 32.
        front_alpha: float: scales the channels before the slimming gate; None: `alpha`.
        strides: tuple of 8 numbers, 1 or 2: those of the stem and of the seven stages, in place of
            `output_stride`.
        routes: candidate widths of the gate, ascending; None: those of the weights, without weights
            all 20.
        name: str.
        dtype: dtype or policy, such as "mixed_bfloat16"; None: Keras's global policy.
        pooling: "avg" or "max", with `include_top=False`: the outputs are the features' mean or
            maximum over height and width; None: the features themselves.
        class_names: the name of each class, by its index; None: those of the weights, if they say.
        normalization: `keras_dsnet.models.Normalization`, how images are normalised before the
            network, which `network.preprocess_input` does; None: that of the weights, without
            weights ImageNet's.
        **options: other fields of `keras_dsnet.models.EfficientNetSpec`: `attention` ("tanh" or
            "sigmoid"), `attention_ratio`, `activation`, `slimming_head` ("one_hot" or "scalar"),
            `share_encoder`, `dropout`, `synchronized`, `top`.

    Returns:
        `keras_dsnet.models.DynamicSlimmableNetwork`.

    Raises:
        ValueError: on an argument that no DS-EfficientNet-B0 has, that contradicts the weights, or
            on weights that cannot be read.
        OSError: the weights cannot be opened.

    Example:

    >>> model = DSEfficientNetB0(input_shape=(32, 32, 3), classes=10, alpha=0.5, output_stride=8)
    >>> model(preprocess_input(images), path=7)
    """
    return build_network(
        "DSEfficientNetB0",
        EfficientNetSpec,
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
