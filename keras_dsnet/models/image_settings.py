"""What a network knows of the images that it takes."""

from typing import Any

from keras_dsnet.models.preprocessing import Normalization, as_normalization
from keras_dsnet.utils.argument_checks import check_number


class ImageSettings:
    """The part of a `DynamicSlimmableNetwork` that says how its images are prepared.

    The network inherits from this class. Files of the network and exported files repeat these
    settings.
    """

    @property
    def normalization(self) -> Normalization:
        """The `Normalization` of images before the network. Settable; None sets ImageNet's."""
        return self._normalization

    @normalization.setter
    def normalization(self, normalization: Normalization | dict | None) -> None:
        self._normalization = as_normalization(normalization)

    @property
    def crop_fraction(self) -> float | None:
        """The fraction of each side of a resized image that the network is evaluated on. Settable.

        It is above 0 and at most 1, or None if it is not known. Networks that were trained on whole
        images have 1. Apps cut this part out of the centre of a photograph; exported files have
        0.875 where it is not known.
        """
        return self._crop_fraction

    @crop_fraction.setter
    def crop_fraction(self, fraction: float | None) -> None:
        self._crop_fraction = None if fraction is None else check_crop_fraction(fraction)

    def preprocess_input(self, images: Any) -> Any:
        """Normalises images with the `normalization` of the network.

        Args:
            images: RGB `[..., height, width, 3]`, pixels from 0 to 255; see `Normalization`.

        Returns:
            float32 of the same shape.
        """
        return self.normalization(images)


def check_crop_fraction(fraction: Any) -> float:
    """Returns a fraction of each side of an image.

    Raises:
        ValueError: If it is not above 0 and at most 1.
    """
    wanted = "above 0 and at most 1"
    return check_number("crop_fraction", fraction, wanted, lambda value: 0 < value <= 1)
