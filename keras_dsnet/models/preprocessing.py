"""Normalization of images before a network."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_RGB = "Images must be RGB, [..., height, width, 3]; convert grey or RGBA images first. "


@dataclasses.dataclass(frozen=True)
class Normalization:
    """Normalises RGB pixels channel by channel: `(pixel / 255 - mean) / std`.

    A network holds and saves the normalization that its weights were trained with, so that exported
    files and their metadata agree with it.

    Args:
        mean: Tuple of three floats, the mean of each channel on the scale 0 to 1.
        std: Tuple of three positive floats, the standard deviation of each channel on the same
            scale.

    Raises:
        ValueError: If `mean` or `std` is not three finite numbers, a `std` is not positive, or a
            number is on another scale, such as that of pixels from 0 to 255.

    Example:

    ```python
    import numpy as np
    from keras_dsnet.models import Normalization

    half = Normalization(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert half(np.full((1, 2, 2, 3), 255, "uint8")).max() == 1.0
    ```
    """

    mean: tuple = IMAGENET_MEAN
    std: tuple = IMAGENET_STD

    def __post_init__(self):
        for name in ("mean", "std"):
            object.__setattr__(self, name, _three_floats(name, getattr(self, name)))
        if min(self.std) <= 0:
            raise ValueError(f"`std` must be positive. Received: std={self.std}")
        if min(self.mean) < 0 or max(*self.mean, *self.std) > 1:
            raise ValueError(
                "`mean` and `std` must be on the scale 0 to 1, on which pixels are divided by 255. "
                f"Received: mean={self.mean}, std={self.std}"
            )

    def __call__(self, images: Any) -> Any:
        """Normalises images.

        Args:
            images: Array, tensor, `keras.KerasTensor`, PIL image, or a list of arrays or of PIL
                images of one size: `[..., height, width, 3]`, integers or floats from 0 to 255.

        Returns:
            float32 of the same shape. It is a `keras.KerasTensor` or a tensor if `images` is one,
            and otherwise an array.

        Raises:
            ValueError: If the images are not RGB, not numbers, not finite, integers outside 0 to
                255, or of different sizes.
        """
        images = _as_array(images)
        _check_pixels(images)
        mean = 255 * np.array(self.mean, "float32")
        std = 255 * np.array(self.std, "float32")
        if isinstance(images, keras.KerasTensor):
            # Keras would mark the product of a tensor and an array as sparse, but not the quotient.
            return (keras.ops.cast(images, "float32") - mean) / std
        if tf.is_tensor(images):
            return (tf.cast(_with_known_channels(images), tf.float32) - mean) * (1 / std)
        return (images.astype("float32") - mean) * (1 / std)

    def get_config(self) -> dict[str, list[float]]:
        """Returns the fields as lists, for JSON."""
        return {"mean": list(self.mean), "std": list(self.std)}


def as_normalization(value: Any) -> Normalization:
    """Converts the `normalization` argument of a user to a `Normalization`.

    Args:
        value: A `Normalization`, its config, or None for ImageNet's.

    Raises:
        ValueError: If the value is anything else.
    """
    if isinstance(value, Normalization):
        return value
    if value is None:
        return Normalization()
    if isinstance(value, dict) and set(value) <= {"mean", "std"}:
        return Normalization(**value)
    raise ValueError(
        "`normalization` must be a keras_dsnet.models.Normalization(mean, std), or None for "
        f"ImageNet's. Received: normalization={value!r}"
    )


def _as_array(images):
    """Converts everything except tensors to an array."""
    if isinstance(images, (keras.Variable, tf.Variable)):
        return tf.convert_to_tensor(images)
    if isinstance(images, keras.KerasTensor) or tf.is_tensor(images):
        return images
    if isinstance(images, tf.data.Dataset):
        raise ValueError(
            "Normalise a dataset element by element: "
            "`dataset.map(lambda image, label: (preprocess_input(image), label))`. "
            f"Received: {type(images).__name__}"
        )
    parts = images if isinstance(images, (list, tuple)) else ()
    if any(isinstance(part, keras.KerasTensor) for part in parts):
        raise ValueError(
            "Stack symbolic images with `keras.ops.stack` first. Received: a list of KerasTensors"
        )
    try:
        # Inside a traced function a list of tensors cannot become an array.
        return tf.stack(parts) if any(map(tf.is_tensor, parts)) else np.asarray(images)
    except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
        shapes = sorted({tuple(np.shape(part)) for part in parts}) if _all_arrays(parts) else ""
        raise ValueError(
            "Images must be one array [..., height, width, 3], or a list of images of one size. "
            f"Received: a {type(images).__name__}{f' of shapes {shapes}' if shapes else ''}"
        ) from error


def _all_arrays(parts):
    return bool(parts) and all(hasattr(part, "shape") for part in parts)


def _check_pixels(images):
    if not is_dense(images):
        raise ValueError(
            "Images must be dense and of one size: resize them, or convert them with `tf.sparse."
            f"to_dense`, first. Received: {_described(images)}"
        )
    dtype = _dtype_name(images)
    if not dtype.startswith(("int", "uint", "float", "bfloat")):
        raise ValueError(
            "Images must be integers or floats from 0 to 255. "
            f"Received: images of dtype {dtype}{_shape_of(images)}"
        )
    shape = images.shape
    rank = getattr(shape, "rank", None) if isinstance(shape, tf.TensorShape) else len(shape)
    if rank is not None and (rank < 3 or shape[-1] not in _allowed_channels(images)):
        raise ValueError(f"{_RGB}Received: images of shape {tuple(shape)}")
    if isinstance(images, np.ndarray):
        _check_values(images)
    elif hasattr(images, "numpy") and tf.is_tensor(images):
        _check_values(images.numpy())


def is_dense(images: Any) -> bool:
    """Whether a tensor, symbolic or not, is neither sparse nor ragged."""
    if isinstance(images, (tf.RaggedTensor, tf.SparseTensor)):
        return False
    return not (getattr(images, "sparse", False) or getattr(images, "ragged", False))


def _allowed_channels(images):
    """Returns the channels that may be known. In a traced function they may be checked later."""
    return (3, None) if tf.is_tensor(images) else (3,)


def _check_values(array):
    if not array.size:
        return
    if array.dtype.kind in "iu":
        low, high = array.min(), array.max()
        if low < 0 or high > 255:
            raise ValueError(
                "Integer pixels must be from 0 to 255; scale images of more bits first. "
                f"Received: {array.dtype} from {low} to {high}"
            )
    elif not np.all(np.isfinite(array.astype("float32", copy=False))):
        raise ValueError("Pixels must be finite. Received: images with NaN or infinity")


def _with_known_channels(images):
    """Checks at run time that a tensor has three channels, if its static shape is unknown."""
    if images.shape.rank is not None and images.shape[-1] is not None:
        return images
    shape = tf.shape(images)
    channels = tf.debugging.assert_equal(
        shape[-1:], 3, message=f"{_RGB}Received: images of another number of channels"
    )
    with tf.control_dependencies([channels] if channels is not None else []):
        images = tf.identity(images)
    if images.shape.rank is not None:
        images.set_shape([*images.shape[:-1], 3])
    return images


def _dtype_name(images):
    dtype = images.dtype
    return dtype.name if hasattr(dtype, "name") else str(dtype)


def _described(images):
    return f"{type(images).__name__}{_shape_of(images)}"


def _shape_of(images):
    shape = images.shape
    known = not isinstance(shape, tf.TensorShape) or shape.rank is not None
    return f", of shape {tuple(shape)}" if known else ""


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
