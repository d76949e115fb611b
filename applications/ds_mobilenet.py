"""DS-MobileNet: MobileNetV1 as a dynamic slimmable network (DS-MBNet in the paper)."""

import keras
import numpy as np
import tensorflow as tf

from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def DSMobileNet(
    weights=None,
    input_shape=None,
    classes=None,
    include_top=True,
    classifier_activation="softmax",
    alpha=1.0,
    output_stride=32,
    front_alpha=None,
    strides=None,
    routes=None,
    name="ds_mobilenet",
    dtype=None,
    **options,
):
    """Returns a DS-MobileNet: one slimming gate, 14 widths (Sec. 4 of the paper).

    Args:
        weights: None, or a path to a `.weights.h5` file.
        input_shape: `(height, width, 3)`, height and width may be None; None: `(224, 224, 3)`.
        classes: int; None: 1000.
        include_top: bool: end with the classifier.
        classifier_activation: name of a Keras activation; None: logits.
        alpha: float: scales all channels, in multiples of 8 and at least 8.
        output_stride: 32, 16 or 8: height of the image over height of the last features; 8 or 16
            keep small images large enough.
        front_alpha: float: scales the channels before the gate, which are those it judges an image
            by; None: `alpha`.
        strides: tuple of 6 numbers, 1 or 2: those of the stem and of the five stages one by one,
            in place of `output_stride`.
        routes: candidate widths of the gate, ascending; None: all 14.
        name: str.
        dtype: dtype or policy, such as "mixed_bfloat16"; None: Keras's global policy.
        **options: other fields of `keras_dsnet.models.MobileNetSpec`: `attention` ("tanh" or
            "sigmoid"), `activation`, `slimming_head` ("one_hot" or "scalar"), `share_encoder`,
            `dropout`, `synchronized`, `attention_ratio`.

    Returns:
        `keras_dsnet.models.DynamicSlimmableNetwork`.

    Raises:
        ValueError: on an argument that no DS-MobileNet has.

    Example:

    >>> model = DSMobileNet(input_shape=(32, 32, 3), classes=10, alpha=0.25, output_stride=8)
    >>> model(preprocess_input(images), path="slimmest")
    """
    input_shape = _check_input_shape(input_shape or (224, 224, 3))
    classes = 1000 if classes is None else classes
    if not isinstance(classes, (int, np.integer)) or classes < 1:
        raise ValueError(f"`classes` must be a positive int. Received: classes={classes!r}")
    known = set(MobileNetSpec.__dataclass_fields__)
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(
            f"`DSMobileNet` has no argument {unknown[0]!r}; its options are {sorted(known)}."
        )
    model = DynamicSlimmableNetwork(
        MobileNetSpec(**options).scaled(alpha, output_stride, front_alpha, strides),
        input_shape=input_shape,
        classes=int(classes),
        include_top=include_top,
        classifier_activation=classifier_activation,
        routes=routes,
        name=name,
        dtype=dtype,
    )
    if weights is not None:
        model.load_weights(weights)
    return model


def _check_input_shape(shape):
    shape = tuple(shape)
    sides = [side for side in shape[:2] if side is not None]
    if len(shape) != 3 or shape[2] != 3 or any(side < 32 for side in sides):
        raise ValueError(
            "`input_shape` must be (height, width, 3) with sides of at least 32, or None. "
            f"Received: input_shape={shape}"
        )
    return shape


def preprocess_input(images):
    """Normalises RGB images by ImageNet's mean and standard deviation.

    Args:
        images: array or tensor `[..., height, width, 3]`, uint8 or float, 0 to 255.

    Returns:
        float32 of the same shape and kind.
    """
    mean = 255 * np.array(IMAGENET_MEAN, "float32")
    scale = 1 / (255 * np.array(IMAGENET_STD, "float32"))
    if tf.is_tensor(images):
        return (tf.cast(images, tf.float32) - mean) * scale
    return (np.asarray(images, "float32") - mean) * scale


def decode_predictions(probabilities, top=5):
    """Names the most probable ImageNet classes of each image.

    Args:
        probabilities: `[batch, 1000]`.
        top: int.

    Returns:
        For each image a list of `(WordNet id, name, probability)`, most probable first.
    """
    return keras.applications.mobilenet.decode_predictions(np.asarray(probabilities), top=top)
