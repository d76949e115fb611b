"""What shape a network returns for images of a shape."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_dsnet.models.costs import features_shape
from keras_dsnet.models.path import PathLike
from keras_dsnet.models.routing import SectionRunner


class OutputShapes:
    """The part of a `DynamicSlimmableNetwork` that knows its shapes without running.

    The network inherits from this class.
    """

    include_top: bool
    classes: int
    routes: tuple
    resolve_path: Any
    _runner: SectionRunner
    _image_shape: tuple

    @property
    def input_shape(self) -> tuple:
        """Shape of the input, `(None, height, width, channels)`."""
        return (None, *self._image_shape)

    @property
    def output_shape(self) -> tuple:
        """Shape of the output at the widest of `routes`, `(None, classes)` with the top."""
        return self.compute_output_shape(self.input_shape)

    def compute_output_shape(
        self, input_shape: Sequence[int | None], path: PathLike | None = None
    ) -> tuple:
        """Returns the shape of the output, as layers such as `TimeDistributed` need it.

        Args:
            input_shape: `(batch, height, width, channels)`. All but the channels may be None.
            path: See `Call arguments` of the network. Defaults to routing, whose features are
                padded to the channels of the widest of `routes`.

        Returns:
            `(batch, classes)`. Without the top `(batch, height, width, channels)`, or with
            `pooling` `(batch, channels)`.
        """
        if self.include_top:
            return (input_shape[0], self.classes)
        resolved = self.resolve_path(self.routes[-1] if path is None else path)
        return (input_shape[0], *features_shape(self._runner.sections, resolved, input_shape[1:]))

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        # `keras.Layer` would take the dtype from the policy. That of the outputs depends on the
        # top, which a trace knows.
        return keras.Operation.compute_output_spec(self, *args, **kwargs)
