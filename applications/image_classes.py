"""Images in and names out: what the networks of all families share."""

from keras_dsnet.models.predictions import decode_predictions
from keras_dsnet.models.preprocessing import Normalization

__all__ = ["CIFAR10_CLASSES", "decode_predictions", "preprocess_input"]

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

    A network that was trained otherwise has its own `network.preprocess_input`.

    Args:
        images: array, tensor, `keras.KerasTensor`, PIL image, or a list of arrays or of PIL images
            of one size: `[..., height, width, 3]`, integers or floats, 0 to 255.

    Returns:
        float32 of the same shape: a `keras.KerasTensor` or a tensor where `images` is one, else an
        array.

    Raises:
        ValueError: the images are not RGB, not numbers, integers outside of 0 to 255, not finite,
            or of different sizes.
    """
    return Normalization()(images)
