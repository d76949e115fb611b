"""What a network refuses before it computes."""

import numpy as np
import tensorflow as tf
from keras.src.backend.common.global_state import get_global_attribute

from keras_dsnet.models.preprocessing import is_dense


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
    return get_global_attribute("current_call_ctx") is not None


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
