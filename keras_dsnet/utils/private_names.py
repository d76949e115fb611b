"""Private names of other libraries that the package uses.

No other file uses such a name. Each entry states why there is no public way. All of them were read
in Keras 3.15.1, TensorFlow 2.21.0 and KerasCV 0.9.0, and exist in the lowest versions that
`setup.cfg` allows. When a new version moves a name, `tests/utils/test_private_names.py` fails and
this file changes.
"""

from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common.global_state import get_global_attribute
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.backend.common.symbolic_scope import in_symbolic_scope

__all__ = [
    "CoupledWeightDecay",
    "OptimizerBuild",
    "calibrate_only",
    "flatten_layers",
    "has_weight_decay",
    "in_layer_call",
    "in_stateless_scope",
    "in_symbolic_scope",
    "is_evaluated_by_fit",
    "quantize_calibrated",
    "set_random_generator",
    "strategy_of_optimizer",
    "variable_index",
    "was_called_symbolically",
]


def in_layer_call() -> bool:
    """Returns whether a layer is being called now.

    Keras keeps the arguments that it hands from a layer to its sub-layers, such as `training`, in
    this global attribute. Only a layer's own `call` sees them publicly.
    """
    return get_global_attribute("current_call_ctx") is not None


def was_called_symbolically(layer: keras.Layer) -> bool:
    """Returns whether a functional model was built around a layer.

    Publicly only `layer.input` tells, which fails too where there are several such calls.
    """
    return bool(layer._inbound_nodes)


def flatten_layers(layer: keras.Layer) -> list[keras.Layer]:
    """Returns a layer with all layers inside of it.

    Only `keras.Model` has a public list of its layers.
    """
    return list(layer._flatten_layers())


def set_random_generator(layer: Any, generator: Any) -> None:
    """Sets the source of random numbers of a KerasCV layer.

    KerasCV makes a stateful `tf.random.Generator` in the constructor and takes no other.
    """
    layer._random_generator = generator


class OptimizerBuild:
    """Makes `fit` build the optimizer for `optimized_variables` of the model.

    This class comes before `keras.Model` in the bases of a model whose layers are built already.
    Keras would build the optimizer for every trainable variable. For several replicas it would also
    average a batch, which fails where one replica has fewer images than another. Keras has no
    public method to override for this.
    """

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        if self._distribute_strategy is not None and not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.optimized_variables)


def is_evaluated_by_fit(arguments: dict[str, Any]) -> bool:
    """Returns whether these keyword arguments of `evaluate` come from `fit`.

    `fit` evaluates `validation_data` by a call of `evaluate` that differs by this argument only.
    """
    return bool(arguments.get("_use_cached_eval_dataset"))


class CoupledWeightDecay:
    """Turns off the weight decay that Keras applies apart from the gradient.

    This class comes before the optimizer's class in the bases of an optimizer that adds weight
    decay to the gradient. `weight_decay=None` would turn off the decay too, but the optimizer's
    configuration would lose the value.
    """

    def _apply_weight_decay(self, variables):
        pass


def has_weight_decay(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> bool:
    """Returns whether `exclude_from_weight_decay` leaves weight decay to a variable.

    Keras has a public method to exclude a variable and none to ask.
    """
    return bool(optimizer._use_weight_decay(variable))


def variable_index(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> int:
    """Returns the position of a variable among those that a built optimizer trains.

    `update_step` receives a variable without its position.
    """
    return optimizer._get_variable_index(variable)


def strategy_of_optimizer(
    optimizer: keras.optimizers.Optimizer, default: tf.distribute.Strategy
) -> tf.distribute.Strategy:
    """Returns the strategy in whose scope an optimizer was made, or `default` if it is not known.

    An optimizer that is not built has no variables, whose scope could be asked publicly.
    """
    return getattr(optimizer, "_distribution_strategy", default)


def calibrate_only(converter: Any) -> None:
    """Makes a TFLite converter measure the ranges of activations without quantising.

    The public converter does both in one step, and cannot leave chosen operators in float.
    """
    converter._experimental_calibrate_only = True


def quantize_calibrated(content: bytes, float_outputs: set[str]) -> bytes:
    """Returns a calibrated TFLite file in int8.

    Args:
        content: Bytes of the file that a converter wrote after `calibrate_only`.
        float_outputs: Names of tensors. An operator whose first output has one of these names stays
            in float. No public function takes such a list.
    """
    from tensorflow.lite.python.convert import mlir_quantize

    return mlir_quantize(content, denylisted_nodes=float_outputs)
