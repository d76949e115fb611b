"""DS-MobileNet: MobileNetV1 as a dynamic slimmable network (DS-MBNet in the paper)."""

import os
import pathlib

import keras
import numpy as np
import tensorflow as tf
from keras_dsnet.applications.pretrained import pretrained_network

from keras_dsnet.checkpoints import WeightsFile, released_weights
from keras_dsnet.models import DynamicSlimmableNetwork, MobileNetSpec
from keras_dsnet.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD

# Inside the package: a trained supernet with its gate; docs/results/cifar10.md has its accuracy.
CIFAR10_WEIGHTS = pathlib.Path(__file__).parent / "weights" / "ds_mobilenet_cifar10.weights.h5"
CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


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
            weights' loads all but the classifier, and the log says so.
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
    _check_arguments(input_shape, classes, options)
    file = _weights_file(weights, ema)
    scaling = {
        "alpha": alpha,
        "output_stride": output_stride,
        "front_alpha": front_alpha,
        "strides": strides,
    }
    scaling = {key: value for key, value in scaling.items() if value is not None}
    arguments = {
        "classifier_activation": classifier_activation,
        "name": name,
        "dtype": dtype,
    }
    if file is None or file.config is None:
        model = DynamicSlimmableNetwork(
            MobileNetSpec(**options).scaled(**scaling),
            input_shape=input_shape or (224, 224, 3),
            classes=int(classes or 1000),
            include_top=include_top,
            **arguments,
        )
        if file is not None:
            file.load(model)
    else:
        _check_scaling(file, scaling)
        model = pretrained_network(file, options, input_shape, classes, include_top, **arguments)
    if routes is not None:
        model.routes = routes
    return model


def _weights_file(weights, ema):
    if weights is None:
        return None
    if weights == "imagenet":
        return WeightsFile(released_weights())
    if weights == "cifar10":
        return WeightsFile(CIFAR10_WEIGHTS)
    if not isinstance(weights, (str, os.PathLike)) or not pathlib.Path(weights).suffix:
        raise ValueError(
            "`weights` must be None, 'imagenet', 'cifar10', or the path of a .weights.h5 or "
            f".pth.tar file. Received: weights={weights!r}"
        )
    return WeightsFile(weights, ema)


def _check_scaling(file, scaling):
    """Raises a ValueError if `scaling` gives other channels or strides than the weights'."""
    if not scaling:
        return
    spec, scaled = file.spec, MobileNetSpec().scaled(**scaling)
    names = ("stem", "stem_strides", "stages")
    if any(getattr(spec, name) != getattr(scaled, name) for name in names):
        given = ", ".join(f"{name}={value!r}" for name, value in scaling.items())
        raise ValueError(
            f"The weights {file.path} are of a network of other channels or strides; leave these "
            f"arguments out, since the weights bring their own. Received: {given}"
        )


def _check_arguments(input_shape, classes, options):
    if input_shape is not None:
        _check_input_shape(input_shape)
    if classes is not None and (not isinstance(classes, (int, np.integer)) or classes < 1):
        raise ValueError(f"`classes` must be a positive int. Received: classes={classes!r}")
    known = set(MobileNetSpec.__dataclass_fields__)
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(
            f"`DSMobileNet` has no argument {unknown[0]!r}; its options are {sorted(known)}."
        )


def _check_input_shape(shape):
    shape = tuple(shape)
    sides = [side for side in shape[:2] if side is not None]
    if len(shape) != 3 or shape[2] != 3 or any(side < 32 for side in sides):
        raise ValueError(
            "`input_shape` must be (height, width, 3) with sides of at least 32, or None. "
            f"Received: input_shape={shape}"
        )


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
    """Names the most probable classes of each image: ImageNet's or CIFAR-10's.

    Args:
        probabilities: `[batch, 1000]` or `[batch, 10]`.
        top: int.

    Returns:
        For each image a list of `(id, name, probability)`, most probable first; the id is the
        WordNet id of ImageNet, and the number of the class in CIFAR-10.
    """
    probabilities = np.asarray(probabilities)
    if probabilities.ndim != 2 or probabilities.shape[1] != len(CIFAR10_CLASSES):
        return keras.applications.mobilenet.decode_predictions(probabilities, top=top)
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    return [
        [(str(index), CIFAR10_CLASSES[index], float(row[index])) for index in indices]
        for row, indices in zip(probabilities, best)
    ]
