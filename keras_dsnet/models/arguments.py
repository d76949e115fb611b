"""Checks of the arguments of a network, at its construction or at a call."""

import operator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_dsnet.models.preprocessing import is_dense
from keras_dsnet.utils.private_names import in_layer_call

POOLINGS = (None, "avg", "max")
# Batch norm has no kernels with half-precision statistics.
_POLICIES = ("float32", "float64", "mixed_float16", "mixed_bfloat16")


def check_image_shape(shape: Any, name: str = "input_shape") -> tuple:
    """Returns the shape of an image as a tuple.

    Args:
        shape: `(height, width, channels)`. Height and width may be None.
        name: Str, name of the argument for the message.

    Raises:
        ValueError: If `shape` is not such a shape.
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


def resolve_image_shape(shape: Any, network_shape: tuple) -> tuple[int, ...]:
    """Returns the shape of the images that costs are counted for, without None.

    Args:
        shape: `(height, width, channels)`. None takes the shape of the network.
        network_shape: `(height, width, channels)` of the network. Height and width may be None.

    Raises:
        ValueError: If `shape` contradicts the network's shape, or a side is not known.
    """
    resolved = check_image_shape(network_shape if shape is None else shape)
    if any(side not in (None, size) for side, size in zip(network_shape, resolved)):
        raise ValueError(
            f"`input_shape` must agree with the network's, {network_shape}, where None stands for "
            f"any size. Received: input_shape={shape!r}"
        )
    if None in resolved:
        raise ValueError(
            "Costs need the size of the images: pass `input_shape=(height, width, "
            f"{network_shape[2]})`. Received: input_shape={shape!r} for a network of "
            f"{network_shape}"
        )
    return resolved


def positive_int(value: Any) -> int | None:
    """Returns a positive int as a Python int, and None for any other value."""
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        number = operator.index(value)
    except TypeError:
        return None
    return number if number > 0 else None


def check_classes(classes: Any) -> int:
    """Returns the number of classes as an int.

    Raises:
        ValueError: If `classes` is not a positive int.
    """
    number = positive_int(classes)
    if number is None:
        raise ValueError(f"`classes` must be a positive int. Received: classes={classes!r}")
    return number


def check_pooling(pooling: Any, include_top: bool) -> str | None:
    """Returns `pooling`.

    Args:
        pooling: "avg", "max" or None.
        include_top: Bool, whether the network has its classifier, which pools itself.

    Raises:
        ValueError: If `pooling` is unknown, or the network has its classifier.
    """
    if pooling is not None and not (isinstance(pooling, str) and pooling in POOLINGS):
        raise ValueError(f"`pooling` must be None, 'avg' or 'max'. Received: pooling={pooling!r}")
    if pooling and include_top:
        raise ValueError(
            "`pooling` is for networks without the classifier: pass `include_top=False` too. "
            f"Received: pooling={pooling!r}, include_top=True"
        )
    return pooling


def activation_name(activation: Any, argument: str = "classifier_activation") -> str:
    """Returns the name of a Keras activation.

    Args:
        activation: Name of the activation, its function, or None for "linear".
        argument: Str, name of the argument for the message.

    Raises:
        ValueError: If Keras has no such activation, so that a saved network could not be loaded.
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


def check_policy(policy: keras.DTypePolicy) -> None:
    """Raises a ValueError if networks do not support a dtype policy.

    Args:
        policy: A `keras.DTypePolicy`.
    """
    if policy.quantization_mode or policy.name not in _POLICIES:
        raise ValueError(
            f"`dtype` must be one of {', '.join(map(repr, _POLICIES))}; `model.export` quantizes. "
            f"Received: dtype={policy.name!r}"
        )


def check_images(images: Any, image_shape: tuple) -> Any:
    """Checks the images of a call and returns them. A list of images becomes one array.

    This checks only the form of the images, which costs no time at a call.
    `keras_dsnet.utils.batch_checks.check_images` also checks the values of a data set.

    Args:
        images: Array, tensor or `keras.KerasTensor` `[batch, height, width, channels]`, or a list
            of images of one size.
        image_shape: `(height, width, channels)` of the network. Height and width may be None.

    Raises:
        ValueError: If the images have another size or number of channels, are not floats, are
            sparse or ragged, or if there are none.
    """
    if isinstance(images, (list, tuple)):
        images = stack_images(images)
    if tf.is_tensor(images) and not hasattr(images, "numpy") and is_dense(images):
        # In a traced function sizes may be known only when it runs.
        wanted = tf.TensorShape((None, *image_shape))
        if wanted.is_compatible_with(images.shape) and not _knows(images.shape, wanted):
            images = tf.ensure_shape(images, wanted.merge_with(images.shape))
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
            "Images must be floats, as `preprocess_input` of the application returns them. "
            f"Received: images of dtype {dtype}"
        )
    return images


def _knows(shape, wanted):
    """Returns whether a shape has every size that is wanted."""
    if shape.rank is None:
        return False
    return all(size is not None or right is None for size, right in zip(shape, wanted))


def refuse_symbolic(images: Any) -> Any:
    """Returns images that are not those of a functional model under construction.

    Raises:
        ValueError: If the images are a `keras.KerasTensor`.
    """
    if isinstance(images, keras.KerasTensor):
        raise ValueError(
            "`features`, `route` and `run_dynamic` take arrays or tensors. In a functional model "
            "call the network itself, or these methods in the `call` of a layer around it. "
            f"Received: a KerasTensor of shape {tuple(images.shape)}"
        )
    return images


def inside_a_call() -> bool:
    """Whether a layer around the network is being called, whose `training` Keras passes on."""
    return in_layer_call()


def refuse_training(training: Any) -> None:
    """Raises a ValueError if a network would train without a path.

    Args:
        training: Bool.
    """
    if training:
        raise ValueError(
            "Training needs a path: train with `keras_dsnet.training.SupernetTrainer`, or call "
            "`model(x, path=..., training=True)`. Inside a model that trains, the network routes "
            "if it is frozen: `network.trainable = False`. Received: path=None"
        )


def stack_images(images):
    """Stacks a list of images, which Keras would take for several inputs."""
    try:
        return tf.stack(images) if any(map(tf.is_tensor, images)) else np.asarray(images)
    except (TypeError, ValueError, tf.errors.InvalidArgumentError):
        raise ValueError(
            "Images must be one array [batch, height, width, channels], or a list of images of one "
            f"size. Received: a {type(images).__name__} of {len(images)} entries that do not stack"
        ) from None
