"""How images are normalised before a network sees them."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Normalization:
    """Normalises RGB pixels channel by channel: `(pixel / 255 - mean) / std`.

    A network carries the normalisation that its weights were trained with, and saves it, so that
    exported files and their metadata agree with it.

    Args:
        mean: three floats, the mean of each channel on the scale 0 to 1.
        std: three positive floats, the standard deviation of each channel on the same scale.

    Raises:
        ValueError: `mean` or `std` is not three finite numbers, or a `std` is not positive.

    Example:

    >>> half = Normalization(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    >>> half(np.full((1, 2, 2, 3), 255, "uint8")).max()
    np.float32(1.0)
    """

    mean: tuple = IMAGENET_MEAN
    std: tuple = IMAGENET_STD

    def __post_init__(self):
        for name in ("mean", "std"):
            object.__setattr__(self, name, _three_floats(name, getattr(self, name)))
        if min(self.std) <= 0:
            raise ValueError(f"`std` must be positive. Received: std={self.std}")

    def __call__(self, images):
        """Normalises images.

        Args:
            images: array, tensor or `keras.KerasTensor` `[..., height, width, 3]`, uint8 or float,
                0 to 255.

        Returns:
            float32 of the same shape and kind.

        Raises:
            ValueError: the last dimension is not the three channels of RGB.
        """
        if not (tf.is_tensor(images) or isinstance(images, keras.KerasTensor)):
            images = np.asarray(images)
        if images.shape[-1:] != (3,):
            raise ValueError(
                "Images must be RGB, [..., height, width, 3]; convert grey or RGBA images first. "
                f"Received: images of shape {tuple(images.shape)}"
            )
        mean = 255 * np.array(self.mean, "float32")
        scale = 1 / (255 * np.array(self.std, "float32"))
        if isinstance(images, keras.KerasTensor):
            return (keras.ops.cast(images, "float32") - mean) * scale
        if tf.is_tensor(images):
            return (tf.cast(images, tf.float32) - mean) * scale
        return (images.astype("float32") - mean) * scale

    def get_config(self):
        """Returns the fields as plain lists, for JSON."""
        return {"mean": list(self.mean), "std": list(self.std)}


def _three_floats(name, values):
    try:
        floats = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        floats = ()
    if len(floats) != 3 or not np.all(np.isfinite(floats)):
        raise ValueError(
            f"`{name}` must be three finite numbers, one per channel. Received: {name}={values!r}"
        )
    return floats
