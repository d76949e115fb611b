"""Checks of the arguments of a network and of the inputs of a call."""

import operator

import keras
import numpy as np
import tensorflow as tf

from keras_dsnet.models.preprocessing import is_dense
from keras_dsnet.utils.private_names import in_layer_call

POOLINGS = (None, "avg", "max")
# Batch norm has no kernels for statistics of half precision.
_POLICIES = ("float32", "float64", "mixed_float16", "mixed_bfloat16")


def check_image_shape(shape, name="input_shape"):
    """Returns `(height, width, channels)` as a tuple; height and width may be None.

    Args:
        shape: what the user passed.
        name: of the argument, for the message.

    Raises:
        ValueError: it is no such shape.
    """
    sides = tuple(shape) if isinstance(shape, (tuple, list)) else ()
    checked = tuple(None if side is None else positive_int(side) for side in sides)
    whole = all(side is None or number for side, number in zip(sides, checked))
    if len(sides) != 3 or not whole or checked[2] is None:
        raise ValueError(
            f"`{name}` must be (height, width, channels), positive ints, where height and width "
            f"may be None. Received: {name}={shape!r}"
        )
    return checked


def resolve_image_shape(shape, own):
    """Returns the shape that images have, without any None.

    Args:
        shape: `(height, width, channels)` that the user passed, or None: the network's.
        own: the network's, whose height and width may be None.

    Raises:
        ValueError: `shape` contradicts the network's, or leaves a side open.
    """
    given = check_image_shape(own if shape is None else shape)
    if any(side not in (None, size) for side, size in zip(own, given)):
        raise ValueError(
            f"`input_shape` must agree with the network's, {own}, where None stands for any size. "
            f"Received: input_shape={shape!r}"
        )
    if None in given:
        raise ValueError(
            f"Costs need the image's size: pass `input_shape=(height, width, {own[2]})`. "
            f"Received: input_shape={shape!r} for a network of {own}"
        )
    return given


def positive_int(value):
    """Returns a positive int as a Python int, and None for anything else."""
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        number = operator.index(value)
    except TypeError:
        return None
    return number if number > 0 else None


def check_classes(classes):
    """Returns the number of classes as an int.

    Raises:
        ValueError: it is not a positive int.
    """
    number = positive_int(classes)
    if number is None:
        raise ValueError(f"`classes` must be a positive int. Received: classes={classes!r}")
    return number


def check_flag(name, value):
    """Returns a bool as a Python bool.

    Args:
        name: of the argument, for the message.
        value: what the user passed.

    Raises:
        ValueError: it is not a bool.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"`{name}` must be True or False. Received: {name}={value!r}")
    return bool(value)


def check_pooling(pooling, include_top):
    """Returns `pooling`.

    Raises:
        ValueError: it is unknown, or the network has its classifier, which pools by itself.
    """
    if pooling is not None and not (isinstance(pooling, str) and pooling in POOLINGS):
        raise ValueError(f"`pooling` must be None, 'avg' or 'max'. Received: pooling={pooling!r}")
    if pooling and include_top:
        raise ValueError(
            "`pooling` is for networks without the classifier: pass `include_top=False` too. "
            f"Received: pooling={pooling!r}, include_top=True"
        )
    return pooling


def activation_name(activation, argument="classifier_activation"):
    """Returns the name of a Keras activation.

    Args:
        activation: its name, the function itself, or None: "linear".
        argument: its name, for the message.

    Raises:
        ValueError: Keras has no such activation, so that a saved network would not know it.
    """
    if activation is None:
        return "linear"
    name = activation if isinstance(activation, str) else getattr(activation, "__name__", "")
    try:
        known = keras.activations.get(name)
    except ValueError:
        known = None
    if not name or known is None or not (isinstance(activation, str) or known is activation):
        raise ValueError(
            f"`{argument}` must be the name of a Keras activation, or None for none. "
            f"Received: {argument}={activation!r}"
        )
    return name


def check_policy(policy):
    """Raises a ValueError unless a network can compute by a dtype policy.

    Args:
        policy: a `keras.DTypePolicy`.
    """
    if policy.quantization_mode or policy.name not in _POLICIES:
        raise ValueError(
            f"`dtype` must be one of {', '.join(map(repr, _POLICIES))}; `model.export` quantizes. "
            f"Received: dtype={policy.name!r}"
        )


def check_images(images, image_shape):
    """Returns a batch of images as a network takes them: a list of images becomes one array.

    Args:
        images: array, tensor or `keras.KerasTensor` `[batch, height, width, channels]`, or a list
            of images of one size.
        image_shape: `(height, width, channels)` of the network; height and width may be None.

    Raises:
        ValueError: the images are of another size or number of channels, no floats, sparse,
            ragged, or none at all.
    """
    if isinstance(images, (list, tuple)):
        images = _stacked(images)
    if not is_dense(images):
        raise ValueError(
            "Images must be a dense tensor of one size. "
            f"Received: a sparse or ragged {type(images).__name__} of shape {tuple(images.shape)}"
        )
    if not tf.TensorShape((None, *image_shape)).is_compatible_with(np.shape(images)):
        raise ValueError(
            "Images must be [batch, height, width, channels] with the network's "
            f"`input_shape={image_shape}`, where None stands for any size. "
            f"Received: images of shape {tuple(np.shape(images))}"
        )
    if np.shape(images)[:1] == (0,):
        raise ValueError(
            "A batch must have an image or more. "
            f"Received: images of shape {tuple(np.shape(images))}"
        )
    dtype = getattr(images, "dtype", "float32")
    dtype = getattr(dtype, "name", str(dtype))
    if not dtype.startswith(("float", "bfloat")):
        raise ValueError(
            "Images must be floats, as `preprocess_input` of the application makes them. "
            f"Received: images of dtype {dtype}"
        )
    return images


def inside_a_call():
    """Whether a layer around the network is being called, whose `training` Keras hands down."""
    return in_layer_call()


def refuse_training(training):
    """Raises a ValueError for training without a path.

    Args:
        training: bool.
    """
    if training:
        raise ValueError(
            "Training needs a path: train with `keras_dsnet.training.SupernetTrainer`, or call "
            "`model(x, path=..., training=True)`. Inside of a model in training the network routes "
            "once it is frozen: `network.trainable = False`. Received: path=None"
        )


def _stacked(images):
    """Returns a list of images as one array or tensor; Keras takes a list for several inputs."""
    try:
        return tf.stack(images) if any(map(tf.is_tensor, images)) else np.asarray(images)
    except (TypeError, ValueError, tf.errors.InvalidArgumentError):
        raise ValueError(
            "Images must be one array [batch, height, width, channels], or a list of images of one "
            f"size. Received: a {type(images).__name__} of {len(images)} entries that do not stack"
        ) from None
