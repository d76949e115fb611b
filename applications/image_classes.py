"""Images in and names out: what the networks of all families share."""

import keras
import numpy as np

from keras_dsnet.models.preprocessing import Normalization

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


def preprocess_input(images):
    """Normalises RGB images by ImageNet's mean and standard deviation.

    Args:
        images: array, tensor or `keras.KerasTensor` `[..., height, width, 3]`, uint8 or float, 0 to
            255.

    Returns:
        float32 of the same shape and kind.

    Raises:
        ValueError: the images are not RGB.
    """
    return Normalization()(images)


def decode_predictions(probabilities, top=5):
    """Names the most probable classes of each image: ImageNet's or CIFAR-10's.

    ImageNet's names are Keras's, which downloads them on first use.

    Args:
        probabilities: `[batch, 1000]`, of ImageNet, or `[batch, 10]`, of CIFAR-10: the number of
            classes says which data set it is.
        top: int.

    Returns:
        For each image a list of `(id, name, probability)`, most probable first; the id is the
        WordNet id of ImageNet, and the number of the class in CIFAR-10.

    Raises:
        ValueError: on another number of classes.
    """
    probabilities = np.asarray(probabilities)
    if probabilities.ndim != 2 or probabilities.shape[1] != len(CIFAR10_CLASSES):
        return keras.applications.mobilenet.decode_predictions(probabilities, top=top)
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    return [
        [(str(index), CIFAR10_CLASSES[index], float(row[index])) for index in indices]
        for row, indices in zip(probabilities, best)
    ]
