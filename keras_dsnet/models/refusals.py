"""What `keras.Model` offers that a model which chooses its path cannot do."""

from typing import Any

import keras


class Refusals:
    """The part of a routed model that refuses, in one line, what would go wrong without a word.

    The model inherits from this class, and sets `_is_made` at the end of its constructor.
    """

    _is_made = False
    name: str

    @property
    def dtype_policy(self) -> Any:
        """The dtype policy. It is that of all layers, and cannot change once they are made."""
        return keras.Model.dtype_policy.fget(self)

    @dtype_policy.setter
    def dtype_policy(self, policy: Any) -> None:
        if self._is_made and keras.dtype_policies.get(policy).name != self.dtype_policy.name:
            raise ValueError(
                "`dtype_policy` cannot change, because the layers have it too: make the model with "
                "`dtype=`, or a copy of a network by `keras_dsnet.models.with_dtype`. "
                f"Received: dtype_policy={policy!r} after {self.dtype_policy.name!r}"
            )
        keras.Model.dtype_policy.fset(self, policy)

    def quantize(self, mode: str, *args: Any, **kwargs: Any) -> None:
        """Raises a ValueError, where Keras would leave every layer as it is with a warning.

        Args:
            mode: As in `keras.Model.quantize`.
            *args: As in `keras.Model.quantize`.
            **kwargs: As in `keras.Model.quantize`.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "Keras does not quantise convolutions. A file is quantised when it is exported: "
            "`export(file, format='litert', quantize='int8')`. "
            f"Received: quantize({mode!r})"
        )

    @property
    def input(self) -> Any:
        """The symbolic input of the one call on a `keras.Input`."""
        return self._symbolic("input")

    @property
    def output(self) -> Any:
        """The symbolic output of the one call on a `keras.Input`."""
        return self._symbolic("output")

    def _symbolic(self, name):
        try:
            return getattr(keras.Model, name).fget(self)
        except AttributeError:
            raise AttributeError(
                f"'{self.name}' has no symbolic {name}, because it was not called on one "
                "`keras.Input`: call it so, or take that of a plain Keras model of one path, "
                f"`subnetwork(path).{name}`"
            ) from None
